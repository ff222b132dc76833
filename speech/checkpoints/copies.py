"""Weights that lie beside those that are read: the same model in another form, or another model?

transformers reads ``model.safetensors`` before ``pytorch_model.bin``, so what was saved as the latter into a
folder that held the former is another model than whoever saved it means.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from safetensors import safe_open

from speech.checkpoints.folder import TensorHeader, is_stale_weight_file, read_tensor_headers, weight_files

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


def unread_weights(path: Path, others: Collection[Path | None] = ()) -> list[str]:
    """Names in a checkpoint's folder that hold weights which nobody reads. ``others``: what is read besides
    the model's own.
    """
    read = {*weight_files(path), *others}
    return sorted(file.name for file in path.iterdir() if file not in read and is_stale_weight_file(file.name))


def check_copies(path: Path) -> None:
    """ValueError: a pytorch_model.bin has other values than the safetensors files that are read.

    Tensors are compared in the type of the latter; what only one of them has says nothing.
    """
    files = sorted(file for file in path.iterdir() if PICKLED.fullmatch(file.name) and is_zipfile(file))
    stored = read_tensor_headers(path) if files else {}
    for file in files:
        for name, tensor in _load_pickled_tensors(file).items():
            header = stored.get(name)
            if header is not None and not _is_same_tensor(header, name, tensor):
                rule = f"must hold the same weights as {header.file.name}, which is read: {name} differs"
                raise ValueError(f"{file}: {rule}; remove the older one")


def _load_pickled_tensors(file: Path) -> Mapping[str, "Tensor"]:
    """Plain tensors by name, in the file's pages until they are used; no code of the file is run."""
    import torch
    from torch._weights_only_unpickler import UnpicklingError

    try:
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{file}: must be readable beside the weights that are read, or removed: {reason}") from error
    tensors = loaded.items() if isinstance(loaded, dict) else ()
    return {str(name): tensor for name, tensor in tensors if isinstance(tensor, torch.Tensor)}


def _is_same_tensor(header: TensorHeader, name: str, other: "Tensor") -> bool:
    import torch

    with safe_open(str(header.file), framework="pt") as stored:
        mine: Tensor = stored.get_tensor(name)
    return mine.shape == other.shape and torch.equal(mine, other.to(mine.dtype))
