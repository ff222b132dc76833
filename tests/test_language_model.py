"""A checkpoint's language model: every tensor of the folder finds its place in the module, and back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conf.schema import ModelConfig
from rollout.language_model import apart, checkpoint_layout, load_language_model, together
from speech.families import load_family
from speech.families.base import Family, Names

STACKED = Names(
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
    layout, optional = checkpoint_layout(family)
    assert layout["lm_head.weight"] == layout["model.embed_tokens.weight"]
    assert optional == {"lm_head.weight"}  # tied: not in the file
    assert not any("codebook" in name for name in layout)


def test_the_first_rule_that_matches_holds_and_what_none_matches_is_not_the_models() -> None:
    assert STACKED.parts("encoder.layers.0.weight") == () == STACKED.parts("elsewhere")
    assert STACKED.parts("blocks.12.qkv") == ("layers.12.q", "layers.12.k", "layers.12.v")
    assert STACKED.parts("top.norm") == ("model.norm",)
    assert Names().parts("anything") == ("anything",)


def test_engines_do_not_run_what_is_unsampled() -> None:
    names = replace(STACKED, unsampled=r"top\.extra.*")
    assert names.parts("top.extra.0") and not names.sampled("top.extra.0")
    assert names.sampled("top.norm") and not names.sampled("encoder.layers.0.weight")


@given(heights=st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_a_stack_comes_apart_and_together_again(heights: list[int]) -> None:
    parts = STACKED.parts("blocks.0.qkv")
    module = {part: torch.randn(height, 2) for part, height in zip(parts, heights, strict=True)}
    stacked = together(STACKED, "blocks.0.qkv", module.__getitem__)
    assert stacked.shape == (sum(heights), 2)
    found = dict(apart(STACKED, "blocks.0.qkv", stacked, module))
    assert all(torch.equal(found[part], module[part]) for part in parts)
    with pytest.raises(ValueError, match=r"blocks\.0\.qkv must have"):
        list(apart(STACKED, "blocks.0.qkv", stacked[1:], module))


def test_the_module_holds_the_folders_numbers_and_reads_no_other_tensors(
    family: Family, tmp_path: Path
) -> None:
    stored = load_file(family.path / "model.safetensors")
    folder = tmp_path / "renamed"
    folder.mkdir()
    (folder / "config.json").write_text((family.path / "config.json").read_text())
    save_file(
        {"top." + name: tensor for name, tensor in stored.items()} | {"encoder.0": torch.ones(1)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    names = Names(((r"top\.(.*)", (r"\1",)),))
    module = load_language_model(replace(family, path=folder, names=names))
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_a_folder_that_lacks_a_tensor_or_has_one_too_many_is_refused(family: Family) -> None:
    lacking = Names(((r"model\.norm\.weight", ()), (r".*", (r"\g<0>",))))
    with pytest.raises(ValueError, match=r"lacks 1 of the model's tensors: model\.norm\.weight"):
        load_language_model(replace(family, names=lacking))
    unknown = Names(((r"model\.norm\.weight", (r"\g<0>", "model.second")), (r".*", (r"\g<0>",))))
    with pytest.raises((ValueError, KeyError)):
        load_language_model(replace(family, names=unknown))


def test_what_goes_over_a_gpu_transport_has_the_checkpoints_names_and_shapes(family: Family) -> None:
    from rollout.vllm_transfer import CheckpointSource

    module = load_language_model(family)
    source = CheckpointSource(module, family)
    stored = load_file(family.path / "model.safetensors")
    sent = dict(source)
    assert {one.name: tuple(one.shape) for one in source.metadata()} == {
        n: tuple(t.shape) for n, t in sent.items()
    }
    assert sent.keys() == stored.keys()
    assert all(torch.equal(sent[name], tensor.float()) for name, tensor in stored.items())
