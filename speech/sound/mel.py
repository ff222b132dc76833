"""From waveform to log-mel frames and back; numpy only, float32 out, the same result every time.

Frames are centred on the middle of 10 ms hops and the signal is taken as zero outside: the frames of a clip
that starts and ends with 20 ms of silence do not depend on what is played before or after it. Levels are
never normalised: loud stays loud.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, rfft

FloatArray = npt.NDArray[np.float32]

MEL_SAMPLE_RATE = 16_000
MEL_HOP = 160
MEL_WINDOW = 400
MEL_FFT_SIZE = 512
MEL_BANDS = 80
MEL_FLOOR = 1e-2  # mel magnitude taken as silence
_LEAD = (MEL_WINDOW - MEL_HOP) // 2  # a frame starts this many samples before its hop


@cache
def _build_hann_window() -> FloatArray:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(MEL_WINDOW) / MEL_WINDOW), np.float32)


@cache
def build_mel_filters() -> FloatArray:
    """Triangular filters, MELS x bins, evenly spaced on the mel scale from 50 to 7600 Hz."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (50.0, 7600.0))
    edges = 700 * (10 ** (np.linspace(low, high, MEL_BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, MEL_SAMPLE_RATE / 2, MEL_FFT_SIZE // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall))
    nearest = np.abs(bins - edges[1:-1, None]).argmin(axis=1)
    filters[np.arange(MEL_BANDS), nearest] = np.maximum(filters[np.arange(MEL_BANDS), nearest], 0.3)  # no empty filter
    return np.asarray(filters, np.float32)


def compute_log_mel(wave: FloatArray) -> FloatArray:
    """Log-mel magnitudes, one row per started hop."""
    hops = -(-len(wave) // MEL_HOP)
    return np.asarray(
        np.log(np.maximum(np.abs(_compute_spectra(wave, hops)) @ build_mel_filters().T, MEL_FLOOR)), np.float32
    )


def log_mel_to_magnitudes(mel: FloatArray, rounds: int = 15) -> FloatArray:
    """Linear magnitudes whose mel is ``exp(mel)``: multiplicative non-negative refinement, frame by frame."""
    target = np.exp(mel)
    target = np.where(target <= MEL_FLOOR * 1.2, np.float32(0), target)
    filters = build_mel_filters()
    linear = np.maximum(target @ np.linalg.pinv(filters).T, np.float32(1e-5))
    wanted = target @ filters
    for _ in range(rounds):
        linear *= wanted / np.maximum(linear @ filters.T @ filters, np.float32(1e-8))
    return np.asarray(linear, np.float32)


def invert_magnitudes(linear: FloatArray, iterations: int = 12, momentum: float = 0.9) -> FloatArray:
    """A waveform of HOP samples per frame with these magnitudes; phases start from a fixed seed."""
    hops = len(linear)
    start = np.random.default_rng(0).random(linear.shape, np.float32) * np.float32(2 * np.pi)
    spectra = linear * np.exp(1j * start).astype(np.complex64)
    previous = np.zeros_like(spectra)
    for _ in range(iterations):
        rebuilt = _compute_spectra(_overlap_add(spectra, hops), hops)
        pushed = rebuilt - np.float32(momentum / (1 + momentum)) * previous
        previous = rebuilt
        spectra = pushed * (linear / np.maximum(np.abs(pushed), np.float32(1e-9)))
    return _overlap_add(spectra, hops)


def _compute_spectra(wave: FloatArray, hops: int) -> npt.NDArray[np.complex64]:
    padded = np.zeros(_LEAD + hops * MEL_HOP + MEL_WINDOW, np.float32)
    padded[_LEAD : _LEAD + len(wave)] = wave
    frames = np.lib.stride_tricks.sliding_window_view(padded, MEL_WINDOW)[: hops * MEL_HOP : MEL_HOP]
    return np.asarray(rfft(frames * _build_hann_window(), n=MEL_FFT_SIZE, axis=1), np.complex64)


def _overlap_add(spectra: npt.NDArray[np.complex64], hops: int) -> FloatArray:
    """Windowed overlap-add, the least-squares inverse of ``_compute_spectra``."""
    rows = -(-MEL_WINDOW // MEL_HOP)
    frames = np.zeros((hops, rows * MEL_HOP), np.float32)
    frames[:, :MEL_WINDOW] = irfft(spectra, n=MEL_FFT_SIZE, axis=1)[:, :MEL_WINDOW] * _build_hann_window()
    energy = np.zeros(rows * MEL_HOP, np.float32)
    energy[:MEL_WINDOW] = _build_hann_window() ** 2
    total, weight = np.zeros((2, hops + rows - 1, MEL_HOP), np.float32)
    for row in range(rows):
        part = slice(row * MEL_HOP, (row + 1) * MEL_HOP)
        total[row : row + hops] += frames[:, part]
        weight[row : row + hops] += energy[part]
    flat = (total / np.maximum(weight, 1e-3)).reshape(-1)
    return np.asarray(flat[_LEAD : _LEAD + hops * MEL_HOP], np.float32)
