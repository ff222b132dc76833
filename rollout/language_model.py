"""A language model as a torch module: its states, heads and layers; its tensors by the checkpoint's names.

    ids, features ──► states of each stream ──► head of each stream
    module ── Names ──► (checkpoint name, tensor)      weights to engines, exports

Invariant: the rest of the code asks these functions and never a model's class, and what a module is asked for
follows from its family (``streams``, ``get_mtp_heads``), never from what the module seems to have.
``rollout.loading`` makes one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from speech.checkpoints.folder import read_tensor_shapes
from speech.checkpoints.tensor_names import TensorNameMap
from speech.families.base import Family

TIED_HEAD = "lm_head.weight"


class ParallelStreamModel(Protocol):
    """What a module with several streams has instead of one embedding and one head (``Family.streams``)."""

    def states(self, ids_TS: Tensor, features_KH: Tensor, at_K: Tensor, **place: Any) -> Sequence[Tensor]:
        """As ``compute_hidden_states`` below."""
        ...

    def heads(self) -> Sequence[Any]:
        """The linear head of each stream."""
        ...

    def blocks(self) -> Sequence[Any]:
        """Every layer, in the order in which they run: what is sharded together."""
        ...


class MtpModel(Protocol):
    """What a module that predicts several tokens at once has (``Family.mtp_depth``): layers that it learns and
    engines lack.
    """

    ahead: nn.ModuleList  # one module per depth

    def mtp_states(
        self, hidden_TH: Tensor, embedded_TH: Tensor, positions_T: Tensor, segment_T: Tensor, wanted_T: Tensor
    ) -> list[Tensor]:
        """States [T, H] of each depth, which like ``hidden_TH`` predict the token after their own.

        Depth d has states at wanted positions > d. No gradient leaves ``ahead``.
        """
        ...


def compute_hidden_states(
    lm: Any, ids_TS: Tensor, features_KH: Tensor, at_K: Tensor, **place: Any
) -> Sequence[Tensor]:
    """Last hidden states [T, H] of each stream, of one packed row.

    ``features_KH`` at the steps ``at_K``: see ``speech.features``. ``place``: ``position_ids`` [1, T], and
    what the module's attention wants to know.
    """
    if ids_TS.shape[1] > 1:
        states_by_stream: Sequence[Tensor] = lm.states(ids_TS, features_KH, at_K, **place)
        return states_by_stream
    embedded_TH = embed_inputs(lm, ids_TS, features_KH, at_K)
    output = lm.base_model(inputs_embeds=embedded_TH[None], use_cache=False, **place)
    return [output.last_hidden_state[0]]


def embed_inputs(lm: Any, ids_TS: Tensor, features_KH: Tensor, at_K: Tensor) -> Tensor:
    """What the decoder of a single stream reads, [T, H]."""
    embedded_TH: Tensor = lm.get_input_embeddings()(ids_TS[:, 0])
    if not len(at_K):
        return embedded_TH
    return embedded_TH.index_copy(0, at_K, features_KH.to(embedded_TH.dtype))


def get_stream_heads(lm: Any, streams: int) -> Sequence[Any]:
    """The linear head of each stream. ValueError: one has a bias, which nobody here would add."""
    linear_heads = lm.heads() if streams > 1 else [lm.get_output_embeddings()]
    assert len(linear_heads) == streams, f"a head per stream: got {len(linear_heads)} for {streams}"
    if any(getattr(head, "bias", None) is not None for head in linear_heads):
        raise ValueError("the language model's head must have no bias")
    return linear_heads


def get_model_layers(lm: Any, streams: int) -> Sequence[Any]:
    """Every layer, in the order in which they run."""
    layers: Sequence[Any] = lm.blocks() if streams > 1 else lm.base_model.layers
    return layers


def get_mtp_heads(lm: Any, count: int) -> Sequence[nn.Module]:
    """The modules that predict tokens further ahead, nearest first; ``count`` is the family's."""
    modules = list(lm.ahead) if count else []
    assert len(modules) == count, f"a module per depth: got {len(modules)} for {count}"
    return modules


def read_checkpoint_layout(family: Family) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """(checkpoint name -> shape of what engines run, optional names), from the folder's headers.

    A tied head is not in the folder; it may be sent or left out. ValueError: see ``speech.checkpoints.folder``.
    """
    layout = {
        name: shape for name, shape in read_tensor_shapes(family.path).items() if family.tensor_names.is_sampled(name)
    }
    if not family.backbone.get("tie_word_embeddings") or TIED_HEAD in layout:
        return layout, frozenset()
    tables = [shape for name, shape in layout.items() if name.endswith("embed_tokens.weight")]
    assert len(tables) == 1, "a tied head belongs to exactly one embedding"
    return {**layout, TIED_HEAD: tables[0]}, frozenset({TIED_HEAD})


def stack_parts(names: TensorNameMap, name: str, part: Callable[[str], Tensor]) -> Tensor:
    """The checkpoint's tensor ``name`` from the module's. ``part``: a tensor of the module, whole."""
    parts = [part(part_name) for part_name in names.module_names(name)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def unstack_parts(
    names: TensorNameMap, name: str, tensor: Tensor, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """(name in the module, tensor) of all that the checkpoint's tensor ``name`` holds.

    ``state``: the module's tensors, for the heights of a stack. ValueError: they do not add up.
    """
    parts = names.module_names(name)
    assert parts, f"{name} is not the language model's"
    if len(parts) == 1:
        yield parts[0], tensor
        return
    heights = [len(state[part]) for part in parts]
    if sum(heights) != len(tensor):
        raise ValueError(f"{name} must have {sum(heights)} rows, those of {' + '.join(parts)}: got {len(tensor)}")
    yield from zip(parts, tensor.split(heights), strict=True)


@torch.no_grad()
def copy_checkpoint_tensors(lm: Any, names: TensorNameMap, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrite the module's weights by the checkpoint's ``tensors``; a tied head is its embedding."""
    state = dict(lm.named_parameters())
    for name, tensor in tensors:
        for part, values in unstack_parts(names, name, tensor, state):
            if part in state:
                state[part].copy_(values)
