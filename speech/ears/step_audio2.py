"""Step-Audio 2's ear: log-mels, an encoder like Whisper's and an adaptor; 12.5 vectors a second, frozen.

    16 kHz ─► 128 log-mels, 100 Hz ─► conv ─► conv/2 ─► blocks ─► pool/2 ─► norm ─► conv/2 ─► two layers

A wave is heard in pieces of 25 s, each by itself. Invariants: ``hear`` gives as many vectors as ``length``
says; weights are read from the checkpoint's own safetensors at the first ``hear``, in float32, and never
change.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperFeatureExtractor

from speech.audio import Wave
from speech.checkpoint import depth
from speech.codec import check_wave
from speech.config_keys import check_keys
from speech.ears.weights import Weights, linear, normed, width_of
from speech.features import Vectors

SAMPLE_RATE = 16_000
PIECE = 25 * SAMPLE_RATE  # samples that are heard at once
HOP, MELS = 160, 128
TAIL = 479  # zeros behind a piece; the last two frames, which they fill, are heard by nobody
WITHIN = "audio_encoder_config."
SIZES = ("n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
SHAPE = {"n_mels": MELS, "kernel_size": 3, "adapter_stride": 2}  # what the published lengths are built on


class StepAudio2Ear:
    """``speech.families.base.Ear`` of a Step-Audio 2 checkpoint.

    Example:
        ear = StepAudio2Ear(folder, config["audio_encoder_config"])
        assert len(ear.hear(wave)) == ear.length(len(wave) / 16_000)
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        """``settings``: the config's audio_encoder_config.

        ValueError: a setting that this encoder is not built for, or a checkpoint without one.
        """
        self._path, file = path, path / "config.json"
        check_keys(file, settings, {*SHAPE, *SIZES, "llm_dim", "n_codebook_size"}, WITHIN)
        sizes: dict[str, int] = {}
        for name in (*SHAPE, *SIZES):
            value = settings.get(name)
            if not isinstance(value, int) or value < 1 or SHAPE.get(name, value) != value:
                rule = f"{WITHIN}{name} must be {SHAPE.get(name, 'a positive number')}"
                raise ValueError(f"{file}: {rule}: got {value}")
            sizes[name] = value
        if (places := _halved(_frames(PIECE))) > sizes["n_audio_ctx"]:
            rule = f"audio_encoder_config.n_audio_ctx must hold 25 seconds, {places} places"
            raise ValueError(f"{file}: {rule}: got {sizes['n_audio_ctx']}")
        self._mel = WhisperFeatureExtractor(feature_size=MELS)
        self.width = width_of(path, "adapter.linear2")
        if sizes["n_audio_state"] % sizes["n_audio_head"]:
            rule = f"{WITHIN}n_audio_state must be a multiple of n_audio_head {sizes['n_audio_head']}"
            raise ValueError(f"{file}: {rule}: got {sizes['n_audio_state']}")
        if (stored := depth(path, "encoder.blocks.")) != sizes["n_audio_layer"]:
            rule = f"{WITHIN}n_audio_layer must be the weights' {stored}"
            raise ValueError(f"{file}: {rule}: got {sizes['n_audio_layer']}")
        self._heads, self._layers = sizes["n_audio_head"], sizes["n_audio_layer"]

    def length(self, seconds: float) -> int:
        """Vectors that so many seconds become."""
        whole, rest = divmod(round(seconds * SAMPLE_RATE), PIECE)
        return whole * vectors_of(PIECE) + vectors_of(rest)

    def hear(self, wave: Wave) -> Vectors:
        """Piece by piece. ValueError: not mono, not finite, or a checkpoint that lacks a tensor."""
        check_wave(wave)
        pieces = [wave[begin : begin + PIECE] for begin in range(0, len(wave), PIECE)]
        with torch.inference_mode():
            heard = [self._piece(self.log_mel(piece)) for piece in pieces if vectors_of(len(piece))]
        none = np.zeros((0, self.width), np.float32)
        return np.concatenate([none, *(one.cpu().numpy() for one in heard)])

    def log_mel(self, piece: Wave) -> Tensor:
        """[MELS, T]: Whisper's, behind which is TAIL."""
        padded = np.pad(piece, (0, TAIL))
        told = self._mel(padded, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="pt")
        mel: Tensor = told.input_features[0]
        return mel

    def _piece(self, mel: Tensor) -> Tensor:
        """[MELS, T] -> [vectors, width]."""
        encoder, adaptor = self._encoder, self._adaptor
        kept = _halved(_halved(mel.shape[1] - 2) // 2)
        x = _convolved(mel[None].to(encoder.device), encoder, "conv1", stride=1)
        x = _convolved(x, encoder, "conv2", stride=2).transpose(1, 2)
        x = x + encoder["positional_embedding.weight"][: x.shape[1]]
        silent = torch.zeros(1, x.shape[1], device=x.device)
        silent[0, -1] = -1e10  # the place of the last two frames is attended by none
        for layer in range(self._layers):
            x = self._block(x, f"blocks.{layer}.", silent)
        x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        x = _convolved(normed(x, encoder, "after_norm").transpose(1, 2), adaptor, "conv", stride=2)
        x = F.relu(linear(x.transpose(1, 2), adaptor, "linear1"))
        return linear(x, adaptor, "linear2")[0, :kept]

    def _block(self, x: Tensor, name: str, silent: Tensor) -> Tensor:
        weights = self._encoder
        y = normed(x, weights, f"{name}attn_ln")
        parts = (linear(y, weights, f"{name}attn.{part}", bias=part != "key") for part in ("query", "key", "value"))
        q, k, v = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=silent)
        x = x + linear(mixed.transpose(1, 2).flatten(2), weights, f"{name}attn.out")
        y = F.gelu(linear(normed(x, weights, f"{name}mlp_ln"), weights, f"{name}mlp.0"))
        return x + linear(y, weights, f"{name}mlp.2")

    @cached_property
    def _encoder(self) -> Weights:
        return Weights(self._path, "encoder.")

    @cached_property
    def _adaptor(self) -> Weights:
        return Weights(self._path, "adapter.")


def _convolved(x: Tensor, weights: Weights, name: str, stride: int) -> Tensor:
    return F.gelu(F.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1))


def vectors_of(samples: int) -> int:
    """Vectors of one piece."""
    return _halved(_halved(_frames(samples) - 2) // 2) if samples else 0


def _frames(samples: int) -> int:
    return (samples + TAIL) // HOP


def _halved(places: int) -> int:
    """Places that a convolution of stride 2 leaves."""
    return (places + 1) // 2
