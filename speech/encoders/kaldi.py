"""Log-mel filter banks as Kaldi computes them (by transformers), and what SenseVoice makes of them.

    wave -> 25 ms frames every 10 ms -> 80 log energies -> 7 frames side by side, every 6th

No dither: the same wave gives the same numbers. (Kaldi's default adds noise of one 16-bit step.)
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

Float32Array = NDArray[np.float32]

FBANK_SAMPLE_RATE = 16_000
FBANK_FRAME_SAMPLES, FBANK_SHIFT_SAMPLES, FBANK_FFT_SIZE, FBANK_BANDS = 400, 160, 512, 80
STACKED_FRAMES, LOW_RATE_STRIDE = 7, 6  # low frame rate: frames in one, frames from one to the next


def count_low_rate_frames(samples: int) -> int:
    """Low-rate frames of so many samples. ValueError: not even one frame."""
    if samples < FBANK_FRAME_SAMPLES:
        raise ValueError(
            f"audio must last at least {1000 * FBANK_FRAME_SAMPLES / FBANK_SAMPLE_RATE:g} ms: got {samples} samples"
        )
    return -(-(1 + (samples - FBANK_FRAME_SAMPLES) // FBANK_SHIFT_SAMPLES) // LOW_RATE_STRIDE)


def compute_fbank(wave: Float32Array) -> Float32Array:
    """[frames, 80]: log of the mel energies; whole frames only. ``wave`` in [-1, 1], read as 16-bit steps."""
    log_mel = spectrogram(
        wave * 32768,
        window_function(FBANK_FRAME_SAMPLES, "hamming", periodic=False),
        FBANK_FRAME_SAMPLES,
        FBANK_SHIFT_SAMPLES,
        FBANK_FFT_SIZE,
        power=2.0,
        center=False,
        preemphasis=0.97,
        remove_dc_offset=True,
        mel_filters=_build_fbank_filters(),
        mel_floor=float(np.finfo(np.float32).eps),
        log_mel="log",
    )
    return np.asarray(log_mel.T, np.float32)


def stack_low_rate_frames(features: Float32Array) -> Float32Array:
    """[frames / 6, 7 * 80]: frame 6 i with its three neighbours on either side; the ends are repeated."""
    middle = LOW_RATE_STRIDE * np.arange(-(-len(features) // LOW_RATE_STRIDE))
    around = middle[:, None] + np.arange(STACKED_FRAMES) - STACKED_FRAMES // 2
    return np.asarray(features[around.clip(0, len(features) - 1)].reshape(len(middle), -1), np.float32)


def read_shift_and_scale(file: Path) -> tuple[Float32Array, Float32Array]:
    """The two vectors of an am.mvn (Kaldi's text form). ValueError: not such a file."""
    if not file.is_file():
        raise ValueError(f"{file}: the folder of the audio encoder must hold this file (model.ear)")
    vectors = []
    for name in ("AddShift", "Rescale"):
        _, _, behind = file.read_text(encoding="utf-8", errors="replace").partition(f"<{name}>")
        listed, closed, _ = behind.partition("[")[2].partition("]")
        try:
            values = np.array([float(number) for number in listed.split()] if closed else [], np.float32)
        except ValueError:
            values = np.zeros(0, np.float32)
        if len(values) != STACKED_FRAMES * FBANK_BANDS or not np.isfinite(values).all():
            raise ValueError(f"{file}: <{name}> must hold {STACKED_FRAMES * FBANK_BANDS} numbers: got {len(values)}")
        vectors.append(values)
    return vectors[0], vectors[1]


@cache
def _build_fbank_filters() -> NDArray[np.float64]:
    """[257, 80]: triangles on Kaldi's mel scale, from 20 Hz to half the sample rate."""
    bins, highest = FBANK_FFT_SIZE // 2 + 1, FBANK_SAMPLE_RATE / 2
    scale: dict[str, Any] = {"mel_scale": "kaldi", "triangularize_in_mel_space": True}
    return np.asarray(mel_filter_bank(bins, FBANK_BANDS, 20.0, highest, FBANK_SAMPLE_RATE, **scale), np.float64)
