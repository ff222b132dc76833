"""What the system asks of a codec: speech as one stream of codes, and back.

The codecs are in speech/codecs; ``speech.codecs.load_codec`` finds the one of a folder.
Invariant: ``encode`` gives ``ceil(seconds * frame_rate)`` codes; ``decode`` gives a wave at ``sample_rate``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from speech import audio
from speech.audio import Wave


class Codec(Protocol):
    """Turns mono float32 waves in [-1, 1] into codes in [0, size) and back."""

    sample_rate: int
    frame_rate: float  # codes per second
    size: int  # number of codes

    def encode(self, wave: Wave) -> list[int]:
        """The codes of a wave; a started code counts."""
        ...

    def decode(self, codes: Sequence[int]) -> Wave:
        """The wave of some codes; no codes, an empty wave."""
        ...


@runtime_checkable
class Fingerprinted(Protocol):
    """A codec that came from files. Two with one fingerprint give the same codes and the same sound."""

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits."""
        ...


@runtime_checkable
class TwoRates(Codec, Protocol):
    """A codec whose encoder was trained at another rate than its decoder speaks at.

    ``encode`` resamples; whoever has the file reads it at ``ear_rate`` and saves that (``codes_of_file``).
    """

    ear_rate: int  # Hz

    def hear(self, wave: Wave) -> list[int]:
        """The codes of a wave at ``ear_rate``; a started code counts."""
        ...


def ear_rate_of(codec: Codec) -> int:
    """The rate at which clips are best read for this codec."""
    return codec.ear_rate if isinstance(codec, TwoRates) else codec.sample_rate


def codes_of_file(codec: Codec, path: Path, max_seconds: float) -> list[int]:
    """The codes of an audio file. ValueError: what ``speech.audio.read`` refuses."""
    wave = audio.read(path, ear_rate_of(codec), max_seconds)
    return codec.hear(wave) if isinstance(codec, TwoRates) else codec.encode(wave)


def check_wave(wave: Wave) -> None:
    """ValueError: not mono, or not finite."""
    if wave.ndim != 1:
        raise ValueError(f"wave must be mono (one dimension), got shape {wave.shape}")
    if not np.isfinite(wave).all():
        raise ValueError("wave must be finite, got NaN or infinity")


def check_codes(codes: Sequence[int], size: int) -> npt.NDArray[np.int64]:
    """The codes as an array. ValueError: one is not in [0, size)."""
    chosen = np.asarray(codes, np.int64)
    wrong = chosen[(chosen < 0) | (chosen >= size)]
    if len(wrong):
        raise ValueError(f"code must be in [0, {size}), got {wrong[0]}")
    return chosen
