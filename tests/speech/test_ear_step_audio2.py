"""Step-Audio 2's ear against the published forward pass, written out in float64 with loops and matrices."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.special import erf

from speech.encoders.step_audio2 import PIECE_SAMPLES, StepAudio2Encoder, count_piece_vectors
from speech.families import step_audio2 as family_file
from tests.helpers.micro_step_audio2 import ENCODER, write_checkpoint
from tests.helpers.micro_world import clip

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("step") / "model")


def ear_of(folder: Path, **changes: object) -> StepAudio2Encoder:
    return StepAudio2Encoder(folder, ENCODER | changes)


def published_length(samples: int) -> int:
    """Step-Audio2 utils.py, compute_token_num(log_mel_spectrogram(audio, padding=479).shape[1])."""
    encoded = ((samples + 479) // 160 - 2 + 1) // 2 // 2
    return (encoded + 2 * 1 - 3) // 2 + 1


def naive_mel(wave: Floats) -> Floats:
    """Reflected ends, periodic Hann window, power of a plain DFT, Slaney's filters, Whisper's scaling."""
    padded = np.pad(np.concatenate([wave, np.zeros(479)]), 200, mode="reflect")
    frames = np.stack([padded[i : i + 400] for i in range(0, len(padded) - 399, 160)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    turns = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(201)) / 400)
    power = np.abs((frames * window) @ turns)[:-1] ** 2

    def hertz(mel: Floats) -> Floats:
        return np.where(mel < 15, 200 / 3 * mel, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    edges = hertz(np.linspace(0, 15 + np.log(8) / (np.log(6.4) / 27), 130))
    bins = np.arange(201) * 40.0
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    mel = np.log10(np.maximum(filters @ power.T, 1e-10))
    return np.asarray((np.maximum(mel, mel.max() - 8) + 4) / 4)


def naive_ear(folder: Path, wave: Floats) -> Floats:
    """modeling_step_audio_2.py: AudioEncoder(mel, T - 2), Adaptor, as many rows as compute_token_num."""
    files = folder.glob("*.safetensors")
    weights = {n: t.double().numpy() for file in files for n, t in load_file(file).items()}

    def gelu(x: Floats) -> Floats:
        return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)

    def convolved(x: Floats, name: str, stride: int) -> Floats:  # [channels, T]
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        padded = np.pad(x, ((0, 0), (1, 1)))
        places = range(0, padded.shape[1] - 2, stride)
        return gelu(np.stack([np.einsum("oik,ik->o", kernel, padded[:, p : p + 3]) + bias for p in places], 1))

    def linear(x: Floats, name: str) -> Floats:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0))

    def normed(x: Floats, name: str) -> Floats:
        centred = x - x.mean(1, keepdims=True)
        return np.asarray(
            centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    mel = naive_mel(wave)
    frames = mel.shape[1]
    x = convolved(convolved(mel, "encoder.conv1", 1), "encoder.conv2", 2).T
    valid = (np.arange(frames) < frames - 2)[(frames + 1) % 2 :: 2]
    x = x + weights["encoder.positional_embedding.weight"][: len(x)]
    for layer in range(ENCODER["n_audio_layer"]):
        at = f"encoder.blocks.{layer}"
        y = normed(x, f"{at}.attn_ln")
        q, k, v = (linear(y, f"{at}.attn.{name}") for name in ("query", "key", "value"))
        mixed = []
        for head in range(ENCODER["n_audio_head"]):
            part = slice(head * 16, head * 16 + 16)
            scores = q[:, part] @ k[:, part].T / np.sqrt(16) + np.where(valid, 0, -1e10)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            mixed.append(shares / shares.sum(1, keepdims=True) @ v[:, part])
        x = x + linear(np.concatenate(mixed, 1), f"{at}.attn.out")
        x = x + linear(gelu(linear(normed(x, f"{at}.mlp_ln"), f"{at}.mlp.0")), f"{at}.mlp.2")
    x = normed(x[: len(x) // 2 * 2].reshape(len(x) // 2, 2, -1).mean(1), "encoder.after_norm")
    x = np.maximum(linear(convolved(x.T, "adapter.conv", 2).T, "adapter.linear1"), 0)
    return linear(x, "adapter.linear2")[: published_length(len(wave))]


@pytest.mark.parametrize("samples", [321, 1000, 8000, 8081, 12345])
def test_it_hears_what_the_published_model_hears(folder: Path, samples: int) -> None:
    wave = clip(1.0, seed=3)[:samples]
    assert np.abs(ear_of(folder).log_mel(wave).numpy() - naive_mel(wave.astype(np.float64))).max() < 1e-4
    heard, expected = ear_of(folder).encode(wave), naive_ear(folder, wave.astype(np.float64))
    assert heard.dtype == np.float32 and heard.shape == expected.shape
    assert np.abs(expected).max() > 1
    assert np.abs(heard - expected).max() < 1e-3


@given(st.integers(1, PIECE_SAMPLES))
def test_it_gives_as_many_vectors_as_published(samples: int) -> None:
    assert count_piece_vectors(samples) == published_length(samples)


def test_it_gives_as_many_vectors_as_it_says_piece_by_piece(folder: Path) -> None:
    ear = ear_of(folder)
    for seconds in (0.0, 0.001, 0.02, 0.0201, 1.0, 24.999, 25.0, 25.01, 51.3):
        samples = round(seconds * 16_000)
        wave = clip(seconds, seed=1)
        pieces = [wave[begin : begin + PIECE_SAMPLES] for begin in range(0, samples, PIECE_SAMPLES)]
        assert (
            len(ear.encode(wave))
            == ear.count_vectors(seconds)
            == sum(count_piece_vectors(len(piece)) for piece in pieces)
        )
    assert count_piece_vectors(PIECE_SAMPLES) == family_file.PIECE_VECTORS
    whole, first = ear.encode(clip(26.0, seed=2)), ear.encode(clip(26.0, seed=2)[:PIECE_SAMPLES])
    assert np.array_equal(whole[: family_file.PIECE_VECTORS], first)  # a piece is heard by itself


def test_weights_in_bfloat16_are_heard_in_float32(folder: Path, tmp_path: Path) -> None:
    small = write_checkpoint(tmp_path / "bf16", dtype=torch.bfloat16)
    wave = clip(0.3, seed=5)
    heard, expected = ear_of(small).encode(wave), naive_ear(small, wave.astype(np.float64))
    assert np.abs(heard - expected).max() < 1e-3
    assert np.abs(heard - ear_of(folder).encode(wave)).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter_stride": 4}, r"config\.json: audio_encoder_config\.adapter_stride must be 2: got 4"),
        ({"n_mels": 80}, r"config\.json: audio_encoder_config\.n_mels must be 128: got 80"),
        ({"n_audio_layer": None}, r"audio_encoder_config\.n_audio_layer must be a positive number: got None"),
        ({"n_audio_ctx": 1000}, r"n_audio_ctx must hold 25 seconds, 1251 places: got 1000"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ear_of(folder, **changes)


def test_a_checkpoint_without_its_encoder_is_refused_when_it_hears(folder: Path, tmp_path: Path) -> None:
    whole = load_file(folder / "model-00001-of-00002.safetensors") | load_file(
        folder / "model-00002-of-00002.safetensors"
    )
    kept = {n: t for n, t in whole.items() if "blocks.1.attn" not in n}
    save_file(kept, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({}))
    ear = ear_of(tmp_path)
    assert ear.count_vectors(1.0) == 13
    with pytest.raises(ValueError, match=r"lacks the audio encoder's tensor encoder\.blocks\.1\.attn_ln\.weight"):
        ear.encode(clip(1.0, seed=0))
    for wrong in (np.zeros((2, 9), np.float32), np.full(9000, np.nan, np.float32)):
        with pytest.raises(ValueError, match="wave must be"):
            ear.encode(wrong)
