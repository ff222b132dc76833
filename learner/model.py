"""The policy: a causal language model that scores chosen positions of packed segments, sharded with FSDP2.

    ids_TS, features ──► backbone (causal in each segment) ──► hidden[keep_N] ─► head ─► logp_N, entropy_N

Invariants: a token attends to its own segment only; master weights, gradients and optimiser are float32
whatever the compute type; weights come from safetensors, each one of them (a checkpoint that leaves a
tensor to chance is refused); no dropout, because the behaviour log-probs have none. One rank is sharded
too: one code path.
"""

from collections.abc import Callable, Sequence
from math import isfinite, nan
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd
from transformers import AttentionInterface, AttentionMaskInterface

from learner.batch import Microbatch
from learner.logprob import chosen_logprobs
from learner.mtp import compute_mtp_logprobs
from rollout.language_model import compute_hidden_states, get_model_layers, get_mtp_heads, get_stream_heads
from rollout.loading import UnfilledModel
from speech.families.base import Family

PACKED_ATTENTION = "packed_causal"  # our name in transformers' attention registry


def attend_packed_segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    segment_lengths: tuple[int, ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each segment. query [1, heads, T, d] -> [1, T, heads, d].

    Work is the sum of squared lengths, not the square of the sum; no mask is ever built.
    """
    assert attention_mask is None and query.shape[0] == 1, "packed segments need no mask and no batch"
    if sliding_window is not None and max(segment_lengths) > sliding_window:
        raise ValueError(
            f"model.max_length must fit the model's sliding window {sliding_window}: "
            f"got a row of {max(segment_lengths)}"
        )
    grouped = query.shape[1] != key.shape[1]
    parts = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        for q, k, v in zip(*(torch.split(x, list(segment_lengths), 2) for x in (query, key, value)), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED_ATTENTION, attend_packed_segments)
AttentionMaskInterface.register(PACKED_ATTENTION, lambda *_, **__: None)


class PolicyScores(NamedTuple):
    """What a pass gives for the scored positions, float32."""

    logps_N: Tensor
    entropies_N: Tensor
    mtp_logps_DN: Tensor  # log-probs by each MTP head, at anchors; 0 elsewhere


class Policy(nn.Module):
    """Scores the kept positions of a micro-batch.

    Example:
        policy = shard_policy(Policy.load(family, chunk=512), mesh, dtype="float32")
        logps_N, entropies_N, _ = policy(pack_microbatch(rows, streams=1))  # every rank, equally often
    """

    allowed_GV: Tensor | None

    def __init__(
        self,
        lm: Any,
        *,
        chunk: int,
        streams: int = 1,
        mtp_heads: int = 0,
        allowed_GV: Tensor | None = None,
        fill: Callable[[nn.Module], None] = lambda part: None,
    ) -> None:
        """``lm``: a transformers causal language model with the family's ``streams`` and ``mtp_heads``.

        ``allowed_GV``: what each grammar state allows, when replies were masked. ``fill``: reads the weights
        of a part that has none yet.
        """
        super().__init__()
        self.fill = fill
        self.heads = get_stream_heads(lm, streams)
        self.blocks = list(get_model_layers(lm, streams))  # a list: registered once, by ``lm``
        self.mtp_heads = list(get_mtp_heads(lm, mtp_heads))
        assert streams == 1 or not mtp_heads, "MTP heads look ahead in one stream"
        self.lm = lm
        self._chunk = chunk
        self.register_buffer("allowed_GV", allowed_GV, persistent=False)

    @classmethod
    def load(
        cls, family: Family, *, chunk: int, allowed_GV: Tensor | None = None, checkpointing: bool = False
    ) -> "Policy":
        """Float32 weights of the family's folder, to be read by ``fill``. ValueError: they do not fit."""
        unfilled = UnfilledModel(family, attention=PACKED_ATTENTION)
        lm = unfilled.lm
        if checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.train()
        for module in lm.modules():
            if isinstance(module, _DropoutNd):  # of every kind
                module.p = 0.0
        shape = {"streams": family.streams, "mtp_heads": family.mtp_depth}
        return cls(lm, chunk=chunk, allowed_GV=allowed_GV, fill=unfilled.fill, **shape)

    def forward(self, micro: Microbatch) -> PolicyScores:
        """Log-probs and entropies with gradient, at each position's temperature and grammar state."""
        states_by_stream = self._states(micro)
        if len(states_by_stream) == 1:
            scores = self._score_stream(0, states_by_stream[0], micro, slice(None))
            return PolicyScores(*scores, self._mtp_logprobs(micro, states_by_stream[0]))
        logps_N, entropies_N = (torch.zeros(len(micro.keep_N), device=micro.keep_N.device) for _ in range(2))
        for stream, hidden_TH in enumerate(states_by_stream):  # each takes part, scored or not: see ``batch``
            (here,) = (micro.stream_N == stream).nonzero(as_tuple=True)
            logps, entropies = self._score_stream(stream, hidden_TH, micro, here)
            logps_N, entropies_N = (
                logps_N.index_add(0, here, logps),
                entropies_N.index_add(0, here, entropies),
            )
        return PolicyScores(logps_N, entropies_N, logps_N.new_zeros(0, len(logps_N)))

    def _states(self, micro: Microbatch) -> Sequence[Tensor]:
        """Last hidden states [T, H], one per stream."""
        place = {"position_ids": micro.positions_T[None], "segment_lengths": micro.lengths}
        return compute_hidden_states(self.lm, micro.ids_TS, micro.features_KH, micro.at_K, **place)

    def _mtp_logprobs(self, micro: Microbatch, hidden_TH: Tensor) -> Tensor:
        """Log-probs [D, N] by the MTP heads; D is 0 without any, and where no gradient is taken."""
        if not self.mtp_heads or not torch.is_grad_enabled():
            return hidden_TH.new_zeros(0, len(micro.keep_N), dtype=torch.float32)
        return compute_mtp_logprobs(self.lm, self.heads[0], micro, hidden_TH, chunk=self._chunk)

    def _score_stream(
        self, stream: int, hidden_TH: Tensor, micro: Microbatch, here: Tensor | slice
    ) -> tuple[Tensor, Tensor]:
        return chosen_logprobs(
            hidden_TH[micro.keep_N[here]],
            self.heads[stream].weight,
            micro.targets_N[here],
            chunk=self._chunk,
            temperature_N=micro.temperature_N[here],
            allowed_GV=self.allowed_GV,
            grammar_states_N=None if self.allowed_GV is None else micro.grammar_states_N[here],
        )


def gather_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, on CPU. Collective."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def shard_policy(policy: Policy, mesh: DeviceMesh, *, dtype: str) -> Policy:
    """Shard in place, one FSDP group per layer and one for the rest. ``dtype``: compute type; reductions
    stay float32. Each group is filled just before it is sharded: a rank holds its part and one group.

    On CPU gathered weights are kept until the backward pass: gloo's gather costs more than the memory.
    """
    mixed = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        if dtype == "bfloat16"
        else MixedPrecisionPolicy()
    )
    free = mesh.device_type != "cpu"
    for group in (*policy.blocks, *policy.mtp_heads, policy):
        policy.fill(group)
        fully_shard(group, mesh=mesh, reshard_after_forward=free, mp_policy=mixed)
    return policy.to(mesh.device_type) if free else policy


def freeze_policy(policy: Policy) -> Policy:
    """The same as a reference: no gradient, evaluation mode."""
    policy.requires_grad_(False)
    return policy.eval()


def reshard_policy(policy: Policy) -> None:
    """Drop gathered weights. Needed after a pass without backward, before weights change under it."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def clip_gradients(policy: Policy, largest: float) -> float:
    """Clip the gradient; its norm before, not finite where any of it is not.

    MTP heads are clipped separately, so that their norm does not scale the update of the policy.
    """
    of_mtp = {id(parameter) for head in policy.mtp_heads for parameter in head.parameters()}
    parts = [[p for p in policy.parameters() if (id(p) in of_mtp) == is_mtp] for is_mtp in (False, True)]
    norms = [gather_tensor(torch.nn.utils.clip_grad_norm_(part, largest)).item() for part in parts if part]
    return norms[0] if all(map(isfinite, norms)) else nan


def set_gradient_sync(policy: Policy, on: bool) -> None:
    """Whether the next backward pass reduces gradients over the ranks.

    On CPU only a step's last micro-batch does, for gloo is slow; on GPU each does, for unreduced gradients
    are as large as the whole model.
    """
    assert isinstance(policy, FSDPModule)
    policy.set_requires_gradient_sync(on)
