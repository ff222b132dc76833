"""What the system asks of a codec: speech as one stream of codes, and back.

The codecs are in speech/codecs; ``speech.codecs.load_codec`` finds the one of a folder.
Invariant: ``encode`` takes a wave at ``input_sample_rate`` and gives ``ceil(seconds * frame_rate)`` codes; ``decode``
gives one at ``sample_rate``, which is another rate where the two halves were trained apart.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from speech.sound.audio import Wave


class Codec(Protocol):
    """Turns mono float32 waves in [-1, 1] into codes in [0, size) and back.

    Example:
        codes = codec.encode(audio.read(file, codec.input_sample_rate, max_seconds))
        audio.write(other, codec.decode(codes), codec.sample_rate)
    """

    input_sample_rate: int  # Hz of the waves that it encodes
    sample_rate: int  # Hz of the waves that it decodes to
    frame_rate: float  # codes per second
    size: int  # number of codes

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; two codecs with the same give the same codes and the same sound."""
        ...

    def encode(self, wave: Wave) -> list[int]:
        """The codes of a wave at ``input_sample_rate``; a started code counts."""
        ...

    def decode(self, codes: Sequence[int]) -> Wave:
        """The wave of some codes, at ``sample_rate``; no codes, an empty wave."""
        ...


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
