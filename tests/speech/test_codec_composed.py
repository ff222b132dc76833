"""Codecs of two halves: what is heard at one rate is spoken at another, and rates that differ are refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx makes the decoders of these tests")
pytest.importorskip("onnxruntime", reason="the extra `plugins` is not installed")

from conf.schema import ModelConfig
from speech.codecs import load_codec
from speech.codecs.base import Codec
from speech.codecs.whisper_vq import WhisperVQ
from speech.dataset import RowEncoder
from speech.families import load_family
from speech.sound import audio
from tests.helpers.codec_checkpoints import write_decoder, write_encoder, write_glm4_codec, write_glm4_tokenizer


def speech(seconds: float, rate: int = 16_000) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (np.sin(2 * np.pi * (300 + 200 * time) * time) / 4).astype(np.float32)


def declare(folder: Path, **declaration: object) -> None:
    (folder / "wavgate-codec.json").write_text(json.dumps(declaration))


@pytest.fixture(scope="module")
def glm4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm4_codec(tmp_path_factory.mktemp("codec") / "glm-4-voice-tokenizer")


@pytest.fixture(scope="module")
def codec(glm4: Path) -> Codec:
    return load_codec(glm4)


def test_a_tokenizer_with_a_decoder_beside_it_hears_at_16_and_speaks_at_22_khz(codec: Codec, glm4: Path) -> None:
    assert (codec.input_sample_rate, codec.sample_rate, codec.frame_rate, codec.size) == (16_000, 22_050, 12.5, 64)
    wave = speech(1.03)
    assert codec.encode(wave) == WhisperVQ(glm4).encode(wave)


def test_what_it_says_it_hears_as_as_many_codes(codec: Codec) -> None:
    wave = codec.decode([3, 1, 4])
    assert wave.dtype == np.float32
    assert len(wave) == 3 * 1764
    assert len(codec.encode(audio.resample(wave, codec.sample_rate, codec.input_sample_rate))) == 3
    assert codec.encode(np.zeros(0, np.float32)) == []
    assert len(codec.decode([])) == 0


def test_a_clip_is_read_at_the_rate_that_the_encoder_hears(
    codec: Codec, micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(ModelConfig(family="tiny", path=micro_checkpoint))
    monkeypatch.setitem(vars(family), "_codec", codec)  # where it is kept once it is made
    audio.write(tmp_path / "clip.wav", speech(2.0, 22_050), 22_050)
    heard = audio.read(tmp_path / "clip.wav", 16_000, 60.0)
    assert RowEncoder(family, tmp_path, 60.0).codes(("clip.wav",)) == tuple(codec.encode(heard))


def test_a_declaration_names_the_halves_wherever_they_lie_below_it(codec: Codec, tmp_path: Path) -> None:
    write_glm4_tokenizer(tmp_path / "ear")
    write_decoder(tmp_path / "voice.onnx")
    declare(tmp_path, kind="glm4_voice", encoder="ear", decoder="voice.onnx", sample_rate=22_050, frame_rate=12.5)
    declared = load_codec(tmp_path)
    assert np.array_equal(declared.decode([5, 6]), codec.decode([5, 6]))
    assert declared.encode(speech(1.0)) == codec.encode(speech(1.0))


def gain(path: Path, factor: float) -> None:
    """A second decoder file: its input, louder."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Mul", ["mel", "factor"], ["wave"])
    table = numpy_helper.from_array(np.array(factor, np.float32), "factor")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "N"]) for name in ("mel", "wave")]
    graph = helper.make_graph([node], "gain", ends[:1], ends[1:], [table])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"sample_rate": "22050", "frame_rate": "12.5"})
    path.write_bytes(model.SerializeToString())


def test_a_decoder_may_be_two_files_of_which_the_second_takes_what_the_first_gives(
    codec: Codec, tmp_path: Path
) -> None:
    write_glm4_tokenizer(tmp_path / "ear")
    write_decoder(tmp_path / "flow.onnx", metadata={})
    gain(tmp_path / "hift.onnx", 0.5)
    declare(tmp_path, kind="glm4_voice", encoder="ear", decoder=["flow.onnx", "hift.onnx"])
    assert np.array_equal(load_codec(tmp_path).decode([5, 6]), codec.decode([5, 6]) / 2)


def test_both_halves_may_be_onnx(tmp_path: Path) -> None:
    write_encoder(tmp_path / "ear.onnx")
    write_decoder(tmp_path / "voice.onnx", sample_rate=24_000, frame_rate=25, samples=960)
    declare(tmp_path, kind="onnx", encoder="ear.onnx", decoder="voice.onnx")
    codec = load_codec(tmp_path)
    assert (codec.input_sample_rate, codec.sample_rate, codec.frame_rate, codec.size) == (16_000, 24_000, 25, 64)
    steps = np.repeat(np.array([0.0, 1.0, 0.5], np.float32), 640)
    assert codec.encode(steps) == [0, 63, 31]
    assert codec.encode(steps[:641]) == [0, 63]
    assert len(codec.decode([1, 2])) == 1920


