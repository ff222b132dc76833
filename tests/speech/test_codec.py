"""The mel codec: exact over concatenation, deterministic, level kept, intelligible."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from speech.codecs import load_codec
from speech.codecs.mel import CEPSTRA, TIME_COEFFICIENTS, MelCodec
from speech.sound.mel import FloatArray

BASE = Path(__file__).parents[2] / "examples" / "tiny_world" / "base"
GRID = 1280


def clip(seed: int, blocks: int, gain: float = 0.2) -> FloatArray:
    """Noisy vowels with 20 ms of silence at both ends."""
    random = np.random.default_rng(seed)
    time = np.arange(blocks * GRID) / 16_000
    tones = sum(np.sin(2 * np.pi * f * time) for f in random.uniform(100, 3000, 4))
    wave = gain * tones / 4 + 0.02 * random.normal(size=len(time))
    wave[:320] = wave[-320:] = 0
    return wave.astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> MelCodec:
    return MelCodec.fit([clip(seed, 8) for seed in range(12)], size=48, seed=0, rounds=5)


@pytest.fixture(scope="module")
def shipped() -> MelCodec:
    return MelCodec.load(BASE / "codec.safetensors")


def test_clips_played_one_after_another_encode_to_their_codes_one_after_another(codec: MelCodec) -> None:
    clips = [clip(seed, 3 + seed % 4) for seed in range(20, 32)]
    assert codec.encode(np.concatenate(clips)) == [code for wave in clips for code in codec.encode(wave)]


def test_every_80_ms_is_one_code_and_a_started_one_counts(codec: MelCodec) -> None:
    assert codec.frame_rate == 12.5
    assert len(codec.encode(clip(1, 5))) == 5
    assert len(codec.encode(clip(1, 5)[: 4 * GRID + 1])) == 5
    assert codec.encode(np.zeros(0, np.float32)) == []


def test_a_decoded_wave_lasts_80_ms_per_code_and_stays_in_range(codec: MelCodec) -> None:
    wave = codec.decode(range(40))
    assert wave.dtype == np.float32
    assert len(wave) == 40 * GRID
    assert np.isfinite(wave).all() and np.abs(wave).max() <= 1
    assert len(codec.decode([])) == 0


def test_decoding_is_deterministic(codec: MelCodec) -> None:
    assert np.array_equal(codec.decode([3, 1, 4, 1, 5]), codec.decode([3, 1, 4, 1, 5]))


@pytest.mark.parametrize("code", [-1, 48])
def test_a_code_out_of_range_is_refused_with_rule_and_value(codec: MelCodec, code: int) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 48\), got {code}"):
        codec.decode([0, code])


def test_a_wave_that_is_not_mono_or_not_finite_is_refused(codec: MelCodec) -> None:
    with pytest.raises(ValueError, match="mono"):
        codec.encode(np.zeros((2, GRID), np.float32))
    with pytest.raises(ValueError, match="finite"):
        codec.encode(np.full(GRID, np.nan, np.float32))


def test_saved_and_loaded_is_the_same_codec(codec: MelCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "codec.safetensors")
    again = MelCodec.load(tmp_path / "codec.safetensors")
    assert again.size == codec.size
    assert np.array_equal(again.decode(range(20)), codec.decode(range(20)))
    assert again.encode(clip(3, 9)) == codec.encode(clip(3, 9))


def test_saving_writes_the_same_bytes_every_time(codec: MelCodec, tmp_path: Path) -> None:
    written = set()
    for _ in range(8):
        codec.save(tmp_path / "codec.safetensors")
        written.add((tmp_path / "codec.safetensors").read_bytes())
    assert len(written) == 1


def test_fitting_twice_gives_the_same_codebook(codec: MelCodec) -> None:
    again = MelCodec.fit([clip(seed, 8) for seed in range(12)], size=48, seed=0, rounds=5)
    assert np.array_equal(again.decode(range(48)), codec.decode(range(48)))


def test_too_little_speech_or_a_codebook_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 48 blocks"):
        MelCodec.fit([clip(0, 4)], size=48, seed=0)
    with pytest.raises(ValueError, match=f"{TIME_COEFFICIENTS * CEPSTRA} columns"):
        MelCodec(np.zeros((4, 7), np.float32))


def test_loud_speech_stays_loud_through_the_shipped_codec(shipped: MelCodec) -> None:
    from examples.tiny_world.build import DATA
    from examples.tiny_world.speak import read_clips

    def decibels(style: str) -> float:
        clips = [f"bank/rms{style}/{word}.flac" for word in ("the", "answer", "is", "twelve")]
        return float(10 * np.log10((shipped.decode(shipped.encode(read_clips(DATA, clips))) ** 2).mean()))

    assert 7 < decibels("-loud") - decibels("") < 11


def test_real_clips_concatenate_exactly_in_the_shipped_codec(shipped: MelCodec) -> None:
    from examples.tiny_world.build import DATA
    from examples.tiny_world.pretrain import read_rows
    from examples.tiny_world.speak import read_clips

    for row in read_rows("test")[:10]:
        clips = row["sft_target_audio"] + row["audios"][0]
        apart = [code for item in clips for code in shipped.encode(read_clips(DATA, [item]))]
        assert shipped.encode(read_clips(DATA, clips)) == apart


def test_held_out_replies_are_understood_raw_and_through_the_codec(shipped: MelCodec) -> None:
    pytest.importorskip("pocketsphinx")
    from bench.codec_wer import error_rate, in_domain, spoken
    from examples.tiny_world.pretrain import read_rows

    texts = [row["sft_target_text"] for row in read_rows("test")][:30]
    raw = spoken(texts, None)
    coded = [shipped.decode(shipped.encode(wave)) for wave in raw]
    assert error_rate(in_domain(), texts, raw)[0] <= 0.04
    assert error_rate(in_domain(), texts, coded)[0] <= 0.08


def test_a_folder_or_its_file_loads_as_the_codec_whose_fingerprint_is_the_file_hash() -> None:
    file = BASE / "codec.safetensors"
    for path in (BASE, file):
        codec = load_codec(path)
        assert isinstance(codec, MelCodec)
        assert codec.fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_folder_without_a_codec_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: a codec must be"):
        load_codec(tmp_path)
