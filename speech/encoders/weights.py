"""Frozen weights: the tensors of an encoder, read once, in float32, on the GPU where there is one.

A layer without a module of its own is a function of its input, the weights and its name among them.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from speech.checkpoints.folder import read_tensor_shapes, weight_files


class FrozenWeights(dict[str, Tensor]):
    """Every tensor of a checkpoint whose name begins with ``prefix``, under the rest of its name.

    Example:
        weights = FrozenWeights(folder, "adapter.")
        y = apply_linear(x.to(weights.device), weights, "linear1")  # adapter.linear1.weight and .bias
    """

    def __init__(self, path: Path, prefix: str) -> None:
        """ValueError: no checkpoint folder, or a file that is cut short."""
        super().__init__()
        self._path, self._prefix = path, prefix
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for file in weight_files(path):
            try:
                self.update(_read_tensors(file, prefix, self.device))
            except SafetensorError as error:
                raise ValueError(f"{file}: must be a whole safetensors file: {error}") from error

    def __missing__(self, name: str) -> Tensor:
        raise _missing_tensor_error(self._path, self._prefix + name)

    def load_into(self, module: nn.Module) -> nn.Module:
        """The module, frozen, with these as its own. ValueError: one is not there, or of another shape."""
        try:
            module.load_state_dict({name: self[name] for name in module.state_dict()}, assign=True)
        except RuntimeError as error:
            some = " ".join(str(error).split())[:200]
            raise ValueError(f"{self._path}: the audio encoder's tensors do not fit: {some}") from error
        return module.requires_grad_(False).eval()


def read_output_width(path: Path, name: str) -> int:
    """What the layer of this name puts out, from the headers. ValueError: the checkpoint lacks it."""
    shape = read_tensor_shapes(path).get(f"{name}.weight")
    if not shape:
        raise _missing_tensor_error(path, f"{name}.weight")
    return shape[0]


def apply_linear(x: Tensor, weights: Mapping[str, Tensor], name: str, bias: bool = True) -> Tensor:
    """``bias``: whether the layer has one."""
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"] if bias else None)


def apply_layer_norm(x: Tensor, weights: Mapping[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _missing_tensor_error(path: Path, name: str) -> ValueError:
    return ValueError(f"{path}: lacks the audio encoder's tensor {name}")


def _read_tensors(file: Path, prefix: str, device: torch.device) -> dict[str, Tensor]:
    with safe_open(str(file), framework="pt") as stored:
        return {
            name.removeprefix(prefix): stored.get_tensor(name).to(device, torch.float32)
            for name in stored.keys()  # noqa: SIM118 - not a mapping
            if name.startswith(prefix)
        }
