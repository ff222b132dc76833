"""A codec of two halves: GLM-4-Voice's encoder or an ONNX encoder, and an ONNX decoder.

    wavgate-codec.json    {"kind": "glm4_voice", "encoder": "glm-4-voice-tokenizer",
                           "decoder": "decoder.onnx", "sample_rate": 22050, "frame_rate": 12.5}

``kind`` says what the encoder is: a folder of GLM-4-Voice's tokenizer, or (``onnx``) a file. ``decoder`` is a
file or a list of two. The rates are optional; where they are given they must be the decoder's own.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from speech.checkpoints.folder import read_json
from speech.codecs.files import check_same_rate, fingerprint_files
from speech.codecs.graphs import OnnxDecoder, OnnxEncoder
from speech.codecs.whisper_vq import WhisperVQ
from speech.sound.audio import Wave

CODEC_DECLARATION = "wavgate-codec.json"
DECLARATION_FIELDS = {"kind", "encoder", "decoder", "sample_rate", "frame_rate"}
DECLARED_ENCODER_KINDS = ("glm4_voice", "onnx")
ONNX_DECODER_FILE = "decoder.onnx"


class CodecEncoder(Protocol):
    """The half from waves to codes."""

    rate: int
    frame_rate: float
    size: int

    @property
    def files(self) -> list[Path]:
        """What it is made of."""
        ...

    def encode(self, wave: Wave) -> list[int]:
        """The codes of a wave at ``rate``; a started code counts."""
        ...


class ComposedCodec:
    """Encodes waves of one rate and decodes to another; the codes are the same.

    Example:
        codec = load_declared_codec(Path("weights/glm4-codec"))
        wave_22k = codec.decode(codec.encode(wave_16k))
    """

    def __init__(self, folder: Path, encoder: CodecEncoder, decoder: Path | Sequence[Path]) -> None:
        """ValueError: the halves have different rates, or a file is not what it must be."""
        files = [decoder] if isinstance(decoder, Path) else list(decoder)
        self._folder, self._encoder, self._decoder = folder, encoder, OnnxDecoder(files)
        self._files = [*encoder.files, *files]
        self.input_sample_rate, self.size, self.frame_rate = encoder.rate, encoder.size, encoder.frame_rate
        self.sample_rate = self._decoder.sample_rate
        if self._decoder.frame_rate != encoder.frame_rate:
            rule = f"codec rate mismatch: frame_rate must be {encoder.frame_rate:g}, which is the encoder's"
            raise ValueError(f"{files[-1]}: {rule}: got {self._decoder.frame_rate:g}")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the encoder's and the decoder's files."""
        return fingerprint_files(self._folder, self._files)

    def encode(self, wave: Wave) -> list[int]:
        """The codes of a wave at ``input_sample_rate``."""
        return self._encoder.encode(wave)

    def decode(self, codes: Sequence[int]) -> Wave:
        """The wave at ``sample_rate``."""
        return self._decoder.decode(codes, self.size)


def load_declared_codec(folder: Path) -> ComposedCodec:
    """The codec of a folder with wavgate-codec.json. ValueError names the file and the rule."""
    file = folder / CODEC_DECLARATION
    declaration = read_json(file)
    if unknown := sorted(set(declaration) - DECLARATION_FIELDS):
        raise ValueError(f"{file}: fields must be {', '.join(sorted(DECLARATION_FIELDS))}: got {unknown[0]}")
    if declaration.get("kind") not in DECLARED_ENCODER_KINDS:
        raise ValueError(
            f"{file}: kind must be one of {', '.join(DECLARED_ENCODER_KINDS)}: got {declaration.get('kind')}"
        )
    named = declaration.get("decoder")
    decoders = named if isinstance(named, list) else [named]
    if not 1 <= len(decoders) <= 2:
        raise ValueError(f"{file}: decoder must be one file or two: got {len(decoders)}")
    encoder_path = _resolve_declared_file(folder, "encoder", declaration.get("encoder"))
    graphs = [_resolve_declared_file(folder, "decoder", name) for name in decoders]
    encoder = WhisperVQ(encoder_path) if declaration["kind"] == "glm4_voice" else OnnxEncoder(encoder_path)
    codec = ComposedCodec(folder, encoder, graphs)
    check_same_rate(file, "sample_rate", codec.sample_rate, graphs[-1])
    check_same_rate(file, "frame_rate", codec.frame_rate, graphs[-1])
    return codec


def load_tokenizer_codec(folder: Path) -> ComposedCodec:
    """The codec of a glm-4-voice-tokenizer folder with a decoder.onnx in it. ValueError: as above."""
    decoder = folder / ONNX_DECODER_FILE
    if not decoder.is_file():
        rule = f"needs {ONNX_DECODER_FILE} or a folder around both with {CODEC_DECLARATION}"
        unread = "flow.pt and hift.pt are not read (docs/codecs.md)"
        raise ValueError(f"{folder}: GLM-4-Voice's tokenizer only hears: {rule}; {unread}")
    return ComposedCodec(folder, WhisperVQ(folder), decoder)


def _resolve_declared_file(folder: Path, field: str, name: Any) -> Path:
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder / CODEC_DECLARATION}: {field} must name what lies in this folder: got {name!r}")
    return folder / name