def test_the_fingerprint_is_of_both_halves(tmp_path: Path) -> None:
    def printed() -> str:
        return load_codec(folder).fingerprint

    folder = write_glm4_codec(tmp_path / "codec")
    seen = {printed()}
    (folder / "notes.txt").write_text("no part of it")
    assert printed() in seen
    write_decoder(folder / "decoder.onnx", samples=1765)
    seen.add(printed())
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    seen.add(printed())
    assert len(seen) == 3


def test_a_code_that_the_encoder_does_not_have_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match=r"\[0, 64\), got 64"):
        codec.decode([64])


def test_a_decoder_that_gives_another_length_than_its_rates_is_refused(tmp_path: Path) -> None:
    folder = write_glm4_codec(tmp_path / "codec")
    write_decoder(folder / "decoder.onnx", sample_rate=24_000)  # of 1764 samples still
    with pytest.raises(ValueError, match="rate mismatch: 50 codes must give about 96000 samples: got 88200"):
        load_codec(folder).decode([1] * 50)


def test_without_onnxruntime_the_message_says_how_to_get_it(glm4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"decoder\.onnx: needs onnxruntime: pip install onnxruntime$"):
        load_codec(glm4)


GOOD = {"kind": "glm4_voice", "encoder": "ear", "decoder": "voice.onnx"}
BAD: list[tuple[dict[str, object], str]] = [
    (GOOD | {"kind": "mp3"}, r"wavgate-codec\.json: kind must be one of glm4_voice, onnx: got mp3"),
    (GOOD | {"voice": "x"}, "fields must be .*: got voice"),
    (GOOD | {"encoder": "../ear"}, "encoder must name what lies in this folder: got '../ear'"),
    (GOOD | {"decoder": "/voice.onnx"}, "decoder must name what lies in this folder: got '/voice.onnx'"),
    (GOOD | {"decoder": ["a", "b", "c"]}, "decoder must be one file or two: got 3"),
    (GOOD | {"decoder": "gone.onnx"}, r"gone\.onnx: a half of a codec must be an \.onnx file"),
    (
        GOOD | {"sample_rate": 24_000},
        r"rate mismatch: sample_rate must be 22050, .* voice\.onnx .*: got 24000",
    ),
    (GOOD | {"frame_rate": 25}, "rate mismatch: frame_rate must be 12.5, .*: got 25"),
    (
        GOOD | {"decoder": "fast.onnx"},
        r"fast\.onnx: codec rate mismatch: frame_rate must be 12.5, .*: got 25",
    ),
    (
        GOOD | {"decoder": "silent.onnx"},
        r"silent\.onnx: metadata sample_rate must be a positive number: got none",
    ),
    (
        GOOD | {"decoder": "wrong.onnx"},
        r"wrong\.onnx: metadata frame_rate must be a positive number: got often",
    ),
    (GOOD | {"decoder": "text.onnx"}, r"text\.onnx: must be an ONNX model"),
    (GOOD | {"decoder": "ear.onnx"}, r"ear\.onnx: a decoder's input must be int64 of shape \[1, T\]"),
    (
        {"kind": "onnx", "encoder": "voice.onnx", "decoder": "voice.onnx"},
        "an encoder's input must be float32",
    ),
]


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves")
    write_glm4_tokenizer(folder / "ear")
    write_decoder(folder / "voice.onnx")
    write_decoder(folder / "fast.onnx", frame_rate=25)
    write_decoder(folder / "silent.onnx", metadata={})
    write_decoder(folder / "wrong.onnx", metadata={"sample_rate": "22050", "frame_rate": "often"})
    write_encoder(folder / "ear.onnx")
    (folder / "text.onnx").write_text("not a model")
    return folder


@pytest.mark.parametrize(("declaration", "rule"), BAD)
def test_a_bad_declaration_is_refused_by_file_and_rule(
    declaration: dict[str, object], rule: str, halves: Path
) -> None:
    declare(halves, **declaration)
    with pytest.raises(ValueError, match=rule) as refused:
        load_codec(halves)
    assert str(halves) in str(refused.value)
    assert "\n" not in str(refused.value).split(": got")[0]


def test_a_tokenizer_alone_is_refused_and_the_published_pickles_are_not_looked_for(tmp_path: Path) -> None:
    folder = write_glm4_tokenizer(tmp_path / "tokenizer")
    (folder / "flow.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"only hears: needs decoder\.onnx .* flow\.pt and hift\.pt are not read"):
        load_codec(folder)


def outside(path: Path) -> None:
    """A decoder whose table lies in another file."""
    import onnx

    write_decoder(path)
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="table.bin", size_threshold=1024)


def test_a_decoder_that_names_another_file_is_refused(tmp_path: Path) -> None:
    import onnxruntime

    folder = write_glm4_tokenizer(tmp_path / "tokenizer")
    outside(folder / "decoder.onnx")
    onnxruntime.InferenceSession(str(folder / "decoder.onnx"))  # by its path it would be read, the other file too
    with pytest.raises(ValueError, match=r"decoder\.onnx: must be an ONNX model without external data"):
        load_codec(folder)
