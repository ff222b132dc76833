"""A weight buffer arrives whole and unchanged, or nothing of it is used."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rollout.engine import WeightManifest
from rollout.weights import (
    BUFFER_ALIGNMENT,
    check_finite_weights,
    check_weight_layout,
    compute_weight_digest,
    pack_weights,
    unpack_weights,
)
from speech.checkpoints.folder import weight_files

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
MODELS = st.lists(st.tuples(SHAPES, DTYPES), min_size=1, max_size=6)


def model_of(columns: list[tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(columns))
    return {
        f"layer.{i}": torch.randn(shape, generator=generator).to(dtype) for i, (shape, dtype) in enumerate(columns)
    }


@given(columns=MODELS, version=st.integers(0, 2**40))
def test_unpack_gives_back_names_shapes_dtypes_and_every_bit(
    columns: list[tuple[tuple[int, ...], torch.dtype]], version: int
) -> None:
    model = model_of(columns)
    manifest, buffer = pack_weights(model.items(), version)
    weights = dict(unpack_weights(manifest, buffer))
    assert manifest.version == version
    assert list(weights) == list(model)
    for name, tensor in model.items():
        assert weights[name].dtype == tensor.dtype and weights[name].shape == tensor.shape
        assert torch.equal(
            weights[name].view(torch.uint8) if tensor.ndim else weights[name],
            tensor.view(torch.uint8) if tensor.ndim else tensor,
        )


@given(columns=MODELS)
def test_every_tensor_starts_at_a_multiple_of_64_bytes_and_packing_is_deterministic(
    columns: list[tuple[tuple[int, ...], torch.dtype]],
) -> None:
    model = model_of(columns)
    manifest, buffer = pack_weights(model.items(), 1)
    assert buffer.size == sum(
        -(-t.numel() * t.element_size() // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT for t in model.values()
    )
    base = torch.from_numpy(buffer).data_ptr()
    assert all((t.data_ptr() - base) % BUFFER_ALIGNMENT == 0 for _, t in unpack_weights(manifest, buffer) if t.numel())
    again, same = pack_weights(model.items(), 1)
    assert again == manifest and np.array_equal(same, buffer)


@given(columns=MODELS, data=st.data())
def test_any_flipped_bit_is_refused(columns: list[tuple[tuple[int, ...], torch.dtype]], data: st.DataObject) -> None:
    manifest, buffer = pack_weights(model_of(columns).items(), 1)
    if buffer.size:
        buffer[data.draw(st.integers(0, buffer.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(ValueError, match="digest"):
            unpack_weights(manifest, buffer)


@given(columns=MODELS, cut=st.integers(1, 200))
def test_a_buffer_of_another_size_is_refused(columns: list[tuple[tuple[int, ...], torch.dtype]], cut: int) -> None:
    manifest, buffer = pack_weights(model_of(columns).items(), 1)
    with pytest.raises(ValueError, match="bytes"):
        unpack_weights(manifest, np.concatenate([buffer, np.zeros(cut, np.uint8)]))
    if buffer.size:
        with pytest.raises(ValueError, match="bytes"):
            unpack_weights(manifest, buffer[:-cut])


def two() -> tuple[WeightManifest, np.ndarray]:
    return pack_weights({"a": torch.ones(2, 3), "b": torch.zeros(3, 2)}.items(), 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ("b", "a")}, "digest"),
        ({"names": ("a", "a")}, "unique name"),
        ({"names": ("a",)}, "1 names"),
        ({"shapes": ((3, 2), (3, 2))}, "digest"),
        ({"shapes": ((2, 3), (9, 9))}, "bytes"),
        ({"dtypes": ("float32", "float64")}, "b is float64"),
        ({"dtypes": ("bfloat16", "float32")}, "digest"),
        ({"version": 5}, "version 5"),
        ({"digest": "0" * 64}, "digest"),
    ],
)
def test_an_edited_manifest_is_refused_with_what_differs(change: dict[str, object], said: str) -> None:
    manifest, buffer = two()
    with pytest.raises(ValueError, match=said):
        unpack_weights(dataclasses.replace(manifest, **change), buffer)


def test_a_buffer_of_another_type_is_refused() -> None:
    manifest, buffer = two()
    with pytest.raises(ValueError, match="uint8"):
        unpack_weights(manifest, buffer.view(np.int8))
    with pytest.raises(ValueError, match="shape"):
        unpack_weights(manifest, buffer.reshape(2, -1))


def test_a_read_only_buffer_is_read_without_a_copy() -> None:
    manifest, buffer = two()
    buffer.flags.writeable = False
    assert next(iter(unpack_weights(manifest, buffer)))[1].data_ptr() == buffer.ctypes.data


def test_only_float32_and_bfloat16_travel_and_names_are_unique() -> None:
    with pytest.raises(ValueError, match="steps is int64"):
        pack_weights([("steps", torch.ones(1, dtype=torch.int64))], 1)
    with pytest.raises(ValueError, match=r"\['a'\] came twice"):
        pack_weights([("a", torch.ones(1)), ("a", torch.ones(1))], 1)


def test_strided_tensors_are_packed_in_row_major_order() -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    assert torch.equal(dict(unpack_weights(*pack_weights([("t", tensor)], 0)))["t"], tensor)


def test_layouts_that_differ_are_refused_by_name() -> None:
    manifest, _ = two()
    check_weight_layout(manifest, {"a": (2, 3), "b": (3, 2)})
    check_weight_layout(manifest, {"a": (2, 3), "b": (3, 2), "head": (1, 1)}, optional={"head"})
    with pytest.raises(ValueError, match=r"lacks 1 .*head"):
        check_weight_layout(manifest, {"a": (2, 3), "b": (3, 2), "head": (1, 1)})
    with pytest.raises(ValueError, match="has not: b"):
        check_weight_layout(manifest, {"a": (2, 3)})
    with pytest.raises(ValueError, match=r"b must have shape \(2, 3\)"):
        check_weight_layout(manifest, {"a": (2, 3), "b": (2, 3)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, dtype: torch.dtype) -> None:
    bad = torch.zeros(4, dtype=dtype)
    bad[2] = value
    with pytest.raises(ValueError, match="finite: bad"):
        check_finite_weights(*pack_weights([("fine", torch.ones(2)), ("bad", bad)], 1))


def test_large_finite_weights_pass() -> None:
    check_finite_weights(*pack_weights([("large", torch.full((4,), 3e38))], 1))


def test_an_indexed_checkpoint_is_read_from_the_files_that_its_index_names(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"must hold one\.safetensors"):
        weight_files(tmp_path)
    for name in ("one.safetensors", "two.safetensors", "three.safetensors", "config.json"):
        (tmp_path / name).touch()
    assert [file.name for file in weight_files(tmp_path)] == ["one.safetensors", "two.safetensors"]


def test_the_digest_does_not_depend_on_the_process() -> None:
    weight_digest = compute_weight_digest(1, ["a"], ["float32"], [(1,)], np.zeros(64, np.uint8))
    assert weight_digest == compute_weight_digest(1, ("a",), ("float32",), ((1,),), np.zeros(64, np.uint8))
    assert len(weight_digest) == 64
