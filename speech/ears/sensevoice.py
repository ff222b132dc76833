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

from speech.codec import check_wave
from speech.ears import kaldi
from speech.ears.weights import Weights, linear, normed, width_of
from speech.features import Vectors

ENCODER, PROJECTOR = "model.audio_model.model.", "model.audio_projection."
HEADS = 4
QUERIES = (0, 1, 2, 15)  # language: auto; event, emotion; text norm: without inverse normalisation
STATISTICS = "am.mvn"


def load(path: Path, statistics: Path) -> "SenseVoice":
    """The ear of a checkpoint; ``statistics``: the folder with its am.mvn. ValueError: one lacks it."""
    return SenseVoice(path, *kaldi.read_shift_and_scale(statistics / STATISTICS))


class SenseVoice:
    """``speech.families.base.Ear``. Weights are read at the first wave, headers at once."""

    def __init__(self, path: Path, shift: kaldi.Floats, scale: kaldi.Floats) -> None:
        self.sample_rate, self.width = kaldi.SAMPLE_RATE, width_of(path, f"{PROJECTOR}mlp.2")
        self._path, self._shift, self._scale = path, shift, scale

    def length(self, seconds: float) -> int:
        """Frames and queries. ValueError: shorter than a frame."""
        return kaldi.frames_of(round(seconds * kaldi.SAMPLE_RATE)) + len(QUERIES)

    @torch.no_grad()
    def hear(self, wave: NDArray[np.float32]) -> Vectors:
        """Mono float32 in [-1, 1] -> [K, H]. ValueError: shorter than a frame, not mono, not finite."""
        check_wave(wave)
        frames = kaldi.frames_of(len(wave))
        features = (kaldi.low_rate(kaldi.fbank(wave)) + self._shift) * self._scale
        assert len(features) == frames
        encoder, projector = self._weights
        heard = encode(torch.from_numpy(features).to(encoder.device), encoder)
        return np.asarray(project(heard, projector).cpu().numpy(), np.float32)

    @cached_property
    def _weights(self) -> tuple[Weights, Weights]:
        return Weights(self._path, ENCODER), Weights(self._path, PROJECTOR)


def encode(features_TD: Tensor, weights: Weights) -> Tensor:
    """[frames, 560] -> [4 + frames, width of the encoder]."""
    x = torch.cat([weights["embed.weight"][list(QUERIES)], features_TD])
    x = x * weights["encoder.after_norm.weight"].shape[0] ** 0.5
    x = x + positions(*x.shape).to(x.device)
    for stack, norm in ((("encoders0", "encoders"), "after_norm"), (("tp_encoders",), "tp_norm")):
        for name in (name for part in stack for name in _blocks(weights, part)):
            x = _layer(x, weights, name)
        x = normed(x, weights, f"encoder.{norm}")
    return x


def project(x: Tensor, weights: Weights) -> Tensor:
    """-> [4 + frames, H]."""
    inner = linear(normed(x, weights, "pre_proj_layernorm"), weights, "mlp.0", bias=False)
    return linear(F.gelu(inner), weights, "mlp.2", bias=False)


def positions(length: int, width: int) -> Tensor:
    """Sines, then cosines, of positions counted from 1."""
    slowdown = np.log(10000.0) / (width / 2 - 1)
    angles = torch.arange(1, length + 1)[:, None] * torch.exp(-slowdown * torch.arange(width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _blocks(weights: Weights, stack: str) -> list[str]:
    """Names of the layers of a stack, in order."""
    shape = re.compile(rf"(encoder\.{stack}\.(\d+)\.).*")
    found = {int(m[2]): m[1] for name in weights if (m := shape.fullmatch(name))}
    return [found[number] for number in sorted(found)]


def _layer(x: Tensor, weights: Weights, name: str) -> Tensor:
    heard = _attend(normed(x, weights, f"{name}norm1"), weights, f"{name}self_attn.")
    x = x + heard if x.shape == heard.shape else heard  # the first layer changes the width: nothing to add to
    inner = F.relu(linear(normed(x, weights, f"{name}norm2"), weights, f"{name}feed_forward.w_1"))
    return x + linear(inner, weights, f"{name}feed_forward.w_2")


def _attend(x: Tensor, weights: Weights, name: str) -> Tensor:
    q, k, v = linear(x, weights, f"{name}linear_q_k_v").chunk(3, dim=1)
    heads = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)
    kernel = weights[f"{name}fsmn_block.weight"]  # [width, 1, taps]
    memory = F.conv1d(v.T, kernel, padding=kernel.shape[2] // 2, groups=len(kernel)).T + v
    return linear(mixed, weights, f"{name}linear_out") + memory
