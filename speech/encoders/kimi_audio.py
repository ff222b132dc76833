"""Kimi-Audio's audio encoder: Whisper-large-v3's encoder, four frames as one, and the checkpoint's own adaptor.

    wave ─ 30 s windows ─ log-mel ─ encoder (50 Hz) ─ 4 frames side by side (12.5 Hz) ─ adaptor ─► [K, H]

A window is padded with silence to 30 s and heard as a whole; of what comes out, the frames that its sound
reaches into are kept, one vector per 1280 samples begun: as many as there are codes. Frozen, float32.
"""

from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech.checkpoints.config_keys import UNREAD_WHISPER_KEYS, check_extractor, check_keys
from speech.checkpoints.folder import read_json, read_tensor_shapes
from speech.encoders.weights import FrozenWeights, apply_layer_norm, apply_linear, read_output_width
from speech.features import AudioVectors

KIMI_SAMPLE_RATE = 16_000
KIMI_WINDOW_SAMPLES = 30 * KIMI_SAMPLE_RATE
KIMI_HOP_SAMPLES = 1280  # samples per vector
KIMI_STACKED_FRAMES = 4  # frames of the encoder in one
KIMI_WHISPER_KEYS = (  # of Whisper's config.json, by transformers' own class
    *("d_model", "num_mel_bins", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim"),
    *("max_source_positions", "activation_function"),
)
ADAPTOR_PREFIX = "model.vq_adaptor.layers."


class KimiAudioEncoder:
    """A ``speech.families.base.AudioEncoder``.

    Example:
        encoder = KimiAudioEncoder(checkpoint, checkpoint / "whisper-large-v3")
        vectors = encoder.encode(wave)  # [K, H]
    """

    sample_rate = KIMI_SAMPLE_RATE

    def __init__(self, checkpoint: Path, whisper: Path) -> None:
        """Reads configs and headers. ValueError: no adaptor, or no Whisper encoder that fits it."""
        if not whisper.is_dir():
            raise ValueError(f"model.ear must be a local folder of Whisper-large-v3: got none at {whisper}")
        self._checkpoint, self._whisper = checkpoint, whisper
        self._config, own_config = read_json(whisper / "config.json"), read_json(checkpoint / "config.json")
        check_keys(whisper / "config.json", self._config, {*KIMI_WHISPER_KEYS, *UNREAD_WHISPER_KEYS})
        self._eps, wanted = (
            float(own_config.get("rms_norm_eps", 1e-6)),
            own_config.get("kimia_adaptor_input_dim", 5120),
        )
        width = self._config.get("d_model")
        if self._config.get("model_type") != "whisper" or width is None or KIMI_STACKED_FRAMES * width != wanted:
            rule = (
                f"must be Whisper with d_model {wanted / KIMI_STACKED_FRAMES:g}, a fourth of kimia_adaptor_input_dim"
            )
            raise ValueError(f"{whisper / 'config.json'}: {rule}: got {self._config.get('model_type')} with {width}")
        self.width = read_output_width(checkpoint, f"{ADAPTOR_PREFIX}4")
        bins = self._config.get("num_mel_bins", 80)
        check_extractor(whisper / "preprocessor_config.json", bins)
        self._mel = WhisperFeatureExtractor(feature_size=bins)

    def count_vectors(self, seconds: float) -> int:
        """A vector for every 80 ms that have begun."""
        return ceil(round(seconds * KIMI_SAMPLE_RATE) / KIMI_HOP_SAMPLES)

    @torch.no_grad()
    def encode(self, wave: NDArray[np.float32]) -> AudioVectors:
        """Mono float32 in [-1, 1] at 16 kHz -> [K, H]."""
        windows = [wave[start : start + KIMI_WINDOW_SAMPLES] for start in range(0, len(wave), KIMI_WINDOW_SAMPLES)]
        x, weights = torch.cat([self._encode_window(window) for window in windows]), self._adaptor
        x = apply_linear(F.silu(apply_linear(x, weights, "0")), weights, "3")
        vectors: AudioVectors = apply_layer_norm(x, weights, "4", self._eps).cpu().numpy()
        return vectors

    def _encode_window(self, window: NDArray[np.float32]) -> Tensor:
        mel = self._mel(window, sampling_rate=KIMI_SAMPLE_RATE, return_tensors="pt").input_features
        frames: Tensor = self._encoder(mel.to(self._adaptor.device)).last_hidden_state[0]
        own_frames = ceil(len(window) / KIMI_HOP_SAMPLES) * KIMI_STACKED_FRAMES
        return frames[:own_frames].reshape(-1, KIMI_STACKED_FRAMES * frames.shape[1])

    @cached_property
    def _encoder(self) -> nn.Module:
        """ValueError: the folder lacks a tensor, or has one that its config does not tell of."""
        bare = any(name.startswith("encoder.") for name in read_tensor_shapes(self._whisper))
        weights = FrozenWeights(self._whisper, "encoder." if bare else "model.encoder.")
        with torch.device("meta"):
            encoder = WhisperEncoder(WhisperConfig(**self._config))
        if left := sorted(set(weights) - set(encoder.state_dict())):
            raise ValueError(f"{self._whisper / 'config.json'}: must tell of all tensors: not of {left[0]}")
        return weights.load_into(encoder)

    @cached_property
    def _adaptor(self) -> FrozenWeights:
        return FrozenWeights(self._checkpoint, ADAPTOR_PREFIX)
