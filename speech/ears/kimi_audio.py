"""Kimi-Audio's ear: Whisper-large-v3's encoder, four frames as one, and the checkpoint's own adaptor.

    wave ─ 30 s windows ─ log-mel ─ encoder (50 Hz) ─ 4 frames side by side (12.5 Hz) ─ adaptor ─► [K, H]

A window is padded with silence to 30 s and heard as a whole; of what comes out, the frames that its sound
reaches into are kept, one vector per 1280 samples begun: as many as there are codes. Frozen, float32.
"""

import re
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from speech.checkpoint import read_json, weight_files
from speech.features import Vectors

SAMPLE_RATE = 16_000
WINDOW = 30 * SAMPLE_RATE
HOP = 1280  # samples per vector
STACKED = 4  # frames of the encoder in one


class KimiEar:
    """A ``speech.families.base.Ear``.

    Example:
        ear = KimiEar(checkpoint, checkpoint / "whisper-large-v3")
        vectors = ear.hear(wave)  # [K, H]
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, checkpoint: Path, whisper: Path) -> None:
        """Reads configs alone. ValueError: no Whisper encoder that fits the checkpoint."""
        if not whisper.is_dir():
            raise ValueError(f"model.ear must be a local folder of Whisper-large-v3: got none at {whisper}")
        self._checkpoint, self._whisper = checkpoint, whisper
        self._config, ours = read_json(whisper / "config.json"), read_json(checkpoint / "config.json")
        self._eps, wanted = float(ours.get("rms_norm_eps", 1e-6)), ours.get("kimia_adaptor_input_dim", 5120)
        width = self._config.get("d_model")
        if self._config.get("model_type") != "whisper" or width is None or STACKED * width != wanted:
            rule = f"must be Whisper with d_model {wanted / STACKED:g}, a fourth of kimia_adaptor_input_dim"
            raise ValueError(
                f"{whisper / 'config.json'}: {rule}: got {self._config.get('model_type')} with {width}"
            )
        self._parts: tuple[nn.Module, nn.Module] | None = None
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._mel = WhisperFeatureExtractor(feature_size=self._config.get("num_mel_bins", 80))

    def length(self, seconds: float) -> int:
        """A vector for every 80 ms that have begun."""
        return ceil(round(seconds * SAMPLE_RATE) / HOP)

    @torch.no_grad()
    def hear(self, wave: NDArray[np.float32]) -> Vectors:
        """Mono float32 in [-1, 1] at 16 kHz -> [K, H]."""
        if self._parts is None:
            self._parts = (self._encoder().to(self._device), self._adaptor().to(self._device))
        encoder, adaptor = self._parts
        windows = [wave[start : start + WINDOW] for start in range(0, len(wave), WINDOW)]
        stacked = [self._stacked(encoder, window) for window in windows]
        found: Vectors = adaptor(torch.cat(stacked)).cpu().numpy()
        return found

    def _stacked(self, encoder: nn.Module, window: NDArray[np.float32]) -> Tensor:
        mel = self._mel(window, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        frames: Tensor = encoder(mel.to(self._device)).last_hidden_state[0]
        kept = ceil(len(window) / HOP) * STACKED
        return frames[:kept].reshape(-1, STACKED * frames.shape[1])

    def _encoder(self) -> nn.Module:
        encoder: nn.Module = WhisperEncoder(WhisperConfig(**self._config))
        return _filled(encoder, self._whisper, r"(?:model\.)?encoder\.(.*)")

    def _adaptor(self) -> nn.Module:
        """Sizes are those of the checkpoint's tensors."""
        pattern = r"model\.vq_adaptor\.layers\.(.*)"
        shapes = {name: tensor.shape for name, tensor in _tensors(self._checkpoint, pattern).items()}
        if "0.weight" not in shapes:
            raise ValueError(f"{self._checkpoint}: must hold the tensors model.vq_adaptor.*")
        width, size = shapes["0.weight"]
        adaptor = nn.Sequential(
            nn.Linear(size, width),
            nn.SiLU(),
            nn.Dropout(0.0),
            nn.Linear(width, width),
            nn.LayerNorm(width, eps=self._eps),
        )
        return _filled(adaptor, self._checkpoint, pattern)


def _filled(module: nn.Module, folder: Path, pattern: str) -> nn.Module:
    """The module with the folder's tensors, each one of them. ValueError: they do not fit."""
    try:
        module.load_state_dict(_tensors(folder, pattern))
    except RuntimeError as error:
        raise ValueError(f"{folder}: tensors do not fit: {' '.join(str(error).split())[:200]}") from error
    return module.float().requires_grad_(False).eval()


def _tensors(folder: Path, pattern: str) -> dict[str, Any]:
    found = {}
    for file in weight_files(folder):
        with safe_open(str(file), framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if match := re.fullmatch(pattern, name):
                    found[match[1]] = stored.get_tensor(name).float()
    return found
