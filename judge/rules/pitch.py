"""The pitch of a voice: YIN (de Cheveigné & Kawahara 2002, JASA 111(4)), all frames of a stretch at once.

    d(lag)   sum over a window of (x[t] - x[t + lag])^2
    d'(lag)  d(lag) * lag / sum of d up to lag: 1 on average for noise, near 0 at a period

A frame is voiced when it is speech and d' falls below ``MAX_VOICED_DIFFERENCE``; its period is the first dip
below that,
made finer by a parabola. Defined for every finite wave; never NaN or infinite. About 2 ms a second of audio.

A codec that keeps only the envelope of a voice, as that of the embedded world does, leaves next to no pitch.
"""

from dataclasses import dataclass

import numpy as np

from judge.rules.measure import FRAME_S, FrameValues, MonoWave, find_speech_frames, measure_frame_levels

MIN_PITCH_HZ, MAX_PITCH_HZ = 60.0, 500.0  # Hz
PITCH_WINDOW_S = 0.025  # seconds that are compared
MAX_VOICED_DIFFERENCE = 0.2
FRAMES_AT_ONCE = 256  # frames, which bounds the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class PitchFigures:
    """Of a whole wave. ``semitones``: from the 5th to the 95th percentile of voiced frames, 0 without any."""

    hertz: float | None  # median; None: nothing is voiced
    semitones: float
    voiced: float  # share of the speech, 0..1; 0 in silence


def measure_pitch(wave: MonoWave, rate: int) -> PitchFigures:
    """Median, range and share of the voiced frames, 20 ms each."""
    track = track_pitch(wave, rate)
    heard = find_speech_frames(measure_frame_levels(wave, rate))[: len(track)]
    voiced = track[heard & (track > 0)]
    if not len(voiced):
        return PitchFigures(hertz=None, semitones=0.0, voiced=0.0)
    low, median, high = np.percentile(voiced, [5, 50, 95])
    share = len(voiced) / int(heard.sum())
    return PitchFigures(hertz=float(median), semitones=float(12 * np.log2(high / low)), voiced=share)


def track_pitch(wave: MonoWave, rate: int) -> FrameValues:
    """Hz of each 20 ms frame that a window fits behind; 0 where nothing repeats itself."""
    hop, window = max(1, round(FRAME_S * rate)), max(2, round(PITCH_WINDOW_S * rate))
    shortest, longest = max(2, int(rate / MAX_PITCH_HZ)), int(rate / MIN_PITCH_HZ) + 1
    size = window + longest + 1
    if len(wave) < size or longest <= shortest:
        return np.zeros(0)
    frames = np.lib.stride_tricks.sliding_window_view(np.asarray(wave, np.float64), size)[::hop]
    parts = [frames[start : start + FRAMES_AT_ONCE] for start in range(0, len(frames), FRAMES_AT_ONCE)]
    return np.concatenate(
        [_pitch_from_difference(_normalised_difference(part, window), shortest, rate) for part in parts]
    )


def _normalised_difference(frames: FrameValues, window: int) -> FrameValues:
    """d' of every frame at the lags 0, 1, ... (frames, lags)."""
    size = frames.shape[1]
    frames = frames / np.maximum(np.abs(frames).max(axis=1, keepdims=True), 1e-9)
    points = 1 << (size - 1).bit_length()
    lags = size - window
    spectrum = np.fft.rfft(frames, points) * np.conj(np.fft.rfft(frames[:, :window], points))
    product = np.fft.irfft(spectrum, points)[:, :lags]
    power = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    energy = power[:, window : window + lags] - power[:, :lags]
    difference = np.maximum(energy[:, :1] + energy - 2 * product, 0.0)
    running = np.cumsum(difference[:, 1:], axis=1)
    scaled = difference[:, 1:] * np.arange(1, lags) / np.maximum(running, 1e-9)
    return np.concatenate([np.ones((len(frames), 1)), scaled], axis=1)


def _pitch_from_difference(curves: FrameValues, shortest: int, rate: int) -> FrameValues:
    inner = curves[:, shortest:-1]
    dip = (
        (inner < MAX_VOICED_DIFFERENCE) & (inner <= curves[:, shortest - 1 : -2]) & (inner < curves[:, shortest + 1 :])
    )
    at = dip.argmax(axis=1) + shortest
    rows = np.arange(len(curves))
    left, middle, right = curves[rows, at - 1], curves[rows, at], curves[rows, at + 1]
    bend = left - 2 * middle + right
    shift = np.clip((left - right) / np.maximum(2 * bend, 1e-12), -0.5, 0.5)
    return np.where(np.any(dip, axis=1), rate / (at + shift), 0.0)
