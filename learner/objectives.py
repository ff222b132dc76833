"""The objective: what each position weighs in each component. docs/method.md §2 and §4.

    L = (1 - lambda) * SFT  +  lambda * (PO or DPO  +  KL  -  ENTROPY)

A method is a table, component x channel -> weight (``AlgoConfig``):

                      TEXT     AUDIO    BOUNDARY  STOP     over
    SFT               sft.*                                reference replies
    PO, DPO           preference.*                         rollouts; pairs of them
    KL, ENTROPY       kl.*, entropy.*                      rollouts, whatever is preferred

Each component is a sum over its positions; a position's weight already holds the division by the component's
*global* count. Every rank computes all of this from the same ``StepBatch``, so no count is ever communicated
and no gradient depends on how the batch is cut.

Invariants: an empty mask gives no weight anywhere and never falls back to another mask; PAD and forced
positions join nothing. A weight that cannot change the gradient (lambda 0, zero advantage, zero coefficient)
is stored as 0, which is what lets ``batch.py`` leave tails and whole rows out.
"""

from collections.abc import Sequence
from math import fsum

import numpy as np

from conf.algorithm import AlgoConfig, ChannelWeights
from learner.rows import (
    LossComponent,
    PositionMask,
    PositionWeights,
    SamplingSetup,
    TrainingRow,
    build_anchor_row,
    build_rollout_row,
    build_weight_table,
    letters_to_channels,
)
from learner.types import Anchor, PreferencePair, Rollout, StepBatch
from speech.grammar.channels import Channel


def compute_component_scales(weight: float) -> tuple[float, ...]:
    """Factor of each component in the total, in the order of ``LossComponent``. ``weight`` is lambda."""
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"lambda must lie in [0, 1]: got {weight}")
    return (1.0 - weight, weight, weight, weight, -weight)


def needs_reference(algo: AlgoConfig) -> bool:
    """Whether any step of this run can ask for the frozen start policy."""
    return algo.prefers and (algo.kl.any or algo.loss != "grpo")


def weigh_positions(rollout: Rollout | Anchor, weights: ChannelWeights) -> PositionWeights:
    """Weight of each position of a reply: that of its channel; 0 where it is PAD or was not sampled."""
    table = np.array([weights.text, weights.audio, weights.boundary, weights.stop, 0.0])
    position_weights: PositionWeights = table[letters_to_channels(rollout.channels)]
    return position_weights * np.array(rollout.sampled) if isinstance(rollout, Rollout) else position_weights


def aggregate_weights(
    weights: Sequence[PositionWeights], aggregation: str, *, replies: int, max_new_tokens: int = 1
) -> list[PositionWeights]:
    """Each position's share of the component, one array per reply. ``replies``: what a mean over them divides
    by.

    sequence_mean: weighted mean of a reply's positions, then mean over replies; token_mean: weighted mean of
    all positions; sum: sum over a reply, mean over replies; constant: that / max_new_tokens.
    """
    everything = fsum(float(u.sum()) for u in weights)

    def divisor(u: PositionWeights) -> float:
        match aggregation:
            case "sequence_mean":
                return float(u.sum()) * replies
            case "token_mean":
                return everything
            case "sum":
                return replies
            case "constant":
                return replies * max_new_tokens
        raise ValueError(f"unknown aggregation: {aggregation!r}")

    return [u / divisor(u) if u.any() else np.zeros(len(u)) for u in weights]


def build_training_rows(batch: StepBatch, algo: AlgoConfig, sampled: SamplingSetup) -> list[TrainingRow]:
    """Every row of the step with its weights; rollouts first, then pairs, then anchors.

    ValueError: a malformed row, or a token that the grammar forbids.
    """
    present = (
        np.array(compute_component_scales(batch.weight)) != 0
    )  # nobody needs to compute what the total does not contain
    rows = (
        _build_rollout_rows(batch.rollouts, algo, sampled)
        if present[LossComponent.PO]
        else _build_unweighted_rows(batch, sampled)
    )
    rows += _build_pair_rows(batch.pairs, algo, sampled) if present[LossComponent.DPO] else []
    return rows + (_build_anchor_rows(batch.anchors, algo) if present[LossComponent.SFT] else [])


