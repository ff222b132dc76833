"""SenseVoice-small's encoder and VITA-Audio's projector: a wave becomes vectors in the embedding space.

    fbank ─► 4 queries + frames ─► 1 + 49 layers ─► norm ─► 20 layers ─► norm ─► LayerNorm, MLP

A layer is attention plus a depthwise convolution over its values (a memory), then a feed-forward block; a
clip of n frames becomes n + 4 vectors. Frozen: the weights are the checkpoint's, in float32, and no
gradient is ever taken. Architecture: FunASR's SenseVoiceEncoderSmall as VITA-MLLM/VITA-Audio@0abaf17 has it.
"""

import re
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from speech.codecs.base import check_wave
from speech.encoders import kaldi
from speech.encoders.weights import FrozenWeights, apply_layer_norm, apply_linear, read_output_width
from speech.features import AudioVectors

AUDIO_MODEL_PREFIX, AUDIO_PROJECTION_PREFIX = "model.audio_model.model.", "model.audio_projection."
SENSEVOICE_HEADS = 4
QUERY_TOKENS = (0, 1, 2, 15)  # language: auto; event, emotion; text norm: without inverse normalisation
STATISTICS_FILE = "am.mvn"


def load_sensevoice(path: Path, statistics: Path) -> "SenseVoiceEncoder":
    """The audio encoder of a checkpoint; ``statistics``: the folder with its am.mvn. ValueError: one lacks it."""
    return SenseVoiceEncoder(path, *kaldi.read_shift_and_scale(statistics / STATISTICS_FILE))


class SenseVoiceEncoder:
    """``speech.families.base.AudioEncoder``. Weights are read at the first wave, headers at once."""

    def __init__(self, path: Path, shift: kaldi.Float32Array, scale: kaldi.Float32Array) -> None:
        self.sample_rate, self.width = (
            kaldi.FBANK_SAMPLE_RATE,
            read_output_width(path, f"{AUDIO_PROJECTION_PREFIX}mlp.2"),
        )
        self._path, self._shift, self._scale = path, shift, scale

    def count_vectors(self, seconds: float) -> int:
        """Frames and queries. ValueError: shorter than a frame."""
        return kaldi.count_low_rate_frames(round(seconds * kaldi.FBANK_SAMPLE_RATE)) + len(QUERY_TOKENS)

    @torch.no_grad()
    def encode(self, wave: NDArray[np.float32]) -> AudioVectors:
        """Mono float32 in [-1, 1] -> [K, H]. ValueError: shorter than a frame, not mono, not finite."""
        check_wave(wave)
        frames = kaldi.count_low_rate_frames(len(wave))
        features = (kaldi.stack_low_rate_frames(kaldi.compute_fbank(wave)) + self._shift) * self._scale
        assert len(features) == frames
        encoder, projector = self._weights
        encoded = encode_features(torch.from_numpy(features).to(encoder.device), encoder)
        return np.asarray(project_to_embedding(encoded, projector).cpu().numpy(), np.float32)

    @cached_property
    def _weights(self) -> tuple[FrozenWeights, FrozenWeights]:
        return FrozenWeights(self._path, AUDIO_MODEL_PREFIX), FrozenWeights(self._path, AUDIO_PROJECTION_PREFIX)


def encode_features(features_TD: Tensor, weights: FrozenWeights) -> Tensor:
    """[frames, 560] -> [4 + frames, width of the encoder]."""
    x = torch.cat([weights["embed.weight"][list(QUERY_TOKENS)], features_TD])
    x = x * weights["encoder.after_norm.weight"].shape[0] ** 0.5
    x = x + compute_sinusoidal_positions(*x.shape).to(x.device)
    for stack, norm in ((("encoders0", "encoders"), "after_norm"), (("tp_encoders",), "tp_norm")):
        for name in (name for part in stack for name in _list_layer_names(weights, part)):
            x = _apply_layer(x, weights, name)
        x = apply_layer_norm(x, weights, f"encoder.{norm}")
    return x


def project_to_embedding(x: Tensor, weights: FrozenWeights) -> Tensor:
    """-> [4 + frames, H]."""
    inner = apply_linear(apply_layer_norm(x, weights, "pre_proj_layernorm"), weights, "mlp.0", bias=False)
    return apply_linear(F.gelu(inner), weights, "mlp.2", bias=False)


def compute_sinusoidal_positions(length: int, width: int) -> Tensor:
    """Sines, then cosines, of positions counted from 1."""
    slowdown = np.log(10000.0) / (width / 2 - 1)
    angles = torch.arange(1, length + 1)[:, None] * torch.exp(-slowdown * torch.arange(width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _list_layer_names(weights: FrozenWeights, stack: str) -> list[str]:
    """Names of the layers of a stack, in order."""
    shape = re.compile(rf"(encoder\.{stack}\.(\d+)\.).*")
    name_by_number = {int(m[2]): m[1] for name in weights if (m := shape.fullmatch(name))}
    return [name_by_number[number] for number in sorted(name_by_number)]


def _apply_layer(x: Tensor, weights: FrozenWeights, name: str) -> Tensor:
    attended = _apply_attention(apply_layer_norm(x, weights, f"{name}norm1"), weights, f"{name}self_attn.")
    x = x + attended if x.shape == attended.shape else attended  # the first layer changes the width: nothing to add to
    inner = F.relu(apply_linear(apply_layer_norm(x, weights, f"{name}norm2"), weights, f"{name}feed_forward.w_1"))
    return x + apply_linear(inner, weights, f"{name}feed_forward.w_2")


def _apply_attention(x: Tensor, weights: FrozenWeights, name: str) -> Tensor:
    q, k, v = apply_linear(x, weights, f"{name}linear_q_k_v").chunk(3, dim=1)
    heads = (part.unflatten(1, (SENSEVOICE_HEADS, -1)).transpose(0, 1) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)
    kernel = weights[f"{name}fsmn_block.weight"]  # [width, 1, taps]
    memory = F.conv1d(v.T, kernel, padding=kernel.shape[2] // 2, groups=len(kernel)).T + v
    return apply_linear(mixed, weights, f"{name}linear_out") + memory
