"""Weights as one flat buffer: how a whole model travels from the learner to an engine.

    | tensor 0 | pad | tensor 1 | pad | ...      every tensor starts at a multiple of 64 bytes

Invariant: nothing is loaded from a buffer that was not checked whole. The digest covers the buffer *and*
its layout (version, names, dtypes, shapes), so that a manifest edited on the way is refused like a flipped
bit; ``check_weight_layout`` then holds names and shapes against what the receiving model is made of.
"""

import hashlib
import json
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rollout.engine import WeightManifest

BUFFER_ALIGNMENT = 64  # bytes: a cache line, and what plasma and numpy views of any dtype need
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Ray's buffers are read-only on purpose, and nothing here writes through a view.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

WeightBuffer = NDArray[np.uint8]
WeightLayout = Mapping[str, tuple[int, ...]]


def pack_weights(tensors: Iterable[tuple[str, Tensor]], version: int) -> tuple[WeightManifest, WeightBuffer]:
    """Copy tensors (any device) into one buffer and describe it.

    ValueError: another dtype than float32 or bfloat16, a name twice.
    """
    named = [(name, tensor.detach()) for name, tensor in tensors]
    names = tuple(name for name, _ in named)
    dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for _, tensor in named)
    shapes = tuple(tuple(tensor.shape) for _, tensor in named)
    if len(set(names)) != len(names):
        raise ValueError(f"weight names must be unique: {sorted({n for n in names if names.count(n) > 1})} came twice")
    spans, size = _compute_tensor_spans(names, dtypes, shapes)
    buffer = np.zeros(size, dtype=np.uint8)  # padding is part of the digest: it must not be whatever was in memory
    flat = torch.from_numpy(buffer)
    for (_, tensor), (start, stop) in zip(named, spans, strict=True):
        flat[start:stop].copy_(tensor.contiguous().reshape(-1).view(torch.uint8))
    return (
        WeightManifest(
            version=version,
            names=names,
            dtypes=dtypes,
            shapes=shapes,
            digest=compute_weight_digest(version, names, dtypes, shapes, buffer),
        ),
        buffer,
    )


def unpack_weights(manifest: WeightManifest, buffer: WeightBuffer) -> Iterator[tuple[str, Tensor]]:
    """Check the buffer, then yield (name, view into it). Views are read-only when the buffer is.

    ValueError (at the call, before anything is yielded): columns, dtype, size or digest differ.
    """
    check_weight_buffer(manifest, buffer)
    return view_tensors(manifest, buffer)


def check_weight_buffer(manifest: WeightManifest, buffer: WeightBuffer) -> None:
    """Size and digest. ValueError naming what differs. Holds no lock while it hashes (about 1-2 GB/s)."""
    columns = {len(manifest.names), len(manifest.dtypes), len(manifest.shapes)}
    if len(columns) != 1 or len(set(manifest.names)) != len(manifest.names):
        raise ValueError(
            "a weight manifest needs one dtype and one shape per unique name: "
            f"got {len(manifest.names)} names, {len(manifest.dtypes)} dtypes, {len(manifest.shapes)} shapes"
        )
    _, size = _compute_tensor_spans(manifest.names, manifest.dtypes, manifest.shapes)
    if buffer.dtype != np.uint8 or buffer.ndim != 1 or buffer.size != size:
        raise ValueError(f"weight buffer must be {size} bytes (uint8): got {buffer.dtype} of shape {buffer.shape}")
    actual_digest = compute_weight_digest(manifest.version, manifest.names, manifest.dtypes, manifest.shapes, buffer)
    if actual_digest != manifest.digest:
        raise ValueError(
            f"weight digest must be {manifest.digest[:16]}… (version {manifest.version}): got {actual_digest[:16]}…"
        )


def check_weight_layout(manifest: WeightManifest, expected: WeightLayout, optional: Collection[str] = ()) -> None:
    """Names and shapes against the receiving model's; ``optional`` names may be absent (a tied head).

    ValueError naming the first differences.
    """
    sent = dict(zip(manifest.names, manifest.shapes, strict=True))
    if missing := sorted(set(expected) - set(sent) - set(optional)):
        raise ValueError(f"weight update lacks {len(missing)} of the model's tensors: {', '.join(missing[:3])}")
    if unknown := sorted(set(sent) - set(expected)):
        raise ValueError(
            f"weight update holds {len(unknown)} tensors that the model has not: {', '.join(unknown[:3])}"
        )
    wrong = [name for name, shape in sent.items() if tuple(shape) != tuple(expected[name])]
    if wrong:
        raise ValueError(
            f"{wrong[0]} must have shape {expected[wrong[0]]}: got {sent[wrong[0]]} ({len(wrong)} differ)"
        )


def check_finite_weights(manifest: WeightManifest, buffer: WeightBuffer) -> None:
    """ValueError naming a tensor with a NaN or infinity: it would outlive its weights in KV blocks."""
    for name, tensor in view_tensors(manifest, buffer):
        # A sum is one pass and spreads any NaN or infinity; only a suspicious one pays for the exact test.
        if not torch.isfinite(tensor.sum(dtype=torch.float32)) and not torch.isfinite(tensor).all():
            raise ValueError(f"weights must be finite: {name} (version {manifest.version}) is not")


def view_tensors(manifest: WeightManifest, buffer: WeightBuffer) -> Iterator[tuple[str, Tensor]]:
    """(name, view into the buffer) of a buffer that was checked before."""
    spans, _ = _compute_tensor_spans(manifest.names, manifest.dtypes, manifest.shapes)
    for name, dtype, shape, (start, stop) in zip(manifest.names, manifest.dtypes, manifest.shapes, spans, strict=True):
        part = (
            torch.frombuffer(buffer, dtype=torch.uint8, count=stop - start, offset=start)
            if stop > start
            else torch.empty(0, dtype=torch.uint8)
        )
        yield name, part.view(TORCH_DTYPES[dtype]).view(shape)


def compute_weight_digest(
    version: int,
    names: Sequence[str],
    dtypes: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    buffer: WeightBuffer,
) -> str:
    """sha256 over the layout (as JSON) and the buffer, in hexadecimal."""
    layout = json.dumps([version, list(names), list(dtypes), [list(shape) for shape in shapes]], separators=(",", ":"))
    hasher = hashlib.sha256(layout.encode())
    hasher.update(np.ascontiguousarray(buffer).data)
    return hasher.hexdigest()


def _compute_tensor_spans(
    names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[list[tuple[int, int]], int]:
    """[start, stop) of every tensor, and the buffer's size, in bytes."""
    spans: list[tuple[int, int]] = []
    offset = 0
    for name, dtype, shape in zip(names, dtypes, shapes, strict=True):
        if dtype not in TORCH_DTYPES:
            raise ValueError(f"weights travel as {' or '.join(TORCH_DTYPES)}: {name} is {dtype}")
        stop = offset + int(np.prod(shape, dtype=np.int64)) * TORCH_DTYPES[dtype].itemsize
        spans.append((offset, stop))
        offset = -(-stop // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT
    return spans, offset
