"""The codecs of transformers that quantise in several books, spoken with their first one: Mimi, EnCodec, DAC.

A residual codec's first book is chosen before the others and can be decoded without them. In Mimi it holds
what was said, in the others a coarse spectrum: how it sounds is the other books' business and is lost.
Invariant: the constructor reads headers only; the weights are read at the first code or sample, in the
process that needs them, on its GPU where it has one. Nothing but safetensors is read, and no code from the
folder is run.
"""

from collections.abc import Sequence
from functools import cached_property
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from speech.checkpoints.config_keys import check_fixed, check_keys
from speech.checkpoints.folder import read_json, read_tensor_shapes, weight_files
from speech.codecs.base import check_codes, check_wave
from speech.codecs.files import check_same_rate, fingerprint_files
from speech.sound.audio import Wave

RESIDUAL_MODEL_TYPES = ("dac", "encodec", "mimi")
UNDECLARED_KEYS = (  # keys that transformers' classes read or write without declaring them
    "hidden_size hop_length partial_rotary_factor rope_scaling rope_theta upsampling_ratios".split()
)


class ResidualCodec:
    """The first book of one of ``RESIDUAL_MODEL_TYPES``.

    Example:
        codec = ResidualCodec(Path("weights/mimi"))
        wave = codec.decode(codec.encode(wave))
    """

    def __init__(self, path: Path) -> None:
        """ValueError: not a whole folder of this kind, or one that one book cannot speak."""
        from transformers import AutoConfig

        file = path / "config.json"
        self._kind = str(read_json(file).get("model_type"))
        read_tensor_shapes(path)
        try:
            config: Any = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            ratios = [int(ratio) for ratio in config.upsampling_ratios]
            self.sample_rate, self.size = int(config.sampling_rate), int(config.codebook_size)
        except Exception as broken:  # its checks of a config have no class in common
            raise ValueError(f"{file}: must be a {self._kind} config: {broken}") from broken
        raw_config = read_json(file)
        check_keys(file, raw_config, {*UNDECLARED_KEYS, *(name for name in raw_config if hasattr(type(config), name))})
        # Mimi halves the rate of its convolutions once more; frame_rate is rounded up in the configs.
        self.input_sample_rate = self.sample_rate
        self._hop = config.frame_size if self._kind == "mimi" else prod(ratios)
        self.frame_rate = self.sample_rate / self._hop
        check_fixed(file, raw_config, {"hop_length": prod(ratios)} if self._kind == "dac" else {})
        self._path = path
        _check_single_codebook(file, self._kind, config)
        check_same_rate(path / "preprocessor_config.json", "sampling_rate", self.sample_rate, file)

    @cached_property
    def fingerprint(self) -> str:
        """Of config and weights."""
        return fingerprint_files(self._path, [*weight_files(self._path), self._path / "config.json"])

    def encode(self, wave: Wave) -> list[int]:
        """The first book's code of every frame; the last one is filled with silence."""
        import torch

        check_wave(wave)
        if not len(wave):
            return []
        frames = ceil(len(wave) / self._hop)
        # EnCodec and Mimi pad by themselves, layer by layer; DAC leaves it to its feature extractor.
        if self._kind == "dac":
            wave = np.pad(wave, (0, frames * self._hop - len(wave)))
        with torch.inference_mode():
            codes = self._encode_first_book(torch.from_numpy(wave)[None, None].to(self._model.device))
        if len(codes) != frames:
            raise ValueError(f"{self._path}: {frames} frames must give as many codes: got {len(codes)}")
        return list(codes.tolist())

    def decode(self, codes: Sequence[int]) -> Wave:
        """The sound of the first book alone."""
        import torch

        chosen = check_codes(codes, self.size)
        if not len(chosen):
            return np.zeros(0, np.float32)
        with torch.inference_mode():
            decoded = self._decode_first_book(torch.from_numpy(chosen)[None, None].to(self._model.device))
        wave = decoded.float().cpu().numpy().reshape(-1)
        if abs(len(wave) - len(chosen) * self._hop) > self._hop or not np.isfinite(wave).all():
            rule = f"{len(chosen)} codes must give {len(chosen) * self._hop} finite samples"
            raise ValueError(f"{self._path}: {rule}: got {len(wave)}")
        return np.asarray(np.clip(wave, -1, 1), np.float32)

    def _encode_first_book(self, wave: Any) -> Any:
        if self._kind == "mimi":
            return self._model.encode(wave, num_quantizers=1).audio_codes[0, 0]
        if self._kind == "dac":
            return self._model.encode(wave, n_quantizers=1).audio_codes[0, 0]
        return self._model.encode(wave).audio_codes[0, 0, 0]  # of one chunk: the smallest bandwidth's books

    def _decode_first_book(self, codes: Any) -> Any:
        if self._kind == "encodec":
            return self._model.decode(codes[None], [None]).audio_values
        return self._model.decode(audio_codes=codes).audio_values

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModel

        try:
            model, loading_info = AutoModel.from_pretrained(
                self._path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as broken:
            raise ValueError(f"{self._path}: must be a {self._kind} codec: {broken}") from broken
        if loading_info["missing_keys"]:  # they would be random
            some = ", ".join(sorted(loading_info["missing_keys"])[:3])
            raise ValueError(f"{self._path}: must have all weights: lacks {some}")
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _check_single_codebook(file: Path, kind: str, config: Any) -> None:
    """ValueError: what the first book leaves out is needed to decode at all."""
    if kind == "mimi" and config.num_semantic_quantizers != 1:
        given = config.num_semantic_quantizers
        raise ValueError(f"{file}: one book speaks only with num_semantic_quantizers 1: got {given}")
    if kind == "encodec" and (config.audio_channels != 1 or config.normalize or config.chunk_length_s):
        given = f"{config.audio_channels}, {config.normalize}, {config.chunk_length_s}"
        rule = "one book speaks only with audio_channels 1, normalize false, chunk_length_s null"
        raise ValueError(f"{file}: {rule}: got {given}")
