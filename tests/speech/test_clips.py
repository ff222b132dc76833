"""Two clips are the same sound where their samples are but for rounding, and only there."""

from pathlib import Path

import numpy as np
import pytest

from speech.data.clips import ClipInfo, ClipInspector
from speech.sound import audio

RATE = 16_000


def tone(hz: float, level: float = 0.3) -> audio.Wave:
    return (level * np.sin(2 * np.pi * hz * np.arange(RATE // 10) / RATE)).astype(np.float32)


def noise(seed: int) -> audio.Wave:
    dice = np.random.default_rng(seed)
    wave = dice.normal(size=dice.integers(800, 30_000))
    return (wave / np.abs(wave).max() * 10 ** dice.uniform(-1.5, 0)).astype(np.float32)


def same(item: ClipInfo, other: ClipInfo) -> bool:
    assert item.sound is not None and other.sound is not None
    return item.sound[0] == other.sound[0] or item.sound[1] == other.sound[1]


def test_a_sound_is_the_same_in_the_two_ways_in_which_writers_round() -> None:
    for seed in range(200):
        ways = [np.round(noise(seed) * scale).clip(-32_768, 32_767) / 32_768 for scale in (32_767, 32_768)]
        one, other = (ClipInfo.from_wave(way.astype(np.float32), RATE) for way in ways)
        assert same(one, other)


def test_sounds_that_differ_a_little_more_are_others() -> None:
    heard = [ClipInfo.from_wave(tone(hz), RATE) for hz in range(200, 400)]
    heard += [ClipInfo.from_wave(tone(300, level), RATE) for level in (0.1, 0.2, 0.28)]
    heard += [
        ClipInfo.from_wave(tone(300), 8_000),
        ClipInfo.from_wave(tone(300)[:-1], RATE),
        ClipInfo.from_wave(-tone(300), RATE),
    ]
    for grid in (0, 1):
        assert len({clip.sound[grid] for clip in heard if clip.sound}) == len(heard)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_clips_are_alike_sample_by_sample(tmp_path: Path, suffix: str) -> None:
    for name, wave in (("a.wav", tone(300)), (f"b{suffix}", tone(300)), (f"c{suffix}", tone(300, 0.301))):
        audio.write(tmp_path / name, wave, RATE)
    clips = ClipInspector(tmp_path, 1.0, deep=True)
    assert clips.are_same_sound(["a.wav"], [f"b{suffix}"]) and clips.are_same_sound(["a.wav"] * 2, [f"b{suffix}"] * 2)
    assert not clips.are_same_sound(["a.wav"], [f"c{suffix}"]) and not clips.are_same_sound(["a.wav"], ["a.wav"] * 2)
    assert not ClipInspector(tmp_path, 1.0, deep=False).are_same_sound(["a.wav"], [f"b{suffix}"]), "nobody knows"


def voice(seed: int, seconds: float = 2.0) -> audio.Wave:
    """Syllables at one pitch or another, as loud as they go."""
    dice, times = np.random.default_rng(seed), np.arange(int(seconds * RATE)) / RATE
    loud = np.repeat(dice.uniform(0, 1, int(seconds * 5)), RATE // 5)
    wave = loud * sum(np.sin(2 * np.pi * dice.uniform(90, 250) * (k + 1) * times) / (k + 1) for k in range(6))
    return np.asarray(wave / np.abs(wave).max(), np.float32)


def rounded(wave: audio.Wave, scale: int) -> ClipInfo:
    return ClipInfo.from_wave((np.round(wave * scale).clip(-32_768, 32_767) / 32_768).astype(np.float32), RATE)


@pytest.mark.parametrize("level", [1.0, 0.01, 0.001])
def test_voices_of_one_length_and_one_peak_in_much_silence_are_others(level: float) -> None:
    padded = [np.pad(level * voice(seed), (0, 28 * RATE)) for seed in range(60)]
    heard = [rounded(wave, 32_768) for wave in padded]
    for grid in (0, 1):
        assert len({one.sound[grid] for one in heard if one.sound}) == len(heard)
    assert all(same(one, rounded(wave, 32_767)) for one, wave in zip(heard, padded, strict=True))


def test_a_clip_with_one_other_word_in_it_is_another() -> None:
    spoken = voice(0, 4.0)
    quiet = np.append(spoken, 0.01 * voice(1, 1.0)), np.append(spoken, 0.01 * voice(2, 1.0))
    assert not same(*(ClipInfo.from_wave(wave.astype(np.float32), RATE) for wave in quiet))


@pytest.mark.parametrize("level", [0.0, 0.5, -1.0])
def test_a_constant_is_silence_and_what_moves_around_it_is_not(tmp_path: Path, level: float) -> None:
    audio.write(tmp_path / "constant.wav", np.full(RATE // 10, level, np.float32), RATE)
    audio.write(tmp_path / "moves.wav", level * 0.9 + tone(300, level=0.05), RATE)
    clips = ClipInspector(tmp_path, 1.0, deep=True)
    (problem,) = clips.find_problems([("audios[0]", ["constant.wav"]), ("audios[0]", ["moves.wav"])])
    assert "must not be silence" in problem[1]
