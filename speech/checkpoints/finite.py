"""Are the numbers in a folder's weight files numbers? Read once, piece by piece, whatever the model's size.

A NaN or an infinity in a weight is in every logit after it, and in every weight after the first update.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from torch import Tensor

PIECE_NUMBERS = 1 << 24  # numbers that are in memory at a time
EXPONENT_BITS = {  # by type: integers of its width, and which of their bits are the exponent's
    "F64": ("int64", 0x7FF0_0000_0000_0000),
    "F32": ("int32", 0x7F80_0000),
    "F16": ("int16", 0x7C00),
    "BF16": ("int16", 0x7F80),
}


def check_tensors_finite(file: Path) -> None:
    """ValueError naming a tensor of a safetensors file that holds a NaN or an infinity.

    A file that was looked at before, and is as it was, is not read again.
    """
    stat = file.resolve().stat()
    try:
        broken = _find_broken_tensor(file.resolve(), stat.st_size, stat.st_mtime_ns)
    except SafetensorError as error:
        raise ValueError(f"{file}: must be a whole safetensors file: {error}") from error
    if broken:
        raise ValueError(f"{file}: weights must be finite: {broken} holds a NaN or an infinity")


@lru_cache(maxsize=4096)
def _find_broken_tensor(file: Path, size: int, changed: int) -> str | None:
    """The first such tensor."""
    with safe_open(str(file), framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - not a mapping
            type = stored.get_slice(name).get_dtype()
            if type in EXPONENT_BITS and not all(_is_finite(piece, type) for piece in _iterate_pieces(stored, name)):
                return str(name)
    return None


def _iterate_pieces(stored: Any, name: str) -> Iterator["Tensor"]:
    """A tensor, some rows at a time."""
    tensor = stored.get_slice(name)
    shape = tensor.get_shape()
    if not shape:
        yield stored.get_tensor(name)
        return
    step = max(1, PIECE_NUMBERS // max(1, prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield tensor[start : start + step]


def _is_finite(piece: "Tensor", type: str) -> bool:
    """Exact: a NaN or an infinity is what has all bits of its exponent set."""
    import torch

    bits, exponent = EXPONENT_BITS[type]
    whole = piece.view(getattr(torch, bits))
    return not piece.numel() or int((whole & exponent).max()) != exponent
