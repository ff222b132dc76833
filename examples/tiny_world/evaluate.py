"""What a checkpoint of the tiny world can do, measured on the waveforms of its replies.

    python -m examples.tiny_world.evaluate FOLDER [--rows N] [--split validation] [--temperature 1.0]

Heard: the recogniser's transcript meets the answer. Said: the words of the text channel meet it. Style: a
slow reply lasts at least 1.2 times as long as its own words do normally, a loud one is 4.5 dB above normal.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from conf.schema import ModelConfig
from examples.tiny_world.build import DATA
from examples.tiny_world.pretrain import Encoder, read_rows
from judge.recognisers.pocketsphinx import PocketsphinxRecogniser, word_error_rate
from speech.answers.words import split_words
from speech.families import load_family
from speech.sound.mel import FloatArray

MAX_REPLY = 128
BATCH = 25


def replies(model: Qwen2ForCausalLM, prompts: list[tuple[int, ...]], temperature: float, stop: int) -> list[list[int]]:
    """One reply per prompt; temperature 0 is greedy."""
    out: list[list[int]] = []
    for first in range(0, len(prompts), BATCH):
        group = prompts[first : first + BATCH]
        width = max(map(len, group))
        ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in group])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in group])
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with torch.no_grad():
            limits = {"max_new_tokens": MAX_REPLY, "eos_token_id": stop, "pad_token_id": 0}
            generated = model.generate(ids, attention_mask=mask, **limits, **sampling)
        for reply in generated[:, width:].tolist():
            out.append(reply[: reply.index(stop) + 1] if stop in reply else reply)
    return out


def meets(answer: dict[str, str], text: str) -> bool:
    """Does a text give the answer?"""
    words, expected = split_words(text), split_words(answer["value"])
    return words == expected if answer["match"] == "exact" else words[-len(expected) :] == expected


def level(wave: FloatArray) -> float:
    """Decibels of the speaking parts."""
    power = (wave[: len(wave) // 320 * 320].reshape(-1, 320) ** 2).mean(axis=1)
    return float(10 * np.log10(power[power >= power.max() * 1e-2].mean() + 1e-12)) if len(power) else -120.0


def style_of(wave: FloatArray, text: str, encoder: Encoder, normal_level: float) -> str | None:
    """The style a listener would name."""
    usual = sum(len(encoder.clip(f"bank/rms/{word}.flac")) for word in _known(text)) * 1280
    if usual and len(wave) > 1.2 * usual:
        return "slow"
    return "loud" if level(wave) > normal_level + 4.5 else None


def _known(text: str) -> list[str]:
    return [word for word in text.split() if (DATA / "bank" / "rms" / f"{word}.flac").is_file()]


def measure(folder: Path, rows: list[dict[str, Any]], temperature: float) -> dict[str, float]:
    """Shares of replies that are right, per task, and how well styles are followed."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM.from_pretrained(folder).eval()
    family = load_family(ModelConfig(path=folder))
    codec, recogniser = family.codec(), PocketsphinxRecogniser(DATA / "asr.arpa", DATA / "asr.dict")
    encoder = Encoder(family, codec)
    spoken = replies(model, [encoder.prompt(row) for row in rows], temperature, family.stop_ids[0])
    samples = [codec.decode(encoder.clip(f"bank/rms/{word}.flac")) for word in ("the", "is", "one")]
    normal = float(np.mean([level(sample) for sample in samples]))
    seen: dict[str, list[float]] = {}
    for row, reply in zip(rows, spoken, strict=True):
        parts = family.parse_reply(reply)
        wave = codec.decode(parts.codes)
        heard = recogniser.transcribe(wave, codec.sample_rate)
        right = float(meets(row["answer"], heard))
        followed = float(style_of(wave, parts.text, encoder, normal) == row["style"])
        for name, value in {
            "heard": right,
            f"heard/{row['task_type']}": right,
            "said": float(meets(row["answer"], parts.text)),
            "style": followed,
            f"style/{row['style']}": followed,
            "well_formed": float(parts.well_formed),
            "wer": min(1.0, word_error_rate(parts.text, heard)),
        }.items():
            seen.setdefault(name, []).append(value)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(seen.items())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(measure(options.folder, read_rows(options.split)[: options.rows], options.temperature))


if __name__ == "__main__":
    main()
