"""Gradient diagnostics: does the preference push words and voice in the same direction, and how hard each?

The paper's reason for a text-only objective: on shared weights the text part of the gradient is far larger
than the audio part, and the two are about orthogonal (ratio >> 1, cosine ~ 0). One backward pass for each
direction, so only at an interval; nothing is updated.

Invariants: every figure is made of sums over this rank's shards, added over the ranks once, in float64: it
does not depend on how many ranks there are. Beside what a step holds, a diagnosis holds one gradient, in
the host's memory; the device holds no more than in a step.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from conf.algorithm import AlgoConfig, ChannelWeights
from learner.batch import Microbatch
from learner.diagnosis import LogprobShift, PartGradients, PolicyDiagnosis
from learner.metrics import CHANNELS
from learner.model import Policy, reshard_policy
from learner.objectives import build_training_rows, weigh_positions
from learner.ranks import sum_over_ranks
from learner.rows import LossComponent, SamplingSetup, TrainingRow, build_training_row, build_weight_table
from learner.types import StepBatch, TrainingReply
from speech.grammar.channels import Channel

PRODUCT_CHUNK = 1 << 22  # numbers that are in float64 at a time
TEXT_AND_AUDIO = ChannelWeights(text=1.0, audio=1.0)
PREFERENCE_COMPONENTS = (LossComponent.PO, LossComponent.DPO)
SHIFT_ROLES = ("rollout", "anchor", "chosen", "rejected")  # whose log-probs are held against the reference policy's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiagnosticLoss:
    """A loss to take the gradient of: these rows under this objective at this lambda."""

    name: str  # text, audio, sft
    rows: list[TrainingRow]
    algo: AlgoConfig
    weight: float


def build_diagnostic_losses(batch: StepBatch, algo: AlgoConfig, setup: SamplingSetup) -> list[DiagnosticLoss]:
    """The preference over TEXT alone and over AUDIO alone, and the anchors; lambda is in none of them."""
    text_and_audio = algo.model_copy(update={"preference": TEXT_AND_AUDIO})
    rows = build_training_rows(replace(batch, weight=1.0, anchors=()), text_and_audio, setup)
    preferred = [row.restrict_to(PREFERENCE_COMPONENTS) for row in rows]
    anchors = build_training_rows(replace(batch, weight=0.0, rollouts=(), pairs=()), algo, setup)
    return [
        *(
            DiagnosticLoss(name=name, rows=_restrict_to_channel(preferred, channel), algo=text_and_audio, weight=1.0)
            for name, channel in CHANNELS.items()
        ),
        DiagnosticLoss(name="sft", rows=anchors, algo=algo, weight=0.0),
    ]


def _restrict_to_channel(rows: Sequence[TrainingRow], channel: Channel) -> list[TrainingRow]:
    """The rows with one channel's part of their loss; its denominators stay those of the whole.

    A pair of which one reply has nothing of this channel has no such part.
    """
    restricted = [replace(row, weights_CR=np.where(row.channels_R == channel, row.weights_CR, 0.0)) for row in rows]
    broken_pairs = {row.pair for row in restricted if row.pair is not None and not row.needed_R.any()}
    return [row for row in restricted if row.pair is None or row.pair not in broken_pairs]


def build_shift_rows(batch: StepBatch, setup: SamplingSetup) -> dict[str, list[TrainingRow]]:
    """Rows that ask for the log-probs of all TEXT and AUDIO: of what this run sampled, of the anchors, and of
    both sides of a manifest's pairs.
    """

    def rows(role: str, replies: Iterable[TrainingReply]) -> list[TrainingRow]:
        return [
            build_training_row(r, build_weight_table(po=weigh_positions(r.reply, TEXT_AND_AUDIO)), setup, role=role)
            for r in replies
        ]

    chosen = [pair.chosen for pair in batch.pairs if pair.chosen.key is None]
    rejected = [pair.rejected for pair in batch.pairs if pair.rejected.key is None]
    replies_by_role = dict(zip(SHIFT_ROLES, (batch.replies, batch.anchors, chosen, rejected), strict=True))
    return {role: rows(role, replies) for role, replies in replies_by_role.items()}


def group_parameters_by_part(policy: Policy) -> dict[str, list[nn.Parameter]]:
    """The parameters by part of the model, from input to output; a matrix at both ends is one part."""
    lm = policy.lm
    inputs, head = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    names = {id(head): "head", id(inputs): "embedding, head" if inputs is head else "embedding"}
    names |= {id(head.weight): f"head {stream}" for stream, head in enumerate(policy.heads) if stream}
    for index, layer in enumerate(policy.blocks):
        names |= {id(parameter): f"layer {index}" for parameter in layer.parameters()}
    for index, head in enumerate(policy.mtp_heads):
        names |= {id(parameter): f"ahead {index}" for parameter in head.parameters()}
    norm = getattr(lm.base_model, "norm", nn.Module())
    names |= {id(parameter): "norm" for parameter in norm.parameters()}
    parts: dict[str, list[nn.Parameter]] = {}
    for parameter in lm.parameters():
        parts.setdefault(names.get(id(parameter), "other"), []).append(parameter)
    return parts


class DiagnosticsCollector:
    """Adds up one diagnosis: gradients and log-prob shifts, micro-batch by micro-batch.

    Example:
        collector = DiagnosticsCollector(policy)
        for loss in build_diagnostic_losses(batch, algo, setup):
            ...  # backward
            collector.record_and_clear(loss.name)  # and the gradient is gone
        collector.record_shift("rollout", micros, reference)
        diagnosis = collector.build_diagnosis(version)
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self._parts = policy, group_parameters_by_part(policy)
        self._sizes = {name: sum(p.numel() for p in parameters) for name, parameters in self._parts.items()}
        self._tied = policy.lm.get_input_embeddings().weight is policy.lm.get_output_embeddings().weight
        self._text: dict[int, Tensor] = {}  # this rank's shards of the first gradient, on the host
        self._sums: dict[tuple[str, ...], Tensor] = {}

    def record_and_clear(self, name: str) -> None:
        """Add up the gradient that a backward pass left, and take it away. TEXT comes first."""
        for part, parameters in self._parts.items():
            gradients = {id(parameter): _get_local_gradient(parameter) for parameter in parameters}
            self._sums[part, name, name] = _sum_scalars([_dot_in_float64(g, g) for g in gradients.values()])
            if name == "text":
                self._text |= {key: gradient.cpu() for key, gradient in gradients.items()}
            elif self._text:
                products = [_dot_in_float64(gradient, self._text[key]) for key, gradient in gradients.items()]
                self._sums[part, "text", name] = _sum_scalars(products)
            for parameter in parameters:
                parameter.grad = None

    @torch.no_grad()
    def record_shift(self, name: str, micros: Sequence[Microbatch], reference: Policy) -> None:
        """Add up how far the log-probs of these positions are from the reference policy's. Collective."""
        for micro in micros:
            gap = (self._policy(micro)[0] - reference(micro)[0]).double()
            for channel, number in CHANNELS.items():
                here = micro.channels_N == number
                channel_sums = {"mean": gap[here].sum(), "abs": gap[here].abs().sum(), "tokens": here.sum()}
                for statistic, value in channel_sums.items():
                    key = ("shift", f"{name}_{channel}", statistic)
                    self._sums[key] = self._sums.get(key, torch.zeros_like(value)) + value
        reshard_policy(self._policy)

    def build_diagnosis(self, version: int) -> PolicyDiagnosis:
        """The figures of all that was recorded. Collective: the sums of all ranks meet here."""
        sums = sum_over_ranks(self._sums) if self._sums else {}
        layers = [
            PartGradients.from_products(name, self._sizes[name], _sum_inner_products(sums, [name]))
            for name in self._parts
        ]
        return PolicyDiagnosis(
            policy_version=version,
            tied=self._tied,
            layers=tuple(layers),
            model=PartGradients.from_products(
                "model", sum(self._sizes.values()), _sum_inner_products(sums, list(self._parts))
            ),
            shift=_sums_to_shifts(sums),
        )


