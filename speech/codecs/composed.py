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

from speech.audio import Wave
from speech.checkpoint import read_json
from speech.codecs.files import fingerprint_of, same_rate
from speech.codecs.graphs import Listener, Speaker
from speech.codecs.whisper_vq import WhisperVQ

DECLARED = "wavgate-codec.json"
FIELDS = {"kind", "encoder", "decoder", "sample_rate", "frame_rate"}
KINDS = ("glm4_voice", "onnx")
DECODER = "decoder.onnx"


class Half(Protocol):
    """The half that hears."""

    rate: int
    frame_rate: float
    size: int

    @property
    def files(self) -> list[Path]:
        """What it is made of."""
        ...

    def hear(self, wave: Wave) -> list[int]:
        """The codes of a wave at ``rate``; a started code counts."""
        ...


class ComposedCodec:
    """Hears at one rate and speaks at another; the codes are the same.

    Example:
        codec = from_declaration(Path("weights/glm4-codec"))
        wave_22k = codec.decode(codec.encode(wave_16k))
    """

    def __init__(self, folder: Path, ear: Half, voice: Path | Sequence[Path]) -> None:
        """ValueError: the halves have different rates, or a file is not what it must be."""
        files = [voice] if isinstance(voice, Path) else list(voice)
        self._folder, self._ear, self._voice = folder, ear, Speaker(files)
        self._files = [*ear.files, *files]
        self.ear_rate, self.size, self.frame_rate = ear.rate, ear.size, ear.frame_rate
        self.sample_rate = self._voice.sample_rate
        if self._voice.frame_rate != ear.frame_rate:
            rule = f"codec rate mismatch: frame_rate must be {ear.frame_rate:g}, which is the encoder's"
            raise ValueError(f"{files[-1]}: {rule}: got {self._voice.frame_rate:g}")

    @cached_property
    def fingerprint(self) -> str:
        """Of both halves' files."""
        return fingerprint_of(self._folder, self._files)

    def encode(self, wave: Wave) -> list[int]:
        """The codes of a wave at ``ear_rate``."""
        return self._ear.hear(wave)

    def decode(self, codes: Sequence[int]) -> Wave:
        """The wave at ``sample_rate``."""
        return self._voice.speak(codes, self.size)


def from_declaration(folder: Path) -> ComposedCodec:
    """The codec of a folder with wavgate-codec.json. ValueError names the file and the rule."""
    file = folder / DECLARED
    told = read_json(file)
    if unknown := sorted(set(told) - FIELDS):
        raise ValueError(f"{file}: fields must be {', '.join(sorted(FIELDS))}: got {unknown[0]}")
    if told.get("kind") not in KINDS:
        raise ValueError(f"{file}: kind must be one of {', '.join(KINDS)}: got {told.get('kind')}")
    named = told.get("decoder")
    decoders = named if isinstance(named, list) else [named]
    if not 1 <= len(decoders) <= 2:
        raise ValueError(f"{file}: decoder must be one file or two: got {len(decoders)}")
    encoder = _within(folder, "encoder", told.get("encoder"))
    voice = [_within(folder, "decoder", name) for name in decoders]
    ear = WhisperVQ(encoder) if told["kind"] == "glm4_voice" else Listener(encoder)
    codec = ComposedCodec(folder, ear, voice)
    same_rate(file, "sample_rate", codec.sample_rate, voice[-1])
    same_rate(file, "frame_rate", codec.frame_rate, voice[-1])
    return codec


def from_tokenizer(folder: Path) -> ComposedCodec:
    """The codec of a glm-4-voice-tokenizer folder with a decoder.onnx in it. ValueError: as above."""
    voice = folder / DECODER
    if not voice.is_file():
        rule = f"needs {DECODER} or a folder around both with {DECLARED}; flow.pt and hift.pt are not read"
        raise ValueError(f"{folder}: GLM-4-Voice's tokenizer only hears: {rule} (docs/codecs.md)")
    return ComposedCodec(folder, WhisperVQ(folder), voice)


def _within(folder: Path, field: str, name: Any) -> Path:
    if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{folder / DECLARED}: {field} must name what lies in this folder: got {name!r}")
    return folder / name
