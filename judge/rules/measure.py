"""What can be measured on a waveform: level, rate, pauses, clipping, loops.

Pure functions of (wave, rate): mono samples, samples per second. Each is defined for every finite wave,
silence and the empty wave included, and none ever returns NaN or infinity. None sees a word of text.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks

MonoWave = NDArray[np.float32]
FrameValues = NDArray[np.float64]

FRAME_S = 0.02  # seconds
MIN_LEVEL_DBFS = -100.0  # dBFS reported for digital silence
SPEECH_RANGE_DB = 30.0  # dB below the loud frames that still counts as speech
SPEECH_FLOOR_DBFS = -60.0  # dBFS below which nothing is speech, however quiet the rest
FULL_SCALE = 0.99
SYLLABLE_DIP_DB = 3.0  # dB between two syllables
MIN_SYLLABLE_GAP_S = 0.09  # seconds, shortest distance of two nuclei
MIN_LOOP_S = 1.0  # seconds


def measure_frame_levels(wave: MonoWave, rate: int) -> FrameValues:
    """RMS of each 20 ms frame in dBFS, at least ``MIN_LEVEL_DBFS``; a started frame counts."""
    size = max(1, round(FRAME_S * rate))
    padded = np.pad(np.asarray(wave, np.float64), (0, -len(wave) % size))
    power = np.square(padded.reshape(-1, size)).mean(axis=1)
    return np.asarray(10 * np.log10(np.maximum(power, 10 ** (MIN_LEVEL_DBFS / 10))), np.float64)


def find_speech_frames(levels: FrameValues) -> NDArray[np.bool_]:
    """Which frames are speech: within ``SPEECH_RANGE_DB`` dB of the loud ones and above ``SPEECH_FLOOR_DBFS``."""
    if not len(levels):
        return np.zeros(0, bool)
    return np.asarray(levels > max(SPEECH_FLOOR_DBFS, float(np.percentile(levels, 95)) - SPEECH_RANGE_DB))


def measure_speech_level(wave: MonoWave, rate: int) -> float:
    """Level of the speech itself in dBFS: pauses do not make a voice quieter."""
    levels = measure_frame_levels(wave, rate)
    speech_levels = levels[find_speech_frames(levels)]
    return float(10 * np.log10(np.mean(10 ** (speech_levels / 10)))) if len(speech_levels) else MIN_LEVEL_DBFS


def silence_share(wave: MonoWave, rate: int) -> float:
    """Share of the time without speech, 0..1; an empty wave is all silence."""
    is_speech = find_speech_frames(measure_frame_levels(wave, rate))
    return float(1 - is_speech.mean()) if len(is_speech) else 1.0


def longest_pause(wave: MonoWave, rate: int) -> float:
    """Longest stretch without speech in seconds, beginning and end included."""
    is_speech = np.flatnonzero(np.pad(find_speech_frames(measure_frame_levels(wave, rate)), 1, constant_values=True))
    return float((np.diff(is_speech).max() - 1) * FRAME_S)


def clipping_share(wave: MonoWave) -> float:
    """Share of samples at or beyond full scale, 0..1."""
    return float((np.abs(wave) >= FULL_SCALE).mean()) if len(wave) else 0.0


def syllable_rate(wave: MonoWave, rate: int) -> float:
    """Syllable nuclei (intensity peaks with a dip between them) per second of speech; 0 in silence."""
    hop = max(1, round(0.01 * rate))
    window = np.hanning(round(0.064 * rate) + 2)[1:-1]
    if len(wave) < len(window):
        return 0.0
    power = np.convolve(np.square(np.asarray(wave, np.float64)), window / window.sum(), "same")[::hop]
    curve = 10 * np.log10(np.maximum(power, 10 ** (MIN_LEVEL_DBFS / 10)))
    is_speech = find_speech_frames(curve)
    if not is_speech.any():
        return 0.0
    peaks, _ = find_peaks(curve, prominence=SYLLABLE_DIP_DB, distance=max(1, round(MIN_SYLLABLE_GAP_S / 0.01)))
    return float(is_speech[peaks].sum() / (is_speech.sum() * 0.01))


def measure_self_similarity(wave: MonoWave, rate: int) -> float:
    """How much the wave repeats itself, 0..1: best self-correlation of its log spectrum at lags from 1 s.

    A sound that stands still is a loop too. At least a second and a third of the wave must overlap itself.
    """
    bands = _band_energies(wave, rate)
    shortest = round(MIN_LOOP_S / FRAME_S)
    longest = len(bands) - max(shortest, len(bands) // 3)
    if longest < shortest:
        return 0.0
    centred = bands - bands.mean(axis=0)
    energy = np.square(centred).sum(axis=1)
    if energy.mean() < 1e-3 * bands.shape[1]:
        return 1.0 if find_speech_frames(measure_frame_levels(wave, rate)).any() else 0.0
    spectrum = np.fft.rfft(centred, 2 * len(centred), axis=0)
    matching = np.fft.irfft(np.square(np.abs(spectrum)), axis=0).sum(axis=1)[shortest : longest + 1]
    total = np.concatenate([[0.0], np.cumsum(energy)])
    lags = np.arange(shortest, longest + 1)
    norm = np.sqrt((total[-1] - total[lags]) * total[len(centred) - lags])
    return float(np.clip((matching / np.maximum(norm, 1e-9)).max(), 0.0, 1.0))


def _band_energies(wave: MonoWave, rate: int, count: int = 20) -> FrameValues:
    """Log energy in ``count`` bands, evenly wide on a mel-like scale, per 20 ms frame."""
    hop = max(1, round(FRAME_S * rate))
    size = 2 * hop
    if len(wave) < size:
        return np.zeros((0, count))
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float64), size)[::hop]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size))))
    hertz = np.fft.rfftfreq(size, 1 / rate)
    mel = np.log1p(hertz / 700)
    edges = np.linspace(0, mel[-1], count + 1)
    member = np.clip(np.searchsorted(edges, mel, side="right") - 1, 0, count - 1)
    summed = np.stack([power[:, member == band].sum(axis=1) for band in range(count)], axis=1)
    return np.asarray(np.log(summed + 1e-4), np.float64)
