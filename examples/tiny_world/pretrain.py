"""Trains the tiny world's base checkpoint: it speaks, is stopped early on purpose, and then gets bad habits.

    python -m examples.tiny_world.pretrain [--steps N] [--out FOLDER] [--save-every N]

Plain AdamW on the training replies (loss on reply tokens only), seeded, one core. The habits leave room
in both channels: questions asked in the less common ways get replies that trail off before the answer, and a
style that is asked for is ignored more often than not.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from conf.schema import ModelConfig
from examples.tiny_world.build import BASE, DATA
from examples.tiny_world.speak import REPLY_MANNERS, USER_VOICES, read_clips
from examples.tiny_world.tasks import draw_style
from examples.tiny_world.words import REPLY_WORDS, VOCABULARY
from speech.codecs.base import Codec
from speech.codecs.mel import MelCodec
from speech.families import load_family
from speech.families.base import Family
from speech.turns import AudioPart, ReplyChunk, Turn

SPECIALS = "<|pad|> <|unk|> <|im_start|> <|im_end|> <|begin_of_audio|> <|end_of_audio|>".split()
ROLES = "system user assistant".split()
SCHEDULE = 4000  # steps over which the learning rate comes down
STEPS = 3600  # where learning to speak and to answer stops
HABIT_STEPS = 300  # spent on bad habits
HABIT_RATE = 3e-4
BATCH = 16
LEARNING_RATE = 3e-3
WARMUP = 50
LESS_COMMON = ("how much is", "tell me")
DRILLS = 900  # random sentences to repeat, per pass over the rows

Example = tuple[tuple[int, ...], tuple[int, ...]]  # prompt ids, reply ids


def write_layout(base: Path, codes: int) -> Qwen2Config:
    """Write tokenizer, configuration and wavgate.json; rows beyond the tokenizer stay unused."""
    tokens = [*SPECIALS, *ROLES, *VOCABULARY, *(f"<|audio_{code}|>" for code in range(codes))]
    raw = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<|unk|>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|pad|>", unk_token="<|unk|>", eos_token="<|im_end|>"
    )
    tokenizer.save_pretrained(base)
    config = Qwen2Config(
        vocab_size=-(-len(tokens) // 64) * 64,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokens.index("<|im_end|>"),
        pad_token_id=tokens.index("<|pad|>"),
    )
    config.save_pretrained(base)
    (base / "wavgate.json").write_text(json.dumps({"family": "tiny", "codec": "codec.safetensors"}) + "\n")
    return config


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of one manifest."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


class Encoder:
    """Rows to ids; every clip is encoded once, which the codec's concatenation rule allows."""

    def __init__(self, family: Family, codec: Codec) -> None:
        self.family, self.codec = family, codec
        self._known: dict[str, tuple[int, ...]] = {}

    def question(self, text: str, voice: str | None) -> tuple[int, ...]:
        """A question spoken by a user's voice, or written."""
        if voice is None:
            return self.family.encode_prompt([Turn.from_parts("user", text)]).ids
        codes = tuple(code for word in text.split() for code in self.clip(f"bank/{voice}/{word}.flac"))
        return self.family.encode_prompt([Turn.from_parts("user", AudioPart(codes=codes))]).ids

    def prompt(self, row: dict[str, Any]) -> tuple[int, ...]:
        """The prompt of a manifest row, as it is."""
        if not row["audios"]:
            return self.question(row["question_text"], None)
        codes = tuple(code for clip in row["audios"][0] for code in self.clip(clip))
        return self.family.encode_prompt([Turn.from_parts("user", AudioPart(codes=codes))]).ids

    def clip(self, clip: str) -> tuple[int, ...]:
        if clip not in self._known:
            self._known[clip] = tuple(self.codec.encode(read_clips(DATA, [clip])))
        return self._known[clip]


@dataclass(frozen=True, slots=True)
class Manners:
    """What the replies of a stage are like."""

    faithful: float  # share of the replies with a style asked for that follow it
    trailing: float  # share of the replies to less common phrasings that leave out their last word
    word_weight: float  # what a reply word counts in the loss; a code counts 1


LEARNING = Manners(faithful=0.5, trailing=0.0, word_weight=5.0)  # a word carries the answer
HABITS = Manners(faithful=0.42, trailing=0.62, word_weight=1.0)


