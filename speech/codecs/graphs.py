"""ONNX files as the halves of a codec: one that hears and one that speaks.

    decoder   codes, int64 [1, T] -> wave, float32 [1, N]          metadata: sample_rate, frame_rate
    encoder   wave, float32 [1, N] -> codes, int64 [1, T]          metadata: sample_rate, frame_rate, size

A decoder may be two files: what the first one puts out is what the second one takes (a flow, then a vocoder).
An ONNX file is data: it is read whole, from bytes, and what it names outside itself is not read.
"""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from speech.codecs.base import check_codes, check_wave
from speech.codecs.onnx import open_onnx_session
from speech.sound.audio import Wave

CODEC_HALF = "a half of a codec"
ONNX_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
LENGTH_TOLERANCE = 0.05  # of the length that the rates promise; vocoders round to their own frames


class OnnxDecoder:
    """A decoder. Its rates are those of its last file's metadata.

    Example:
        decoder = OnnxDecoder([Path("decoder.onnx")])
        wave = decoder.decode(codes, size=16384)
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """ValueError: no file of this form, or onnxruntime is not installed."""
        self._file, self._sessions = files[-1], [open_onnx_session(file, CODEC_HALF, ONNX_PROVIDERS) for file in files]
        codes = self._sessions[0].get_inputs()[0]
        if codes.type != "tensor(int64)" or len(codes.shape) != 2:
            rule = "a decoder's input must be int64 of shape [1, T]"
            raise ValueError(f"{files[0]}: {rule}: got {codes.type} of {codes.shape}")
        metadata = _read_metadata_numbers(self._sessions[-1], self._file, ("sample_rate", "frame_rate"))
        self.sample_rate, self.frame_rate = int(metadata["sample_rate"]), metadata["frame_rate"]

    def decode(self, codes: Sequence[int], size: int) -> Wave:
        """The wave at ``sample_rate``. ValueError: a code out of range, a length beyond its rates."""
        chosen = check_codes(codes, size)
        if not len(chosen):
            return np.zeros(0, np.float32)
        carried: Any = chosen[None]
        for session in self._sessions:
            carried, *_ = session.run(None, {session.get_inputs()[0].name: carried})
        wave = np.asarray(carried, np.float32).reshape(-1)
        promised = len(chosen) / self.frame_rate * self.sample_rate
        if abs(len(wave) - promised) > LENGTH_TOLERANCE * promised + self.sample_rate / self.frame_rate:
            rule = f"codec rate mismatch: {len(chosen)} codes must give about {promised:.0f} samples"
            raise ValueError(f"{self._file}: {rule}: got {len(wave)}")
        if not np.isfinite(wave).all():
            raise ValueError(f"{self._file}: samples must be finite: got NaN or infinity")
        return np.clip(wave, -1, 1)


class OnnxEncoder:
    """An encoder; ``rate`` is that of the waves that it takes."""

    def __init__(self, file: Path) -> None:
        """ValueError: as ``OnnxDecoder``."""
        self._file, self._session = file, open_onnx_session(file, CODEC_HALF, ONNX_PROVIDERS)
        wave = self._session.get_inputs()[0]
        if wave.type != "tensor(float)" or len(wave.shape) != 2:
            rule = "an encoder's input must be float32 of shape [1, N]"
            raise ValueError(f"{file}: {rule}: got {wave.type} of {wave.shape}")
        metadata = _read_metadata_numbers(self._session, file, ("sample_rate", "frame_rate", "size"))
        self.rate, self.size, self.frame_rate = (
            int(metadata["sample_rate"]),
            int(metadata["size"]),
            metadata["frame_rate"],
        )

    @property
    def files(self) -> list[Path]:
        """What it is made of."""
        return [self._file]

    def encode(self, wave: Wave) -> list[int]:
        """The codes of a wave at ``rate``, filled up with silence to whole codes."""
        check_wave(wave)
        frames = ceil(len(wave) * self.frame_rate / self.rate - 1e-6)
        if not frames:
            return []
        whole = np.pad(wave, (0, max(0, ceil(frames * self.rate / self.frame_rate) - len(wave))))
        output, *_ = self._session.run(None, {self._session.get_inputs()[0].name: whole[None]})
        codes = np.asarray(output).reshape(-1)
        if len(codes) != frames:
            rule = f"codec rate mismatch: {len(whole)} samples must give {frames} codes"
            raise ValueError(f"{self._file}: {rule}: got {len(codes)}")
        return list(check_codes(codes.tolist(), self.size).tolist())


def _read_metadata_numbers(session: Any, file: Path, names: Sequence[str]) -> dict[str, float]:
    """Positive numbers of the metadata. ValueError: one is not there or none."""
    metadata = session.get_modelmeta().custom_metadata_map
    numbers = {}
    for name in names:
        try:
            numbers[name] = float(metadata.get(name, "nan"))
        except ValueError:
            numbers[name] = float("nan")
        if not 0 < numbers[name] < float("inf"):
            rule = f"metadata {name} must be a positive number"
            raise ValueError(f"{file}: {rule}: got {metadata.get(name, 'none')}")
    return numbers
