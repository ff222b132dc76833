"""Pitch: right for tones whose pitch is known, nothing for what has none, a number for every finite wave."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from judge.rules.pitch import _normalised_difference, measure_pitch, track_pitch
from tests.helpers.judge_builders import RATE, REPLIES, recorded

Wave = NDArray[np.float32]
RATES = (8_000, 16_000, 22_050, 24_000, 48_000)


def stack(hertz: float, rate: int, harmonics: range, seconds: float = 0.6) -> Wave:
    """Harmonics of a fundamental, each weaker than the one before, up to half the sample rate."""
    time = np.arange(round(seconds * rate)) / rate
    parts = [np.sin(2 * np.pi * hertz * k * time + k) / k for k in harmonics if hertz * k < rate / 2]
    return np.float32(0.2 * np.sum(parts, axis=0))


def noise(seconds: float, amplitude: float = 0.1, seed: int = 0) -> Wave:
    return np.float32(np.random.default_rng(seed).normal(0, amplitude, round(seconds * RATE)))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("harmonics", [range(1, 2), range(1, 9), range(2, 7)], ids=["sine", "voice", "no f0"])
@pytest.mark.parametrize("hertz", [65.0, 98.7, 146.8, 220.0, 331.0, 480.0])
def test_the_pitch_of_a_steady_sound_is_right_within_one_percent(hertz: float, harmonics: range, rate: int) -> None:
    found = measure_pitch(stack(hertz, rate, harmonics), rate)
    assert found.hertz == pytest.approx(hertz, rel=0.01)
    assert found.voiced > 0.9 and found.semitones < 0.2
    track = track_pitch(stack(hertz, rate, harmonics), rate)
    assert np.abs(track / hertz - 1).max() < 0.01


def test_the_range_of_a_glide_is_that_of_its_middle_nine_tenths() -> None:
    """An octave in three seconds: 12 semitones between the ends, 10.8 between the percentiles."""
    hertz = 150 * 2 ** (np.arange(3 * RATE) / (3 * RATE))
    found = measure_pitch(np.float32(0.3 * np.sin(2 * np.pi * np.cumsum(hertz) / RATE)), RATE)
    assert found.semitones == pytest.approx(10.8, abs=0.3)
    assert found.hertz == pytest.approx(150 * 2**0.5, rel=0.01)


def test_two_notes_are_as_far_apart_as_they_are() -> None:
    notes = [stack(hertz, RATE, range(1, 6)) for hertz in (110.0, 165.0)]
    assert measure_pitch(np.concatenate(notes), RATE).semitones == pytest.approx(12 * np.log2(1.5), abs=0.1)


def test_loudness_and_a_little_noise_do_not_change_the_pitch() -> None:
    voice = stack(130, RATE, range(1, 9))
    assert measure_pitch(voice / 50, RATE).hertz == pytest.approx(130, rel=0.01)
    assert measure_pitch(voice + noise(0.6, 0.005), RATE).hertz == pytest.approx(130, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_pitch(seed: int) -> None:
    assert measure_pitch(noise(3, seed=seed), RATE).voiced < 0.02


def test_the_voiced_share_is_one_of_the_speech_not_of_the_pauses() -> None:
    half = np.concatenate([stack(130, RATE, range(1, 9), 1.0), np.zeros(2 * RATE, np.float32), noise(1, 0.15)])
    assert measure_pitch(half, RATE).voiced == pytest.approx(0.5, abs=0.05)


def test_silence_and_what_is_too_short_have_none() -> None:
    for wave in (np.zeros(RATE, np.float32), np.zeros(0, np.float32), stack(130, RATE, range(1, 9), 0.03)):
        found = measure_pitch(wave, RATE)
        assert (found.hertz, found.semitones, found.voiced) == (None, 0, 0)


def test_the_difference_agrees_with_the_sums_of_the_paper() -> None:
    size, window = 200, 80
    frames = np.random.default_rng(0).normal(0, 1, (3, size))
    fast = _normalised_difference(frames, window)
    for frame, curve in zip(frames, fast, strict=True):
        plain = [sum((frame[t] - frame[t + lag]) ** 2 for t in range(window)) for lag in range(size - window)]
        for lag in range(1, size - window):
            assert curve[lag] == pytest.approx(plain[lag] * lag / sum(plain[1 : lag + 1]))


@given(
    st.integers(0, 9_000),
    st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 1e30]),
    st.sampled_from([1, 90, 700, 8_000, 48_000]),
)
def test_every_finite_wave_gets_finite_numbers(samples: int, amplitude: float, rate: int) -> None:
    wave = (amplitude * np.random.default_rng(samples).uniform(-1, 1, samples)).astype(np.float32)
    found = measure_pitch(wave, rate)
    assert np.isfinite([found.semitones, found.voiced]).all() and found.semitones >= 0
    assert 0 <= found.voiced <= 1 and (found.hertz is None or np.isfinite(found.hertz))


def test_a_recorded_voice_has_a_pitch_and_melody() -> None:
    for text in REPLIES:
        found = measure_pitch(recorded(text), RATE)
        assert found.voiced > 0.3 and 2 < found.semitones < 15
