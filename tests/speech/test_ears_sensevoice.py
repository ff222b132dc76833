"""The SenseVoice ear against the same written naively, and its filter banks against numbers of Kaldi's."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from speech.checkpoints.folder import weight_files
from speech.encoders import kaldi, sensevoice
from tests.helpers.micro_vita_audio import HEARS, HIDDEN, write_checkpoint

Array = NDArray[np.float64]

# kaldi_native_fbank 1.23.0 on ``chirp()``: hamming, no dither, 80 bins, samples times 32768
COLUMNS = (0, 7, 20, 40, 60, 79)
KALDI = {
    0: (11.8922, 13.7897, 13.9416, 13.0832, 14.4759, 13.0850),
    11: (13.5274, 14.8537, 13.6669, 12.2392, 17.0320, 13.4716),
    22: (13.6171, 14.8536, 13.6242, 13.3458, 16.6655, 12.1012),
}


def chirp() -> NDArray[np.float32]:
    t = np.arange(4000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.1 * np.sin(2 * np.pi * 3000 * t * (1 + t))
    return wave.astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("ear") / "plus", "plus")


def naive_fbank(wave: NDArray[np.float32]) -> Array:
    """Bin by bin and sample by sample, from the definition of the transform and of the mel scale."""
    rows = []
    for begin in range(0, len(wave) - 400 + 1, 160):
        frame = [float(x) * 32768 for x in wave[begin : begin + 400]]
        mean = sum(frame) / 400
        frame = [x - mean for x in frame]
        frame = [x - 0.97 * frame[max(i - 1, 0)] for i, x in enumerate(frame)]
        frame = [x * (0.54 - 0.46 * math.cos(2 * math.pi * i / 399)) for i, x in enumerate(frame)]
        turns = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(400)) / 512)
        power = np.abs(turns @ np.array(frame)) ** 2
        low, high = (1127 * math.log(1 + f / 700) for f in (20, 8000))
        row = []
        for mel in range(80):
            left, middle, right = (low + (high - low) * (mel + k) / 81 for k in range(3))
            energy = 0.0
            for k in range(256):
                at = 1127 * math.log(1 + k * 31.25 / 700)
                if left < at < right:
                    rises = (at - left) / (middle - left) if at <= middle else (right - at) / (right - middle)
                    energy += rises * power[k]
            row.append(math.log(max(energy, 1.1920929e-07)))
        rows.append(row)
    return np.array(rows)


def test_filter_banks_are_kaldis() -> None:
    fbank = kaldi.compute_fbank(chirp())
    assert fbank.shape == (23, 80)
    for frame, numbers in KALDI.items():
        assert fbank[frame, list(COLUMNS)] == pytest.approx(numbers, abs=2e-4)


def test_filter_banks_are_those_of_the_definition() -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 800).astype(np.float32)
    assert np.abs(kaldi.compute_fbank(wave) - naive_fbank(wave)).max() <= 1e-5
    silence = kaldi.compute_fbank(np.zeros(400, np.float32))
    assert np.isfinite(silence).all() and (silence == silence[0, 0]).all()


@given(frames=st.integers(1, 40))
def test_low_rate_frames_hold_seven_neighbours_of_every_sixth_and_repeat_the_ends(frames: int) -> None:
    features = np.arange(frames, dtype=np.float32)[:, None] + np.zeros(80, np.float32)
    actual = kaldi.stack_low_rate_frames(features)[:, ::80]
    wanted = [[min(max(6 * i + k, 0), frames - 1) for k in range(-3, 4)] for i in range(math.ceil(frames / 6))]
    assert actual.tolist() == wanted


@given(samples=st.integers(400, 20_000))
def test_the_length_of_a_clip_is_known_before_it_is_heard(samples: int) -> None:
    features = kaldi.stack_low_rate_frames(np.zeros((1 + (samples - 400) // 160, 80), np.float32))
    assert kaldi.count_low_rate_frames(samples) == len(features)


def naive_hear(folder: Path, wave: NDArray[np.float32]) -> Array:
    """The encoder and the projector, head by head and tap by tap, in float64."""
    tensors: dict[str, Any] = {}
    for file in weight_files(folder):
        tensors |= {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
    enc = {n.removeprefix("model.audio_model.model."): t for n, t in tensors.items()}
    shift, scale = (np.array([start + n / 1000 for n in range(560)]) for start in (-9.0, 0.1))

    def norm(x: Array, name: str, of: dict[str, Any] = enc) -> Array:
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return np.asarray(scaled * of[f"{name}.weight"] + of[f"{name}.bias"])

    def layer(x: Array, name: str) -> Array:
        fused = norm(x, f"{name}.norm1") @ enc[f"{name}.self_attn.linear_q_k_v.weight"].T
        fused = fused + enc[f"{name}.self_attn.linear_q_k_v.bias"]
        q, k, v = fused[:, :HEARS], fused[:, HEARS : 2 * HEARS], fused[:, 2 * HEARS :]
        mixed, d = np.zeros_like(v), HEARS // 4
        for head in range(4):
            at = slice(head * d, head * d + d)
            for i in range(len(x)):
                scores = np.array([q[i, at] @ k[j, at] / math.sqrt(d) for j in range(len(x))])
                weights = np.exp(scores - scores.max())
                mixed[i, at] = weights @ v[:, at] / weights.sum()
        kernel = enc[f"{name}.self_attn.fsmn_block.weight"]
        memory = v.copy()
        for i in range(len(x)):
            for tap in range(11):
                if 0 <= i + tap - 5 < len(x):
                    memory[i] += kernel[:, 0, tap] * v[i + tap - 5]
        mixed = mixed @ enc[f"{name}.self_attn.linear_out.weight"].T + enc[f"{name}.self_attn.linear_out.bias"]
        y = mixed + memory + (x if x.shape == memory.shape else 0)
        inner = norm(y, f"{name}.norm2") @ enc[f"{name}.feed_forward.w_1.weight"].T
        inner = np.maximum(inner + enc[f"{name}.feed_forward.w_1.bias"], 0)
        return np.asarray(y + inner @ enc[f"{name}.feed_forward.w_2.weight"].T + enc[f"{name}.feed_forward.w_2.bias"])

    features = (kaldi.stack_low_rate_frames(kaldi.compute_fbank(wave)) + shift) * scale
    x = np.concatenate([enc["embed.weight"][[0, 1, 2, 15]], features]) * math.sqrt(HEARS)
    for i in range(len(x)):
        for j in range(280):
            angle = (i + 1) * math.exp(-j * math.log(10000) / 279)
            x[i, j], x[i, 280 + j] = x[i, j] + math.sin(angle), x[i, 280 + j] + math.cos(angle)
    for name in ("encoders0.0", "encoders.0", "encoders.1"):
        x = layer(x, f"encoder.{name}")
    x = layer(norm(x, "encoder.after_norm"), "encoder.tp_encoders.0")
    x = norm(norm(x, "encoder.tp_norm"), "model.audio_projection.pre_proj_layernorm", tensors)
    inner = x @ tensors["model.audio_projection.mlp.0.weight"].T
    gelu = np.vectorize(lambda item: item * (1 + math.erf(item / math.sqrt(2))) / 2)
    return np.asarray(gelu(inner) @ tensors["model.audio_projection.mlp.2.weight"].T)


def test_vectors_are_those_of_the_naive_encoder(folder: Path) -> None:
    ear = sensevoice.load_sensevoice(folder, folder)
    wave = np.random.default_rng(1).normal(0, 0.1, 6000).astype(np.float32)
    vectors, expected = ear.encode(wave), naive_hear(folder, wave)
    assert vectors.shape == expected.shape == (ear.count_vectors(6000 / 16000), HIDDEN)
    assert np.abs(vectors - expected).max() <= 1e-4 * np.abs(expected).max()
    assert ear.sample_rate == 16000 and vectors.dtype == np.float32


def test_what_cannot_be_heard_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    ear = sensevoice.load_sensevoice(folder, folder)
    with pytest.raises(ValueError, match=r"audio must last at least 25 ms: got 399 samples"):
        ear.encode(np.zeros(399, np.float32))
    with pytest.raises(ValueError, match=r"at least 25 ms"):
        ear.count_vectors(0.01)
    with pytest.raises(ValueError, match=r"am\.mvn: the folder of the audio encoder must hold this file"):
        sensevoice.load_sensevoice(folder, tmp_path)
    (tmp_path / "am.mvn").write_text("<AddShift> 2 2\n<LearnRateCoef> 0 [ 1 nan ]\n")
    with pytest.raises(ValueError, match=r"am\.mvn: <AddShift> must hold 560 numbers: got 2"):
        sensevoice.load_sensevoice(folder, tmp_path)
    deaf = write_checkpoint(tmp_path / "boost")
    with pytest.raises(
        ValueError, match=r"boost: lacks the audio encoder's tensor model\.audio_projection\.mlp\.2\.weight"
    ):
        sensevoice.load_sensevoice(deaf, folder)
