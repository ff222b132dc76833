"""Kimi-Audio's ear: windows, spectra and stacking against a naive computation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import WhisperModel
from transformers.audio_utils import mel_filter_bank

from speech.encoders.kimi_audio import KimiAudioEncoder
from tests.helpers.micro_kimi_audio import WIDTH, write_checkpoint
from tests.helpers.micro_world import clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("kimi") / "base")


@pytest.fixture(scope="module")
def ear(folder: Path) -> KimiAudioEncoder:
    return KimiAudioEncoder(folder, folder / "whisper-large-v3")


def log_mel(wave: np.ndarray) -> np.ndarray:
    """whisper_Lv3/whisper.py of the published code, frame by frame: [128, 3000]."""
    padded = np.pad(wave, (0, 480_000 - len(wave)))
    mirrored = np.pad(padded, 200, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([mirrored[t * 160 : t * 160 + 400] * hann for t in range(3000)])
    power = np.abs(np.fft.rfft(frames)) ** 2
    bank = mel_filter_bank(201, 128, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    logs = np.log10(np.maximum(power @ bank, 1e-10)).T
    return np.asarray((np.maximum(logs, logs.max() - 8) + 4) / 4, np.float32)


@torch.no_grad()
def naive(folder: Path, wave: np.ndarray) -> torch.Tensor:
    whisper = WhisperModel.from_pretrained(folder / "whisper-large-v3").encoder.eval()
    w = {k: v for file in folder.glob("model-*.safetensors") for k, v in load_file(file).items()}
    collected = []
    for start in range(0, len(wave), 480_000):
        window = wave[start : start + 480_000]
        frames = whisper(torch.from_numpy(log_mel(window))[None]).last_hidden_state[0]
        kept = (len(window) - 1) // 1280 + 1
        collected.append(torch.stack([frames[4 * k : 4 * k + 4].flatten() for k in range(kept)]))
    x, at = torch.cat(collected), "model.vq_adaptor.layers"
    x = F.silu(x @ w[f"{at}.0.weight"].T + w[f"{at}.0.bias"])
    x = x @ w[f"{at}.3.weight"].T + w[f"{at}.3.bias"]
    return F.layer_norm(x, (WIDTH,), w[f"{at}.4.weight"], w[f"{at}.4.bias"], 1e-6)


@pytest.mark.parametrize("seconds", [0.5, 1.001, 30.4])
def test_vectors_are_those_of_the_published_computation(ear: KimiAudioEncoder, folder: Path, seconds: float) -> None:
    wave = clip(seconds, 1)
    vectors, expected = ear.encode(wave), naive(folder, wave)
    assert vectors.dtype == np.float32 and vectors.shape == (ear.count_vectors(seconds), WIDTH) == expected.shape
    assert np.allclose(vectors, expected.numpy(), atol=2e-3)
    assert float(np.abs(vectors[0] - vectors[1]).max()) > 0.01


def test_an_encoder_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.ear must be a local folder of Whisper-large-v3: got none at"):
        KimiAudioEncoder(folder, tmp_path / "none")
    other = tmp_path / "whisper"
    shutil.copytree(folder / "whisper-large-v3", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"d_model": 20}))
    with pytest.raises(ValueError, match="d_model 16, a fourth of kimia_adaptor_input_dim: got whisper with 20"):
        KimiAudioEncoder(folder, other)
    cases = (
        ({"encoder_layers": 2}, r"whisper: lacks the audio encoder's tensor encoder\.layers\.1\."),
        ({"encoder_layers": 0}, r"whisper/config\.json: must tell of all tensors: not of layers\.0\."),
        ({"encoder_ffn_dim": 8}, r"whisper: the audio encoder's tensors do not fit: .* layers\.0\.fc1"),
    )
    for changes, rule in cases:
        (other / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=rule) as refused:
            KimiAudioEncoder(folder, other).encode(clip(0.2, 0))
        assert "\n" not in str(refused.value)
    (other / "config.json").write_text(json.dumps(config))
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors: must be a whole safetensors file"):
        KimiAudioEncoder(folder, other).encode(clip(0.2, 0))
