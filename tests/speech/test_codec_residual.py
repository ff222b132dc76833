"""Codecs of transformers with their first book: exact lengths, true rates, bad folders refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from speech.codecs import load_codec
from speech.codecs.base import Codec
from tests.helpers.codec_checkpoints import write_residual

HOPS = {"mimi": 1920, "encodec": 320, "dac": 512}
RATES = {"mimi": (24_000, 12.5), "encodec": (24_000, 75.0), "dac": (16_000, 31.25)}


@pytest.fixture(scope="module", params=HOPS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_residual(tmp_path_factory.mktemp("codecs") / request.param, request.param)


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return load_codec(folder)


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 0.2, samples).astype(np.float32)


def test_its_rates_are_exact(codec: Codec, folder: Path) -> None:
    assert (codec.sample_rate, codec.frame_rate) == RATES[folder.name]
    assert codec.size == 64


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("extra", [-7, 0, 1])
def test_a_started_frame_is_a_code_and_a_code_is_a_frame_of_sound(
    codec: Codec, folder: Path, frames: int, extra: int
) -> None:
    codes = codec.encode(noise(frames * HOPS[folder.name] + extra))
    assert len(codes) == frames + (extra > 0)
    assert len(codec.decode(codes)) == len(codes) * HOPS[folder.name]


def test_sound_and_codes_are_those_of_the_model(codec: Codec, folder: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    wave = noise(6 * HOPS[folder.name])
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(wave)[None, None]).audio_codes.reshape(-1, 6)[0]
        assert codec.encode(wave) == codes.tolist()
        options = {"audio_scales": [None]} if folder.name == "encodec" else {}
        shape = (1, 1, 1, 6) if folder.name == "encodec" else (1, 1, 6)
        sound = model.decode(audio_codes=codes.view(shape), **options).audio_values
    assert np.array_equal(codec.decode(codes.tolist()), sound.reshape(-1).clamp(-1, 1).numpy())
    assert len(set(codes.tolist())) > 1


def test_nothing_is_nothing(codec: Codec) -> None:
    assert codec.encode(np.zeros(0, np.float32)) == []
    assert len(codec.decode([])) == 0


def test_a_code_out_of_range_and_a_wave_that_is_none_are_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match=r"\[0, 64\), got 64"):
        codec.decode([64])
    with pytest.raises(ValueError, match="mono"):
        codec.encode(np.zeros((2, 9600), np.float32))


def test_the_weights_are_read_at_the_first_use(folder: Path) -> None:
    codec = load_codec(folder)
    assert "_model" not in vars(codec)
    codec.decode([1])
    assert "_model" in vars(codec)


def test_the_fingerprint_is_of_config_and_weights_only(folder: Path, tmp_path: Path) -> None:
    def printed() -> str:
        return load_codec(tmp_path / "copy").fingerprint

    shutil.copytree(folder, tmp_path / "copy")
    before = printed()
    (tmp_path / "copy" / "README.md").write_text("about this codec")
    assert printed() == before
    weights = tmp_path / "copy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert printed() != before


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | changes))

    return change


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("mimi", edit("config.json", model_type="snac"), r"config\.json: a codec's model_type .*: got snac"),
    ("mimi", edit("config.json", num_semantic_quantizers=2), r"config\.json: one book speaks only .*: got 2"),
    ("mimi", edit("config.json", sampling_rate="fast"), r"config\.json: must be a mimi config"),
    (
        "mimi",
        edit("preprocessor_config.json", sampling_rate=16_000),
        "rate mismatch: .* 24000, .*: got 16000",
    ),
    ("mimi", lambda f: (f / "model.safetensors").unlink(), r"must hold model\.safetensors"),
    (
        "mimi",
        lambda f: (f / "model.safetensors").write_bytes(b"short"),
        r"model\.safetensors: must be a whole",
    ),
    ("encodec", edit("config.json", audio_channels=2), "one book speaks only with audio_channels 1"),
    ("encodec", edit("config.json", normalize=True, chunk_length_s=1.0), "one book speaks only with"),
]


@pytest.mark.parametrize(("kind", "change", "rule"), BAD)
def test_a_bad_folder_is_refused_when_it_is_named(
    kind: str, change: Callable[[Path], object], rule: str, tmp_path: Path
) -> None:
    folder = write_residual(tmp_path / kind, kind)
    change(folder)
    with pytest.raises(ValueError, match=rule) as refused:
        load_codec(folder)
    assert str(tmp_path) in str(refused.value)


def test_weights_of_another_model_are_refused_at_the_first_use(tmp_path: Path) -> None:
    folder = write_residual(tmp_path / "dac", "dac")
    edit("config.json", n_codebooks=3)(folder)
    with pytest.raises(ValueError, match="must have all weights: lacks quantizer"):
        load_codec(folder).decode([1])