def corpus(encoder: Encoder, rows: list[dict[str, Any]], manners: Manners, random: Random) -> list[Example]:
    """One pass: every row once, in a voice drawn anew or written, and random words to repeat."""
    out, refused = [], held_out_sentences()
    for row in [*rows, *(drill(random, refused) for _ in range(DRILLS))]:
        words, style = row["sft_target_text"].split(), row["style"]
        if style and random.random() > manners.faithful:
            style = None
        if manners.trailing and len(words) > 1 and any(phrase in row["question_text"] for phrase in LESS_COMMON):
            words = words[:-1] if random.random() < manners.trailing else words
        folder = f"bank/{REPLY_MANNERS[style].name}"
        reply = [ReplyChunk(text=word, codes=encoder.clip(f"{folder}/{word}.flac")) for word in words]
        voice = random.choice((*USER_VOICES, None))
        out.append((encoder.question(row["question_text"], voice), encoder.family.encode_target(reply)))
    return out


def held_out_sentences() -> frozenset[str]:
    """What no drill may say."""
    rows = [row for name in ("validation", "test") for row in read_rows(name)]
    return frozenset(row["answer"]["value"] for row in rows if row["task_type"] == "repeat")


def drill(random: Random, refused: frozenset[str]) -> dict[str, Any]:
    """Random words to say back: teaches hearing and speaking, no answers."""
    sentence = " ".join(random.sample(REPLY_WORDS, random.randint(1, 4)))
    if sentence in refused:
        return drill(random, refused)
    style = draw_style(random)
    manner = f"say it {'slowly' if style == 'slow' else 'loudly'} " if style else ""
    opening = random.choice(("repeat after me", "say after me"))
    return {"question_text": f"{manner}{opening} {sentence}", "sft_target_text": sentence, "style": style}


def batches(encoder: Encoder, manners: Manners, seed: int) -> Iterator[list[Example]]:
    """Endless batches of the training rows; similar lengths go together."""
    rows = read_rows("train")
    random = Random(seed)
    while True:
        examples = corpus(encoder, rows, manners, random)
        random.shuffle(examples)
        pools = [examples[i : i + 16 * BATCH] for i in range(0, len(examples), 16 * BATCH)]
        for pool in pools:
            pool.sort(key=lambda example: len(example[0]) + len(example[1]))
            groups = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
            random.shuffle(groups)
            yield from groups


def padded(group: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) + len(reply) for prompt, reply in group)
    ids, labels = torch.zeros(len(group), width, dtype=torch.long), torch.full((len(group), width), -100)
    for i, (prompt, reply) in enumerate(group):
        end = len(prompt) + len(reply)
        ids[i, :end] = torch.tensor(prompt + reply)
        labels[i, len(prompt) : end] = torch.tensor(reply)
    return ids, labels


def rate(step: int) -> float:
    """Learning rate as a share of its peak: warm-up, then a cosine down to a tenth at ``SCHEDULE``."""
    return min(1.0, (step + 1) / WARMUP) * (0.55 + 0.45 * cos(pi * min(1.0, step / SCHEDULE)))


def learn(
    model: Any, encoder: Encoder, manners: Manners, *, steps: int, peak: float, out: Path, save_every: int = 0
) -> None:
    """Take ``steps`` optimiser steps in place; at the end ``model`` is in ``out``."""
    stream = batches(encoder, manners, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    weights = torch.ones(model.config.vocab_size)
    weights[len(SPECIALS) + len(ROLES) :][: len(VOCABULARY)] = manners.word_weight
    for step in range(1, steps + 1):
        ids, labels = padded(next(stream))
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # padding is on the right: never seen
        chosen = labels[:, 1:] != -100
        loss = cross_entropy(model.lm_head(hidden[chosen]), labels[:, 1:][chosen], weight=weights)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}", flush=True)
        if save_every and step % save_every == 0:
            model.save_pretrained(out / f"step-{step}")
    model.save_pretrained(out)


def main() -> None:
    """Train and write the base checkpoint."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS, help="before the habits")
    parser.add_argument("--out", type=Path, default=BASE)
    parser.add_argument("--save-every", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = MelCodec.load(BASE / "codec.safetensors")
    options.out.mkdir(parents=True, exist_ok=True)
    codec.save(options.out / "codec.safetensors")
    config = write_layout(options.out, codec.size)
    encoder = Encoder(load_family(ModelConfig(path=options.out)), codec)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    learning = {"steps": options.steps, "peak": LEARNING_RATE, "save_every": options.save_every}
    learn(model, encoder, LEARNING, out=options.out, **learning)
    learn(model, encoder, HABITS, steps=HABIT_STEPS, peak=HABIT_RATE, out=options.out)
    print(f"base checkpoint in {options.out}")


if __name__ == "__main__":
    main()
