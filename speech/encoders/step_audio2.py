"""Step-Audio 2's audio encoder: log-mels, an encoder like Whisper's and an adaptor; 12.5 vectors a second, frozen.

    16 kHz ─► 128 log-mels, 100 Hz ─► conv ─► conv/2 ─► blocks ─► pool/2 ─► norm ─► conv/2 ─► two layers

A wave is heard in pieces of 25 s, each by itself. Invariants: ``encode`` gives as many vectors as ``count_vectors``
says; weights are read from the checkpoint's own safetensors at the first ``encode``, in float32, and never
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

from speech.checkpoints.config_keys import check_keys
from speech.checkpoints.folder import count_stored_layers
from speech.codecs.base import check_wave
from speech.encoders.weights import FrozenWeights, apply_layer_norm, apply_linear, read_output_width
from speech.features import AudioVectors
from speech.sound.audio import Wave

STEP_AUDIO_SAMPLE_RATE = 16_000
PIECE_SAMPLES = 25 * STEP_AUDIO_SAMPLE_RATE  # samples that are heard at once
STEP_AUDIO_HOP, STEP_AUDIO_MELS = 160, 128
TAIL_SAMPLES = 479  # zeros behind a piece; the last two frames, which they fill, are heard by nobody
ENCODER_CONFIG_PREFIX = "audio_encoder_config."
ENCODER_SIZE_KEYS = ("n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer")
FIXED_ENCODER_SETTINGS = {
    "n_mels": STEP_AUDIO_MELS,
    "kernel_size": 3,
    "adapter_stride": 2,
}  # what the published lengths are built on


class StepAudio2Encoder:
    """``speech.families.base.AudioEncoder`` of a Step-Audio 2 checkpoint.

    Example:
        encoder = StepAudio2Encoder(folder, config["audio_encoder_config"])
        assert len(encoder.encode(wave)) == encoder.count_vectors(len(wave) / 16_000)
    """

    sample_rate = STEP_AUDIO_SAMPLE_RATE

    def __init__(self, path: Path, settings: Mapping[str, object]) -> None:
        """``settings``: the config's audio_encoder_config.

        ValueError: a setting that this encoder is not built for, or a checkpoint without one.
        """
        self._path, file = path, path / "config.json"
        check_keys(
            file,
            settings,
            {*FIXED_ENCODER_SETTINGS, *ENCODER_SIZE_KEYS, "llm_dim", "n_codebook_size"},
            ENCODER_CONFIG_PREFIX,
        )
        sizes: dict[str, int] = {}
        for name in (*FIXED_ENCODER_SETTINGS, *ENCODER_SIZE_KEYS):
            value = settings.get(name)
            if not isinstance(value, int) or value < 1 or FIXED_ENCODER_SETTINGS.get(name, value) != value:
                rule = f"{ENCODER_CONFIG_PREFIX}{name} must be {FIXED_ENCODER_SETTINGS.get(name, 'a positive number')}"
                raise ValueError(f"{file}: {rule}: got {value}")
            sizes[name] = value
        if (places := _halve_places(_count_frames(PIECE_SAMPLES))) > sizes["n_audio_ctx"]:
            rule = f"audio_encoder_config.n_audio_ctx must hold 25 seconds, {places} places"
            raise ValueError(f"{file}: {rule}: got {sizes['n_audio_ctx']}")
        self._mel = WhisperFeatureExtractor(feature_size=STEP_AUDIO_MELS)
        self.width = read_output_width(path, "adapter.linear2")
        if sizes["n_audio_state"] % sizes["n_audio_head"]:
            rule = f"{ENCODER_CONFIG_PREFIX}n_audio_state must be a multiple of n_audio_head {sizes['n_audio_head']}"
            raise ValueError(f"{file}: {rule}: got {sizes['n_audio_state']}")
        if (stored := count_stored_layers(path, "encoder.blocks.")) != sizes["n_audio_layer"]:
            rule = f"{ENCODER_CONFIG_PREFIX}n_audio_layer must be the weights' {stored}"
            raise ValueError(f"{file}: {rule}: got {sizes['n_audio_layer']}")
        self._heads, self._layers = sizes["n_audio_head"], sizes["n_audio_layer"]

    def count_vectors(self, seconds: float) -> int:
        """Vectors that so many seconds become."""
        whole, remainder = divmod(round(seconds * STEP_AUDIO_SAMPLE_RATE), PIECE_SAMPLES)
        return whole * count_piece_vectors(PIECE_SAMPLES) + count_piece_vectors(remainder)

    def encode(self, wave: Wave) -> AudioVectors:
        """Piece by piece. ValueError: not mono, not finite, or a checkpoint that lacks a tensor."""
        check_wave(wave)
        pieces = [wave[begin : begin + PIECE_SAMPLES] for begin in range(0, len(wave), PIECE_SAMPLES)]
        with torch.inference_mode():
            encoded = [self._encode_piece(self.log_mel(piece)) for piece in pieces if count_piece_vectors(len(piece))]
        none = np.zeros((0, self.width), np.float32)
        return np.concatenate([none, *(vectors.cpu().numpy() for vectors in encoded)])

    def log_mel(self, piece: Wave) -> Tensor:
        """[MELS, T]: Whisper's, behind which is TAIL."""
        padded = np.pad(piece, (0, TAIL_SAMPLES))
        features = self._mel(padded, sampling_rate=STEP_AUDIO_SAMPLE_RATE, padding="longest", return_tensors="pt")
        mel: Tensor = features.input_features[0]
        return mel

    def _encode_piece(self, mel: Tensor) -> Tensor:
        """[MELS, T] -> [vectors, width]."""
        encoder, adaptor = self._encoder, self._adaptor
        places = _halve_places(_halve_places(mel.shape[1] - 2) // 2)
        x = _apply_convolution(mel[None].to(encoder.device), encoder, "conv1", stride=1)
        x = _apply_convolution(x, encoder, "conv2", stride=2).transpose(1, 2)
        x = x + encoder["positional_embedding.weight"][: x.shape[1]]
        silent = torch.zeros(1, x.shape[1], device=x.device)
        silent[0, -1] = -1e10  # the place of the last two frames is attended by none
        for layer in range(self._layers):
            x = self._apply_block(x, f"blocks.{layer}.", silent)
        x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        x = _apply_convolution(apply_layer_norm(x, encoder, "after_norm").transpose(1, 2), adaptor, "conv", stride=2)
        x = F.relu(apply_linear(x.transpose(1, 2), adaptor, "linear1"))
        return apply_linear(x, adaptor, "linear2")[0, :places]

    def _apply_block(self, x: Tensor, name: str, silent: Tensor) -> Tensor:
        weights = self._encoder
        y = apply_layer_norm(x, weights, f"{name}attn_ln")
        parts = (
            apply_linear(y, weights, f"{name}attn.{part}", bias=part != "key") for part in ("query", "key", "value")
        )
        q, k, v = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=silent)
        x = x + apply_linear(mixed.transpose(1, 2).flatten(2), weights, f"{name}attn.out")
        y = F.gelu(apply_linear(apply_layer_norm(x, weights, f"{name}mlp_ln"), weights, f"{name}mlp.0"))
        return x + apply_linear(y, weights, f"{name}mlp.2")

    @cached_property
    def _encoder(self) -> FrozenWeights:
        return FrozenWeights(self._path, "encoder.")

    @cached_property
    def _adaptor(self) -> FrozenWeights:
        return FrozenWeights(self._path, "adapter.")


def _apply_convolution(x: Tensor, weights: FrozenWeights, name: str, stride: int) -> Tensor:
    return F.gelu(F.conv1d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1))


def count_piece_vectors(samples: int) -> int:
    """Vectors of one piece."""
    return _halve_places(_halve_places(_count_frames(samples) - 2) // 2) if samples else 0


def _count_frames(samples: int) -> int:
    return (samples + TAIL_SAMPLES) // STEP_AUDIO_HOP


def _halve_places(places: int) -> int:
    """Places that a convolution of stride 2 leaves."""
    return (places + 1) // 2
