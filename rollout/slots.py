"""A static cache of keys and values, and attention over it: for any transformers decoder.

    slot 0 │ k v │ k v │ k v │ ...   one row per reply under way, ``length`` steps each, allocated once
    slot 1 │ k v │ k v │
    ...

A pass is a packed row, as in the learner: either one sequence from its beginning (``PrefillPass``), or the next step
of the replies in slots 0 .. B-1 (``DecodePass``). Layers are told apart by their ``layer_idx``.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

SLOT_ATTENTION = "slotted"  # our name in transformers' attention registry


@dataclass(frozen=True, slots=True)
class PrefillPass:
    """A sequence from its first step on, into one slot."""

    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class DecodePass:
    """One step of each of the first B slots."""

    positions_B: Tensor  # int64, steps that lie before
    seen_BL: Tensor  # bool, which of the first L steps each may look at, its own included


class KeyValueSlots:
    """Keys and values of ``count`` replies of at most ``length`` steps."""

    def __init__(self, count: int, length: int) -> None:
        self.count, self.length = count, length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer_cache(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [count, heads, length, d]. ``like``: a key [1, heads, T, d] of this layer."""
        if layer not in self._layers:
            shape = (self.count, like.shape[1], self.length, like.shape[3])
            self._layers[layer] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._layers[layer]

    def copy(self, source: int, target: int, steps: int) -> None:
        """What slot ``source`` holds of its first steps, into ``target``."""
        for keys, values in self._layers.values():
            keys[target, :, :steps] = keys[source, :, :steps]
            values[target, :, :steps] = values[source, :, :steps]


def attend_slots(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    slots: KeyValueSlots,
    at: PrefillPass | DecodePass,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Write this pass into the cache and attend. query [1, heads, T, d] -> [1, T, heads, d]."""
    assert attention_mask is None and query.shape[0] == 1, "packed rows need no mask and no batch"
    if sliding_window is not None and slots.length > sliding_window:
        raise ValueError(
            f"model.max_length must fit the model's sliding window {sliding_window}: got {slots.length} steps"
        )
    keys, values = slots.layer_cache(int(module.layer_idx), key)  # type: ignore[arg-type]
    if isinstance(at, PrefillPass):
        steps = key.shape[2]
        keys[at.slot, :, :steps], values[at.slot, :, :steps] = key[0], value[0]
        grouped = query.shape[1] != key.shape[1]
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
        return attended.transpose(1, 2).contiguous(), None
    heads, count, size = query.shape[1:]
    slot_B = torch.arange(count, device=query.device)
    keys[slot_B, :, at.positions_B] = key[0].transpose(0, 1)
    values[slot_B, :, at.positions_B] = value[0].transpose(0, 1)
    steps = at.seen_BL.shape[1]
    # Query heads that share a key head stand where a sequence's positions would: nothing is repeated.
    grouped_query = query[0].transpose(0, 1).reshape(count, keys.shape[1], -1, size)
    attended = F.scaled_dot_product_attention(
        grouped_query,
        keys[:count, :, :steps],
        values[:count, :, :steps],
        attn_mask=at.seen_BL[:, None, None],
        scale=scaling,
    )
    return attended.reshape(1, count, heads, size), None


AttentionInterface.register(SLOT_ATTENTION, attend_slots)
AttentionMaskInterface.register(SLOT_ATTENTION, lambda *_, **__: None)
