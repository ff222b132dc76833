"""A checkpoint's language model: every tensor of the folder finds its place in the module, and back."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM

from conf.schema import ModelConfig
from rollout.language_model import read_checkpoint_layout, stack_parts, unstack_parts
from rollout.loading import UnfilledModel, load_language_model
from speech.checkpoints.tensor_names import TensorNameMap
from speech.families import load_family
from speech.families.base import Family

ROOT = Path(__file__).parents[2]
STACKED = TensorNameMap(
    (
        (r"encoder\..*", ()),
        (r"blocks\.(\d+)\.qkv", (r"layers.\1.q", r"layers.\1.k", r"layers.\1.v")),
        (r"top\.(.*)", (r"model.\1",)),
    )
)


@pytest.fixture
def family(micro_checkpoint: Path) -> Family:
    return load_family(ModelConfig(path=micro_checkpoint))


def test_the_layout_is_that_of_the_model_and_not_of_the_codec_beside_it(family: Family) -> None:
    layout, optional = read_checkpoint_layout(family)
    assert layout["lm_head.weight"] == layout["model.embed_tokens.weight"]
    assert optional == {"lm_head.weight"}  # tied: not in the file
    assert not any("codebook" in name for name in layout)


def test_the_first_rule_that_matches_holds_and_what_none_matches_keeps_its_name() -> None:
    assert STACKED.module_names("encoder.layers.0.weight") == () and STACKED.module_names("elsewhere") == (
        "elsewhere",
    )
    assert STACKED.module_names("blocks.12.qkv") == ("layers.12.q", "layers.12.k", "layers.12.v")
    assert STACKED.module_names("top.norm") == ("model.norm",)
    assert TensorNameMap().module_names("anything") == ("anything",)


def test_engines_do_not_run_what_is_unsampled() -> None:
    names = replace(STACKED, unsampled=r"top\.extra.*")
    assert names.module_names("top.extra.0") and not names.is_sampled("top.extra.0")
    assert names.is_sampled("top.norm") and not names.is_sampled("encoder.layers.0.weight")


@given(heights=st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_a_stack_comes_apart_and_together_again(heights: list[int]) -> None:
    parts = STACKED.module_names("blocks.0.qkv")
    module = {part: torch.randn(height, 2) for part, height in zip(parts, heights, strict=True)}
    stacked = stack_parts(STACKED, "blocks.0.qkv", module.__getitem__)
    assert stacked.shape == (sum(heights), 2)
    actual = dict(unstack_parts(STACKED, "blocks.0.qkv", stacked, module))
    assert all(torch.equal(actual[part], module[part]) for part in parts)
    with pytest.raises(ValueError, match=r"blocks\.0\.qkv must have"):
        list(unstack_parts(STACKED, "blocks.0.qkv", stacked[1:], module))


def test_the_module_holds_the_folders_numbers_and_reads_no_other_tensors(family: Family, tmp_path: Path) -> None:
    stored = load_file(family.path / "model.safetensors")
    folder = tmp_path / "renamed"
    folder.mkdir()
    (folder / "config.json").write_text((family.path / "config.json").read_text())
    save_file(
        {"top." + name: tensor for name, tensor in stored.items()} | {"encoder.0": torch.ones(1)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    names = TensorNameMap(((r"top\.(.*)", (r"\1",)), (r"encoder\..*", ())))
    module = load_language_model(replace(family, path=folder, tensor_names=names))
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_a_folder_that_lacks_a_tensor_or_has_one_too_many_is_refused(family: Family) -> None:
    lacking = TensorNameMap(((r"model\.norm\.weight", ()),))
    with pytest.raises(ValueError, match=r"lacks 1 of the model's tensors: model\.norm\.weight"):
        load_language_model(replace(family, tensor_names=lacking))
    unknown = TensorNameMap(((r"model\.norm\.weight", (r"\g<0>", "model.second")),))
    with pytest.raises(ValueError, match=r"has 1 tensors that a tiny model has not: model\.second"):
        load_language_model(replace(family, tensor_names=unknown))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_once_and_buffers_are_those_of_a_module_made_whole(
    family: Family, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Stored in 16 bits, in another format than either that is asked for."""
    folder = shutil.copytree(family.path, tmp_path / "half")
    stored = {n: t.half() for n, t in load_file(family.path / "model.safetensors").items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    module = load_language_model(replace(family, path=folder), dtype=dtype)
    whole = Qwen2ForCausalLM(module.config)
    state = dict(module.named_parameters())
    assert state.keys() == stored.keys() and not module.training
    assert all(torch.equal(state[name], tensor.to(dtype)) for name, tensor in stored.items())
    assert all(value.is_contiguous() and value.requires_grad for value in state.values())
    buffers = dict(module.named_buffers())
    assert buffers and all(b.dtype == torch.float32 for b in buffers.values())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in whole.named_buffers())


def test_a_part_is_filled_alone_and_a_tied_head_with_its_embedding(family: Family) -> None:
    unfilled = UnfilledModel(family, attention="sdpa")
    lm = unfilled.lm
    assert all(item.is_meta for item in lm.parameters())
    first, *others = lm.model.layers
    unfilled.fill(first)
    assert not any(item.is_meta for item in first.parameters())
    assert all(item.is_meta for item in (*others[0].parameters(), lm.lm_head.weight))
    unfilled.fill(lm.lm_head)
    assert lm.model.embed_tokens.weight is lm.lm_head.weight and not lm.lm_head.weight.is_meta


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**9}, r"must have the shape \(\d+, 10{9}\)"),
        ({"hidden_size": 10**18}, "no model of this config: "),
        ({"vocab_size": 10**12}, r"must have the shape \(10{12}, \d+\)"),
        ({"intermediate_size": 10**12}, r"mlp\.\w+\.weight must have the shape"),
        ({"intermediate_size": -1}, "no model of this config: "),
        ({"num_attention_heads": 0}, "no model of this config: "),
        ({"num_key_value_heads": 10**12}, r"self_attn\.k_proj\.\w+ must have the shape"),
        ({"hidden_size": "wide"}, "no model of this config: "),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_taken(
    family: Family, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_language_model(replace(family, backbone={**family.backbone, **change}))
    assert str(family.path) in str(caught.value) and "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_goes_over_a_gpu_transport_is_the_checkpoint_in_the_engines_type(
    family: Family, dtype: torch.dtype
) -> None:
    from rollout.vllm_transfer import CheckpointSource

    source = CheckpointSource(load_language_model(family), family, dtype)
    stored = load_file(family.path / "model.safetensors")
    sent = dict(source)
    described = {item.name: (item.dtype, tuple(item.shape)) for item in source.metadata()}
    assert described == {name: (dtype, tuple(tensor.shape)) for name, tensor in sent.items()}
    assert sent.keys() == stored.keys()
    assert all(torch.equal(sent[name], tensor.float().to(dtype)) for name, tensor in stored.items())


def test_no_protocol_is_asked_at_run_time_what_a_model_is() -> None:
    """Since Python 3.12 such a question does not see a submodule of a torch module, and answers no."""
    packages = ("actors", "commands", "store", "conf", "judge", "learner", "report", "rollout", "speech")
    sources = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    assert sources and not [str(file) for file in sources if "runtime_checkable" in file.read_text()]
