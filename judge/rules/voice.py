"""How a voice speaks when nothing is asked of it: what pace and level are measured against.

A checkpoint says it in the section ``voice`` of its wavgate.json; else a run measures it on the start
policy's own replies before its first step and keeps it in RUN/voice.json, which a resumed run and RUN/final
read again.
Invariant: nobody is held against another voice; where it is not known there are no norms.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from judge.rules import measure
from rollout.types import Speech
from speech.answers.words import split_spoken_words
from speech.checkpoints.folder import read_json
from store.files import write_atomically

VOICE_FILE = "voice.json"  # in a run's directory
MIN_VOICE_REPLIES = 8  # replies from which a voice is measured
MAX_VOICE_REPLIES = 32  # replies that a run samples for it
UNKNOWN_VOICE_REASON = (
    "how this voice speaks is not known: put it into the section voice of the checkpoint's wavgate.json "
    "(judge/rules/voice.py), or set judge.acoustic=0"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechNorms:
    """A voice, and how far a style departs from it."""

    seconds_per_word: float  # duration of a reply = words * this
    seconds_per_letter: float  # + letters * this: long words take longer
    level_dbfs: float
    slow_ratio: float = 1.345  # what "slow" means: duration when speaking slowly / normally
    loud_db: float = 8.5  # what "loud" means: level when speaking loudly - normally

    def seconds(self, text: str) -> float:
        """Expected duration of a text at normal pace. ValueError: no words."""
        words = split_spoken_words(text)
        if not words:
            raise ValueError(f"text must have words: got {text!r}")
        return self.seconds_per_word * len(words) + self.seconds_per_letter * sum(map(len, words))


TINY_VOICE_NORMS = SpeechNorms(seconds_per_word=0.248, seconds_per_letter=0.0625, level_dbfs=-25.0)
"""The shipped voice, measured on its decoded replies (a test repeats it): that of the family tiny alone."""


def find_voice_norms(model: Path, run: Path | None = None) -> SpeechNorms | None:
    """The norms of a checkpoint's voice: its own words, else those of the run that it began or came out of.

    None: not known. ValueError: an unknown name, or not a positive number (a level may be any finite one).
    """
    file = model / "wavgate.json"
    declared = read_json(file) if file.is_file() else {}
    if "voice" in declared:
        return parse_voice_norms(declared["voice"], file)
    if declared.get("family") == "tiny":
        return TINY_VOICE_NORMS
    for folder in (run, model.parent):
        if folder is not None and (folder / VOICE_FILE).is_file():
            return parse_voice_norms(read_json(folder / VOICE_FILE), folder / VOICE_FILE)
    return None


def parse_voice_norms(declared: Any, file: Path) -> SpeechNorms:
    """The norms in a file. ValueError: see ``find_voice_norms``."""
    names = [field.name for field in fields(SpeechNorms)]
    if not isinstance(declared, Mapping):
        raise ValueError(f"{file}: voice must be an object: got {declared!r}")
    for name, value in declared.items():
        fits = isinstance(value, int | float) and isfinite(value) and (value >= 0 or name == "level_dbfs")
        fits = fits and (value > 0 or name in ("seconds_per_word", "seconds_per_letter", "level_dbfs"))
        if name not in names or not fits:
            raise ValueError(f"{file}: voice has numbers named {', '.join(names)}: got {name}={value!r}")
    absent = [name for name in names[:3] if name not in declared]
    if absent or declared["seconds_per_word"] + declared["seconds_per_letter"] <= 0:
        lacking = absent[0] if absent else "a duration above 0"
        raise ValueError(f"{file}: voice must have {', '.join(names[:3])}: lacks {lacking}")
    return SpeechNorms(**declared)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceSample:
    """What one reply shows of a voice."""

    words: int
    letters: int
    seconds: float
    level_dbfs: float


def measure_voice_sample(text: str, speech: Speech) -> VoiceSample | None:
    """None: no words, or nothing said in the sound."""
    words = split_spoken_words(text)
    wave = speech.wave
    if not words or not len(wave) or not np.isfinite(wave).all():
        return None
    if not measure.find_speech_frames(measure.measure_frame_levels(wave, speech.sample_rate)).any():
        return None
    return VoiceSample(
        words=len(words),
        letters=sum(map(len, words)),
        seconds=speech.seconds,
        level_dbfs=measure.measure_speech_level(wave, speech.sample_rate),
    )


def fit_voice_norms(samples: Sequence[VoiceSample]) -> SpeechNorms | None:
    """The norms that these replies are closest to, each counted by its share of its duration.

    None: fewer than ``MIN_VOICE_REPLIES``.
    """
    if len(samples) < MIN_VOICE_REPLIES:
        return None
    shares = np.array([[sample.words / sample.seconds, sample.letters / sample.seconds] for sample in samples])
    (per_word, per_letter), _ = nnls(shares, np.ones(len(samples)))
    level = float(np.median([sample.level_dbfs for sample in samples]))
    return SpeechNorms(seconds_per_word=float(per_word), seconds_per_letter=float(per_letter), level_dbfs=level)


def save_voice_norms(norms: SpeechNorms, run: Path) -> None:
    """Into the run's directory, whole or not at all."""
    write_atomically(run / VOICE_FILE, json.dumps(asdict(norms), indent=1) + "\n")


NormsSource = Callable[[], SpeechNorms | None]  # None: not known yet, or not at all
