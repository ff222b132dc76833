"""Log-mel filter banks as Kaldi computes them, and what SenseVoice makes of them.

    wave -> 25 ms frames every 10 ms -> 80 log energies -> 7 frames side by side, every 6th

No dither: the same wave gives the same numbers. (Kaldi's default adds noise of one 16-bit step.)
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SAMPLE_RATE = 16_000
FRAME, SHIFT, FFT, MELS = 400, 160, 512, 80
LOWEST = 20.0  # Hz
PREEMPHASIS = 0.97
SMALLEST = np.finfo(np.float32).eps
WIDE, EVERY = 7, 6  # low frame rate: frames in one, frames from one to the next


def frames_of(samples: int) -> int:
    """Low-rate frames of so many samples. ValueError: not even one frame."""
    if samples < FRAME:
        raise ValueError(f"audio must last at least {1000 * FRAME / SAMPLE_RATE:g} ms: got {samples} samples")
    return -(-(1 + (samples - FRAME) // SHIFT) // EVERY)


def fbank(wave: Floats) -> Floats:
    """[frames, 80]: log of the mel energies; whole frames only. ``wave`` in [-1, 1], read as 16-bit steps."""
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64) * 32768, FRAME)[::SHIFT]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - PREEMPHASIS * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hamming(FRAME), FFT)) ** 2
    return np.asarray(np.log(np.maximum(power @ _filters().T, SMALLEST)), np.float32)


def low_rate(features: Floats) -> Floats:
    """[frames / 6, 7 * 80]: frame 6 i with its three neighbours on either side; the ends are repeated."""
    middle = EVERY * np.arange(-(-len(features) // EVERY))
    around = middle[:, None] + np.arange(WIDE) - WIDE // 2
    return np.asarray(features[around.clip(0, len(features) - 1)].reshape(len(middle), -1), np.float32)


def read_shift_and_scale(file: Path) -> tuple[Floats, Floats]:
    """The two vectors of an am.mvn (Kaldi's text form). ValueError: not such a file."""
    if not file.is_file():
        raise ValueError(f"{file}: the folder of the audio encoder must hold this file (model.ear)")
    found = []
    for name in ("AddShift", "Rescale"):
        _, _, behind = file.read_text(encoding="utf-8", errors="replace").partition(f"<{name}>")
        listed, closed, _ = behind.partition("[")[2].partition("]")
        try:
            values = np.array([float(one) for one in listed.split()] if closed else [], np.float32)
        except ValueError:
            values = np.zeros(0, np.float32)
        if len(values) != WIDE * MELS or not np.isfinite(values).all():
            raise ValueError(f"{file}: <{name}> must hold {WIDE * MELS} numbers: got {len(values)}")
        found.append(values)
    return found[0], found[1]


@cache
def _filters() -> NDArray[np.float64]:
    """Triangles on the mel scale from 20 Hz to half the sample rate; the last bin belongs to none."""
    low, high, bins = (_mel(f) for f in (LOWEST, SAMPLE_RATE / 2, np.arange(FFT // 2) * SAMPLE_RATE / FFT))
    step = (high - low) / (MELS + 1)
    left = low + step * np.arange(MELS)[:, None]
    rise, fall = (bins - left) / step, (left + 2 * step - bins) / step
    return np.pad(np.maximum(0, np.minimum(rise, fall)), ((0, 0), (0, 1)))


def _mel(hertz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    return np.asarray(1127 * np.log(1 + np.asarray(hertz) / 700))
