"""GLM-4-Voice's encoder: the same codes as an independent forward pass, whatever the length; bad folders refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional

from speech.codecs.whisper_vq import WhisperVQ
from speech.codecs.whisper_vq_model import build_block_causal_mask
from tests.helpers.codec_checkpoints import GLM4, write_glm4_tokenizer

FRAME = 1280


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glm4_tokenizer(tmp_path_factory.mktemp("glm4") / "tokenizer")


@pytest.fixture(scope="module")
def ear(folder: Path) -> WhisperVQ:
    return WhisperVQ(folder)


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones that come and go."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    tones = [np.sin(2 * np.pi * random.uniform(80, 4000) * time) for _ in range(4)]
    gates = [np.sin(2 * np.pi * random.uniform(0.5, 4) * time) > 0 for _ in tones]
    wave = sum(tone * gate for tone, gate in zip(tones, gates, strict=True)) / 10
    return (wave + random.normal(0, 0.003, len(time))).astype(np.float32)


def naive(folder: Path, wave: np.ndarray) -> list[int]:
    """One segment at most 30 s, in float64: written from the published code, without transformers' layers."""
    from transformers import WhisperFeatureExtractor

    w = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    extracted = extractor(
        [wave],
        sampling_rate=16_000,
        return_attention_mask=True,
        return_tensors="pt",
        padding="longest",
        pad_to_multiple_of=FRAME,
    )
    x = extracted.input_features[0].double()
    for conv, stride in (("conv1", 1), ("conv2", 2)):
        x = functional.conv1d(functional.pad(x, (2, 0)), w[f"{conv}.weight"], w[f"{conv}.bias"], stride=stride)
        x = functional.gelu(x)
    x = x.T + w["embed_positions.weight"][: x.shape[1]]
    steps, heads, block = len(x), GLM4["encoder_attention_heads"], GLM4["quantize_causal_block_size"]
    valid = extracted.attention_mask[0, ::2].bool()
    allowed = torch.zeros(steps, steps, dtype=torch.bool)
    for query in range(steps):
        for key in range(steps):
            allowed[query, key] = valid[key] and (key <= query or key // block == query // block)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    for layer in range(GLM4["quantize_position"]):
        name = f"layers.{layer}"
        normed = norm(x, f"{name}.self_attn_layer_norm")
        q, k, v = (linear(normed, f"{name}.self_attn.{part}_proj") for part in "qkv")
        width = q.shape[1] // heads
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            score = q[:, part] @ k[:, part].T / width**0.5
            mixed.append(score.masked_fill(~allowed, float("-inf")).softmax(dim=1) @ v[:, part])
        x = x + linear(torch.cat(mixed, dim=1), f"{name}.self_attn.out_proj")
        inner = functional.gelu(linear(norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"))
        x = x + linear(inner, f"{name}.fc2")
    codes = []
    for start in range(0, steps, 4):
        pooled = x[start : start + 4].mean(dim=0)
        if valid[start]:
            codes.append(int(((w["codebook.weight"] - pooled) ** 2).sum(dim=1).argmin()))
    return codes


@pytest.mark.parametrize("seconds", [0.05, 0.08, 1.0, 1.03, 2.41])
def test_codes_are_those_of_an_independent_forward_pass(ear: WhisperVQ, folder: Path, seconds: float) -> None:
    wave = speech(seconds)
    assert ear.encode(wave) == naive(folder, wave)


def test_the_micro_codes_differ_so_that_the_comparison_means_something(ear: WhisperVQ) -> None:
    assert len(set(ear.encode(speech(6.0)))) > 8


def test_rates_and_size_are_the_published_ones(ear: WhisperVQ) -> None:
    assert (ear.rate, ear.frame_rate, ear.size) == (16_000, 12.5, 64)


@settings(max_examples=15)
@given(samples=st.integers(0, 6 * FRAME))
def test_a_started_code_counts(ear: WhisperVQ, samples: int) -> None:
    assert len(ear.encode(speech(1.0)[:1] if samples == 1 else speech(samples / 16_000))) == -(-samples // FRAME)


def test_a_long_clip_is_cut_every_30_seconds_and_each_part_is_heard_alone(ear: WhisperVQ) -> None:
    wave = speech(30.5)
    codes = ear.encode(wave)
    assert len(codes) == 382
    assert codes[:375] == ear.encode(wave[:480_000])


def test_what_comes_later_than_the_block_changes_nothing_before_it(ear: WhisperVQ) -> None:
    block = GLM4["quantize_causal_block_size"] // 4  # in codes
    wave = speech(2.0) + np.where(np.arange(32_000) == 0, 0.9, 0).astype(np.float32)  # fixes the loudest bin
    other = wave.copy()
    other[2 * block * FRAME + 400 :] *= 0.5
    before, after = ear.encode(wave), ear.encode(other)
    assert before[: 2 * block] == after[: 2 * block]
    assert before != after


@given(steps=st.integers(1, 40), block=st.integers(1, 12))
def test_the_mask_is_triangle_or_own_block(steps: int, block: int) -> None:
    squares = torch.block_diag(
        *(torch.ones(min(block, steps - s), min(block, steps - s)) for s in range(0, steps, block))
    )
    wanted = torch.ones(steps, steps).tril().bool() | squares.bool()
    assert torch.equal(build_block_causal_mask(steps, block, torch.device("cpu")), wanted)


def test_a_checkpoint_saved_with_its_decoder_gives_the_same_codes(
    ear: WhisperVQ, folder: Path, tmp_path: Path
) -> None:
    whole = write_glm4_tokenizer(tmp_path / "whole", prefix="model.encoder.")
    assert WhisperVQ(whole).encode(speech(1.0)) == ear.encode(speech(1.0))


def test_a_checkpoint_in_shards_gives_the_same_codes(ear: WhisperVQ, folder: Path, tmp_path: Path) -> None:
    shards = write_glm4_tokenizer(tmp_path / "shards")
    tensors = load_file(shards / "model.safetensors")
    (shards / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(index.values()):
        save_file({name: tensors[name] for name in names if index[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert WhisperVQ(shards).encode(speech(1.0)) == ear.encode(speech(1.0))


def test_the_weights_are_read_with_the_first_clip(folder: Path) -> None:
    ear = WhisperVQ(folder)
    assert "_model" not in vars(ear)
    ear.encode(speech(0.1))
    assert "_model" in vars(ear)


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def without(tensor: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if n != tensor}, folder / "model.safetensors")

    return change


BAD: list[tuple[Callable[[Path], object], str]] = [
    (edit("config.json", d_model=0), r"config\.json: d_model must be a positive whole number: got 0"),
    (edit("config.json", encoder_attention_heads=3), r"config\.json: d_model must be a multiple of 3"),
    (edit("config.json", pooling_type="max"), r"config\.json: pooling_type must be avg: got max"),
    (edit("config.json", encoder_causal_convolution=False), "encoder_causal_convolution must be True"),
    (edit("config.json", quantize_causal_block_size=None), "quantize_causal_block_size must be a positive"),
    (edit("config.json", pooling_position=1), "pooling_position must be quantize_position 2: got 1"),
    (
        edit("config.json", max_source_positions=100),
        "max_source_positions must be at least 1500, 30 s: got 100",
    ),
    (
        edit("config.json", quantize_vocab_size=65),
        r"codebook\.weight must be there with the shape \(65, 16\)",
    ),
    (
        edit("preprocessor_config.json", sampling_rate=24_000),
        "rate mismatch: sampling_rate must be 16000: got 24000",
    ),
    (edit("preprocessor_config.json", feature_size=80), "feature_size must be 12: got 80"),
    (
        without("layers.1.fc1.weight"),
        r"layers\.1\.fc1\.weight must be there: config.json says quantize_position",
    ),
    (without("layers.0.fc1.weight"), r"layers\.0\.fc1\.weight must be there .*: got none"),
    (
        edit("config.json", quantize_position=10**9, pooling_position=10**9),
        r"layers\.999999999\.fc1\.weight must be",
    ),
    (lambda f: (f / "model.safetensors").unlink(), r"must hold model\.safetensors"),
    (
        lambda f: (f / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json: a checkpoint folder must",
    ),
]


@pytest.mark.parametrize(("change", "rule"), BAD)
def test_a_bad_folder_is_refused_when_it_is_named(change: Callable[[Path], object], rule: str, tmp_path: Path) -> None:
    bad = write_glm4_tokenizer(tmp_path / "bad")
    change(bad)
    with pytest.raises(ValueError, match=rule) as refused:
        WhisperVQ(bad)
    assert str(bad) in str(refused.value)