def _sum_inner_products(sums: Mapping[tuple[str, ...], float], parts: Sequence[str]) -> dict[tuple[str, str], float]:
    """Inner products over these parts as one vector."""
    pairs = [(direction, direction) for direction in ("text", "audio", "sft")] + [("text", "audio"), ("text", "sft")]
    return {(a, b): sum(sums[part, a, b] for part in parts) for a, b in pairs if (parts[0], a, b) in sums}


def _sums_to_shifts(sums: Mapping[tuple[str, ...], float]) -> dict[str, LogprobShift]:
    shifts = {}
    for name in ("_".join(pair) for pair in product(SHIFT_ROLES, CHANNELS)):
        tokens = sums.get(("shift", name, "tokens"), 0.0)
        if tokens:
            mean, size = (sums["shift", name, statistic] / tokens for statistic in ("mean", "abs"))
            shifts[name] = LogprobShift(mean=mean, mean_abs=size, tokens=int(tokens))
    return shifts


def _get_local_gradient(parameter: nn.Parameter) -> Tensor:
    """This rank's piece of the gradient; zeros where the loss did not touch the parameter."""
    gradient_or_parameter = parameter if parameter.grad is None else parameter.grad
    local = gradient_or_parameter.to_local() if isinstance(gradient_or_parameter, DTensor) else gradient_or_parameter
    return torch.zeros_like(local) if parameter.grad is None else local


def _dot_in_float64(first: Tensor, second: Tensor) -> Tensor:
    """Inner product in float64, on the first one's device, a piece at a time."""
    pieces = zip(
        first.flatten().split(PRODUCT_CHUNK), second.to(first.device).flatten().split(PRODUCT_CHUNK), strict=True
    )
    return _sum_scalars([(a.double() * b.double()).sum() for a, b in pieces])


def _sum_scalars(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
