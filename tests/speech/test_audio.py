"""Audio files: what is written is read back, and what breaks a rule is refused by name."""

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speech.sound import audio

RATE = 16_000


def chirp(seconds: float = 0.5, rate: int = RATE) -> audio.Wave:
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t)).astype(np.float32)


def refused(path: Path, rule: str, *, header_only: bool = False) -> None:
    """``read`` refuses the file in one line that names it and the rule."""
    with pytest.raises(ValueError, match=rule) as caught:
        audio.read_audio_header(path) if header_only else audio.read(path, RATE, 10.0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus", ".WAV"])
@pytest.mark.parametrize("rate", [RATE, 48_000])
def test_a_wave_read_back_has_the_same_length_and_rate(tmp_path: Path, suffix: str, rate: int) -> None:
    path, wave = tmp_path / f"a{suffix}", chirp(rate=rate)
    audio.write(path, wave, rate)
    back = audio.read(path, rate, 10.0)
    stored = 48_000 if suffix == ".opus" else rate
    frames = len(wave) * stored // rate
    assert audio.read_audio_header(path) == audio.AudioHeader(frames=frames, channels=1, sample_rate=stored)
    assert back.dtype == np.float32 and back.shape == wave.shape
    limit = 2**-15 if suffix.lower() in (".wav", ".flac") else 0.1
    assert np.abs(back - wave)[100:-100].max() <= limit


@settings(max_examples=20)
@given(st.integers(1, 3 * audio.AUDIO_BLOCK_FRAMES), st.sampled_from([".wav", ".flac"]))
def test_length_survives_at_every_block_edge(
    tmp_path_factory: pytest.TempPathFactory, frames: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("edge") / f"a{suffix}"
    wave = np.linspace(-1, 1, frames, dtype=np.float32)
    audio.write(path, wave, RATE)
    assert np.abs(audio.read(path, RATE, 60.0) - wave).max() <= 2**-14


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([chirp(), -0.5 * chirp()], axis=1)
    soundfile.write(tmp_path / "stereo.wav", both, RATE, subtype="FLOAT")
    assert np.allclose(audio.read(tmp_path / "stereo.wav", RATE, 10.0), both.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("signs", [(1, -1), (1, -0.9), (1, 1, -1, -1)])
def test_channels_that_cancel_each_other_are_refused(tmp_path: Path, signs: tuple[float, ...], noise: float) -> None:
    apart = noise * 0.3 * np.random.default_rng(0).normal(size=(len(chirp()), len(signs)))
    soundfile.write(tmp_path / "a.wav", chirp()[:, None] * signs + apart, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", "channels must not cancel each other")


@pytest.mark.parametrize("signs", [(1, 0), (1, 1), (0.001, 1), (0, 0), (1, -0.5), (1, *[0] * 7)])
def test_channels_that_share_or_are_empty_are_read(tmp_path: Path, signs: tuple[float, ...]) -> None:
    both = chirp()[:, None] * np.float32(signs)
    soundfile.write(tmp_path / "a.wav", both, RATE, subtype="FLOAT")
    assert np.allclose(audio.read(tmp_path / "a.wav", RATE, 10.0), both.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_reading_resamples_to_the_rate_asked_for(tmp_path: Path, rate: int) -> None:
    audio.write(tmp_path / "a.flac", chirp(1.0, rate), rate)
    back = audio.read(tmp_path / "a.flac", RATE, 10.0)
    assert len(back) == RATE
    assert np.abs(back - chirp(1.0))[200:-200].max() < 5e-3


def test_clips_are_played_one_after_another_and_their_sum_is_limited(tmp_path: Path) -> None:
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in paths:
        audio.write(path, chirp(0.5), RATE)
    assert len(audio.read_clips(paths, RATE, 1.0)) == RATE
    with pytest.raises(ValueError, match=r"at most 0\.9 s together: got 1\.0 s"):
        audio.read_clips(paths, RATE, 0.9)
    with pytest.raises(ValueError, match="at least one clip"):
        audio.read_clips([], RATE, 0.9)


def test_a_small_flac_that_expands_to_hours_is_refused_from_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2) as file:
        for _ in range(20):
            file.write(np.zeros((48_000 * 60, 2), np.int16))
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(audio, "_decode_to_mono", None)  # nothing may be decoded
    refused(path, r"at most 10 s: its header says 1200.0 s")


def test_a_header_that_lies_about_length_is_not_believed(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.flac", chirp(), RATE)
    honest = bytearray((tmp_path / "a.flac").read_bytes())
    for frames, rule in (
        (4 * RATE, "damaged|cut short"),
        (2**32 - 1, "at most 10 s"),
        (0, "must say how long it is"),
    ):
        lying = bytearray(honest)
        lying[22:26] = struct.pack(">I", frames)  # STREAMINFO: total samples; 0 means unknown
        (tmp_path / "lie.flac").write_bytes(lying)
        refused(tmp_path / "lie.flac", rule)
    honest[22:26] = struct.pack(">I", 1000)
    (tmp_path / "lie.flac").write_bytes(honest)
    refused(tmp_path / "lie.flac", "must have the 1000 samples that its header counts: got 4096 or more")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    wave = chirp()
    wave[7] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    refused(tmp_path / "a.wav", "samples must be finite")
    with pytest.raises(ValueError, match="samples must be finite"):
        audio.write(tmp_path / "b.wav", wave, RATE)


@pytest.mark.parametrize("loud", [3e38, 1e20, -32_768.0, 101.0])
def test_samples_far_beyond_full_scale_are_refused(tmp_path: Path, loud: float) -> None:
    both = np.full((RATE, 2), loud, np.float32)
    soundfile.write(tmp_path / "a.wav", both, RATE, subtype="FLOAT")
    rule = f"must lie in [-100, 100], where full scale is 1: got {abs(loud):g} near 0.00 s"
    refused(tmp_path / "a.wav", re.escape(rule))


def test_samples_somewhat_beyond_full_scale_are_read_as_they_are(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 8 * chirp(), RATE, subtype="FLOAT")
    assert np.array_equal(audio.read(tmp_path / "a.wav", RATE, 10.0), 8 * chirp())


def test_a_rate_of_zero_is_refused(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", chirp(), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = struct.pack("<I", 0)
    (tmp_path / "a.wav").write_bytes(content)
    refused(tmp_path / "a.wav", "sample rate of at least 1 Hz", header_only=True)


def test_what_is_not_audio_is_refused(tmp_path: Path) -> None:
    audio.write(tmp_path / "whole.flac", chirp(), RATE)
    whole = (tmp_path / "whole.flac").read_bytes()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(tmp_path / "many.wav", np.zeros((10, 9), np.float32), RATE)
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.wav").write_text("no audio in here")
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "noise.raw").write_bytes(b"\0" * 100)
    (tmp_path / "folder.wav").mkdir()
    refused(tmp_path / "empty.wav", "must not be empty: got 0 frames", header_only=True)
    refused(tmp_path / "many.wav", "1 to 8 channels: got 9", header_only=True)
    refused(tmp_path / "cut.flac", "damaged|cut short")
    refused(tmp_path / "text.wav", "cannot be read as audio", header_only=True)
    refused(tmp_path / "zero.wav", "cannot be read as audio", header_only=True)
    refused(tmp_path / "noise.raw", r"must be one of \.wav \.flac \.ogg \.opus \.mp3", header_only=True)
    os.mkfifo(tmp_path / "pipe.wav")
    refused(tmp_path / "folder.wav", "must be a file: got a folder", header_only=True)
    refused(tmp_path / "pipe.wav", "must be a file: got a pipe or a device", header_only=True)
    refused(tmp_path / "zero.wav" / "a.wav", "does not exist", header_only=True)
    refused(tmp_path / "gone.wav", "does not exist", header_only=True)


def test_writing_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    for name, wave, rate, rule in (
        ("a.mp4", chirp(), RATE, "written as one of"),
        ("no/a.wav", chirp(), RATE, "folder does not exist"),
        ("a.wav", chirp()[:0], RATE, r"at least one sample is needed: got shape \(0,\)"),
        ("a.wav", np.zeros((2, 5), np.float32), RATE, "mono wave"),
        ("a.opus", chirp(), 22_050, "cannot write OPUS at 22050 Hz"),
    ):
        with pytest.raises(ValueError, match=rule):
            audio.write(tmp_path / name, wave, rate)


@pytest.mark.parametrize("relative", ["a.wav", "deep/er/a.wav", "./a.wav", "..a/b..wav"])
def test_a_path_below_the_root_is_taken(tmp_path: Path, relative: str) -> None:
    assert audio.resolve_inside(tmp_path, relative) == tmp_path / relative


@pytest.mark.parametrize(
    ("relative", "rule"),
    [
        ("../a.wav", "without '..'"),
        ("deep/../../a.wav", "without '..'"),
        ("/etc/passwd", "must be relative"),
        ("", "must be relative"),
        ("a\0.wav", "must be relative"),
        ("https://example.org/a.wav", "not a URL"),
        ("file:///etc/passwd", "not a URL"),
        ("link/a.wav", "links included"),
        ("link.wav", "links included"),
        ("loop/a.wav", "links included|cannot be followed"),
    ],
)
def test_a_path_out_of_the_root_is_refused(tmp_path: Path, relative: str, rule: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "a.wav").touch()
    (root / "link").symlink_to(tmp_path)
    (root / "link.wav").symlink_to(tmp_path / "a.wav")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(ValueError, match=rule):
        audio.resolve_inside(root, relative)