def build_penalty_rows(rollouts: Sequence[Rollout], algo: AlgoConfig, sampled: SamplingSetup) -> list[TrainingRow]:
    """Rows whose KL weights are the bare coefficients: their sum is what ``kl_in=reward`` takes off."""
    return [build_rollout_row(r, build_weight_table(kl=weigh_positions(r, algo.kl)), sampled) for r in rollouts]


def _build_unweighted_rows(batch: StepBatch, sampled: SamplingSetup) -> list[TrainingRow]:
    """Rollouts of a step that prefers nothing: checked, and without any weight."""
    return [build_rollout_row(r, build_weight_table(po=np.zeros(len(r.ids))), sampled) for r in batch.rollouts]


def _build_rollout_rows(rollouts: Sequence[Rollout], algo: AlgoConfig, sampled: SamplingSetup) -> list[TrainingRow]:
    preferred = [weigh_positions(r, algo.preference) for r in rollouts]
    shares = aggregate_weights(
        preferred, algo.aggregation, replies=len(rollouts), max_new_tokens=sampled.max_new_tokens
    )
    penalties = _spread_coefficients(rollouts, algo.kl if algo.kl_in == "loss" else ChannelWeights())
    bonuses = _spread_coefficients(rollouts, algo.entropy)
    rows = []
    for rollout, po, kl, entropy in zip(rollouts, shares, penalties, bonuses, strict=True):
        learns = rollout.advantage.per_position(letters_to_channels(rollout.channels)) != 0
        if algo.importance == "sequence":  # its weight is a product over all that the reply prefers
            learns = np.full(len(po), bool((learns & (po != 0)).any()))
        rows.append(build_rollout_row(rollout, build_weight_table(po=po * learns, kl=kl, entropy=entropy), sampled))
    return rows


def _build_pair_rows(pairs: Sequence[PreferencePair], algo: AlgoConfig, sampled: SamplingSetup) -> list[TrainingRow]:
    total = fsum(pair.weight for pair in pairs)
    rows = []
    for number, pair in enumerate(pairs):
        chosen, rejected = (weigh_positions(reply, algo.preference) for reply in (pair.chosen, pair.rejected))
        whole = bool(chosen.any() and rejected.any())  # a comparison with nothing teaches nothing
        for reply, signed in ((pair.chosen, chosen), (pair.rejected, -rejected)):
            weights = build_weight_table(dpo=signed * whole)
            rows.append(build_rollout_row(reply, weights, sampled, pair=number, pair_weight=pair.weight / total))
    return rows


def _build_anchor_rows(anchors: Sequence[Anchor], algo: AlgoConfig) -> list[TrainingRow]:
    weights = [weigh_positions(anchor, algo.sft) for anchor in anchors]
    shares = aggregate_weights(weights, algo.sft_aggregation, replies=sum(bool(u.any()) for u in weights))
    return [build_anchor_row(anchor, build_weight_table(sft=u)) for anchor, u in zip(anchors, shares, strict=True)]


def _spread_coefficients(rollouts: Sequence[Rollout], coefficients: ChannelWeights) -> list[PositionWeights]:
    """Coefficient / number of joined positions, AUDIO counted apart from everything else: an audio token more
    does not loosen the hold on the words."""
    weights = [weigh_positions(r, coefficients) for r in rollouts]
    audio: list[PositionMask] = [letters_to_channels(r.channels) == Channel.AUDIO for r in rollouts]
    heard = sum(int((u[a] != 0).sum()) for u, a in zip(weights, audio, strict=True))
    said = sum(int((u[~a] != 0).sum()) for u, a in zip(weights, audio, strict=True))
    return [u / np.where(a, max(heard, 1), max(said, 1)) for u, a in zip(weights, audio, strict=True)]
