"""A checkpoint's language model: built without memory, held against the folder's headers, then filled.

    config.json ──► parameters on "meta" ──headers──► refused, or filled part by part ──► learner, engines

Invariants: no memory is taken for a size that the weights do not have; every parameter comes from the folder
(one that is left to chance is refused), rounded once, from what is stored to what is held; the folder's own
code is never run; what ``TensorNameMap`` leaves out is not read. A load holds what is filled and one tensor more.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils import swap_tensors
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from speech.checkpoints.folder import read_tensor_headers
from speech.families.base import Family

ParameterShapes = Mapping[str, tuple[int, ...]]
TRAINABLE_TYPES = ("F64", "F32", "F16", "BF16")
HEAD_ROWS_PER_CHUNK = 4096  # of a head, compared at a time


@dataclass(frozen=True, slots=True)
class _TensorLocation:
    """Where a parameter lies. ``rows``: of a stack; None: the whole tensor."""

    file: Path
    name: str
    rows: slice | None

    def read_tensor(self, stored: Any) -> Tensor:
        """From the open file."""
        tensor: Tensor = stored.get_tensor(self.name) if self.rows is None else stored.get_slice(self.name)[self.rows]
        return tensor


class UnfilledModel:
    """A language model whose parameters get memory and values when they are asked for.

    Example:
        unfilled = UnfilledModel(family, attention="sdpa", dtype=torch.float32)
        for layer in policy.blocks:  # a rank with a part of each never holds all
            unfilled.fill(layer)
            ...  # and share it out
        unfilled.fill(unfilled.lm)  # the rest
    """

    def __init__(
        self, family: Family, *, attention: str, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        """``attention``: transformers' name for it. Buffers have their values and their own type already.

        ValueError: config.json cannot be built; a tensor is missing, left over or of another shape.
        """
        try:
            cls, config = _resolve_model_class(family, attention)
            with torch.device("meta"):
                empty = cls(config)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, StrictDataclassError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ValueError(f"{family.path / 'config.json'}: no model of this config: {reason}") from error
        shapes = {name: tuple(p.shape) for name, p in empty.named_parameters(remove_duplicate=False)}
        places = _locate_parameters(family, shapes)
        if missing := [name for name, _ in empty.named_parameters() if name not in places]:
            rule = f"lacks {len(missing)} of the model's tensors"
            raise ValueError(f"{family.path}: {rule}: {', '.join(sorted(missing)[:3])}")
        if family.backbone.get("tie_word_embeddings"):
            _check_tied_head(family, places)
        with _parameters_without_memory(dtype):
            self.lm = cls(config).eval()
        self._places = {p: places[name] for name, p in self.lm.named_parameters()}
        self._device = device

    @torch.no_grad()
    def fill(self, part: nn.Module) -> None:
        """The folder's values for those parameters of ``part`` that have none yet."""
        with ExitStack() as opened:
            files: dict[Path, Any] = {}
            for parameter in [candidate for candidate in part.parameters() if candidate.is_meta]:
                place = self._places.pop(parameter)  # which would keep what is sharded whole
                if place.file not in files:
                    files[place.file] = opened.enter_context(safe_open(str(place.file), framework="pt"))
                filled = torch.empty_like(parameter, device=self._device)
                filled.copy_(place.read_tensor(files[place.file]))
                swap_tensors(parameter, nn.Parameter(filled, parameter.requires_grad))  # tied ones stay tied


def load_language_model(
    family: Family, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Any:
    """The family's whole language model. ``attention``, ValueError: as of ``UnfilledModel``."""
    unfilled = UnfilledModel(family, attention=attention, dtype=dtype, device=device)
    unfilled.fill(unfilled.lm)
    return unfilled.lm.to(device)  # the buffers


def _resolve_model_class(family: Family, attention: str) -> tuple[Any, Any]:
    settings = {**family.backbone, "attn_implementation": attention}
    if family.module is not None:
        cls = family.module()
        return cls, cls.config_class(**settings)
    config = AutoConfig.for_model(**settings)
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config


@contextmanager
def _parameters_without_memory(dtype: torch.dtype) -> Iterator[None]:
    """Modules made here have parameters of ``dtype`` on "meta", and buffers as they made them.

    What a module allocates for a parameter is let go before anything was written to it.
    """

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(torch.empty_like(parameter, dtype=dtype, device="meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(on_meta)  # type: ignore[arg-type]  # it may return one
    try:
        yield
    finally:
        hook.remove()


def _locate_parameters(family: Family, module: ParameterShapes) -> dict[str, _TensorLocation]:
    """Where each parameter lies, once all shapes were compared. ``module``: tied ones by each name."""
    path = family.path
    places: dict[str, _TensorLocation] = {}
    unknown: list[str] = []
    for name, header in read_tensor_headers(path).items():
        parts = family.tensor_names.module_names(name)
        if lost := [part for part in parts if part not in module]:
            unknown += lost
        elif parts:
            expected_shape = _stack_shapes([module[part] for part in parts])
            if header.shape != expected_shape:
                rule = f"{name} must have the shape {expected_shape} of config.json"
                raise ValueError(f"{path}: {rule}: got {header.shape}")
            if header.type not in TRAINABLE_TYPES:
                rule = f"{name} must be one of {', '.join(TRAINABLE_TYPES)}, quantised weights cannot be trained"
                raise ValueError(f"{path}: {rule}: got {header.type}")
            start = 0
            for part in parts:
                rows = slice(start, start := start + module[part][0]) if len(parts) > 1 else None
                places[part] = _TensorLocation(header.file, name, rows)
    if unknown:
        rule = f"has {len(unknown)} tensors that a {family.name} model has not"
        raise ValueError(f"{path}: {rule}: {', '.join(sorted(unknown)[:3])}")
    return places


def _check_tied_head(family: Family, places: Mapping[str, _TensorLocation]) -> None:
    """ValueError: the head is the embedding by config.json, and the folder has a head with other values."""
    head, table = places.get("lm_head.weight"), places.get("model.embed_tokens.weight")
    if head is None or table is None:
        return
    with (
        safe_open(str(head.file), framework="pt") as head_file,
        safe_open(str(table.file), framework="pt") as embedding_file,
    ):
        heads, rows = head_file.get_slice(head.name), embedding_file.get_slice(table.name)
        count = heads.get_shape()[0]
        parts = (slice(start, start + HEAD_ROWS_PER_CHUNK) for start in range(0, count, HEAD_ROWS_PER_CHUNK))
        if all(torch.equal(heads[part].float(), rows[part].float()) for part in parts):
            return
    rule = f"tie_word_embeddings must be false: {head.name} differs from {table.name}"
    raise ValueError(f"{family.path / 'config.json'}: {rule}: got true")


def _stack_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    first = shapes[0]
    return first if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *first[1:])


# Names of an earlier release, kept for one more.
Unfilled, Shapes, TYPES, ROWS = UnfilledModel, ParameterShapes, TRAINABLE_TYPES, HEAD_ROWS_PER_CHUNK
