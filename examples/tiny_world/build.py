"""Builds the tiny world's data from nothing: word bank, codec, manifests, the recogniser's language.

    python -m examples.tiny_world.build

Deterministic: a second run writes the same bytes. Only the word bank needs flite.
"""

import json
from pathlib import Path
from random import Random
from typing import Any

import soundfile

from examples.tiny_world.language import bigram_arpa, dictionary_of
from examples.tiny_world.speak import REPLY_MANNERS, USER_MANNERS, USER_VOICES, render, write_clip
from examples.tiny_world.splits import split
from examples.tiny_world.tasks import Prompt
from examples.tiny_world.words import REPLY_WORDS, VOCABULARY
from speech.codecs.mel import MelCodec

HERE = Path(__file__).parent
DATA = HERE / "data"
BASE = HERE / "base"
CODES = 1024
REPLY_WEIGHT = 3  # times a reply clip counts when the codebook is fitted: it has to be listened to
WRITTEN_SHARE = 0.1  # of training questions that are written, not spoken


def build_bank(data: Path) -> None:
    """Speak every reply word in three styles and every word in the users' voices."""
    plan = [(manner, REPLY_WORDS) for manner in REPLY_MANNERS.values()]
    plan += [(manner, VOCABULARY) for manner in USER_MANNERS]
    for manner, words in plan:
        for word in words:
            write_clip(data / "bank" / manner.name / f"{word}.flac", render(word, manner))


def fit_codec(data: Path, codes: int = CODES) -> MelCodec:
    """Fit the codebook on every clip of the bank."""
    waves = []
    for manner in (*REPLY_MANNERS.values(), *USER_MANNERS):
        weight = 1 if manner in USER_MANNERS else REPLY_WEIGHT
        for path in sorted((data / "bank" / manner.name).glob("*.flac")):
            waves += [soundfile.read(path, dtype="float32")[0]] * weight
    return MelCodec.fit(waves, size=codes, seed=0)


def row(name: str, prompt: Prompt, voice: str | None) -> dict[str, Any]:
    """One manifest row; no voice means a written question."""
    folder = REPLY_MANNERS[prompt.style].name
    spoken = [] if voice is None else [[f"bank/{voice}/{word}.flac" for word in prompt.question.split()]]
    return {
        "id": name,
        "messages": [{"role": "user", "content": "<|audio|>" if voice else prompt.question}],
        "audios": spoken,
        "question_text": prompt.question,
        "task_type": prompt.item.task,
        "answer": {"match": prompt.item.match, "value": prompt.item.value},
        "style": prompt.style,
        "sft_target_text": prompt.item.reply,
        "sft_target_audio": [f"bank/{folder}/{word}.flac" for word in prompt.item.reply.split()],
    }


def write_manifests(data: Path) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl."""
    random = Random(1)
    for name, prompts in split().items():
        lines = []
        for number, prompt in enumerate(prompts):
            voice = random.choice(USER_VOICES)
            written = name == "train" and random.random() < WRITTEN_SHARE
            lines.append(json.dumps(row(f"{name}-{number:06d}", prompt, None if written else voice)))
        (data / f"{name}.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_language(data: Path) -> None:
    """Write the recogniser's language model (training replies only) and dictionary."""
    import pocketsphinx

    replies = [prompt.item.reply for prompt in split()["train"]]
    (data / "asr.arpa").write_text(bigram_arpa(replies, REPLY_WORDS), encoding="utf-8")
    lexicon = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    with lexicon.open(encoding="utf-8") as lines:
        (data / "asr.dict").write_text(dictionary_of(REPLY_WORDS, lines), encoding="utf-8")


def main() -> None:
    """Build everything but the base model's weights."""
    DATA.mkdir(parents=True, exist_ok=True)
    BASE.mkdir(parents=True, exist_ok=True)
    try:
        build_bank(DATA)
    except RuntimeError as problem:
        raise SystemExit(f"tiny world: {problem}") from problem
    write_manifests(DATA)
    write_language(DATA)
    codec = fit_codec(DATA)
    codec.save(BASE / "codec.safetensors")
    print(f"data in {DATA}, codec with {codec.size} codes in {BASE}")


if __name__ == "__main__":
    main()
