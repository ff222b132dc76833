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
    build_training_row,
    build_weight_table,
    compute_component_factors,
    letters_to_channels,
)
from learner.types import PreferencePair, StepBatch, TrainingReply
from rollout.types import Reply
from speech.dataset import Response
from speech.grammar.channels import Channel


def needs_reference(algo: AlgoConfig) -> bool:
    """Whether any step of this run can ask for the frozen reference policy."""
    return algo.prefers and (algo.kl.any or algo.loss != "grpo")


def weigh_positions(reply: Reply | Response, weights: ChannelWeights) -> PositionWeights:
    """Weight of each position of a reply: that of its channel; 0 where it is PAD or was not sampled."""
    table = np.array([weights.text, weights.audio, weights.boundary, weights.stop, 0.0])
    position_weights: PositionWeights = table[letters_to_channels(reply.channels)] * np.array(reply.sampled)
    return position_weights


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


def build_training_rows(batch: StepBatch, algo: AlgoConfig, setup: SamplingSetup) -> list[TrainingRow]:
    """Every row of the step with its weights; rollouts first, then pairs, then anchors.

    ValueError: a malformed row, or a token that the grammar forbids.
    """
    factors = compute_component_factors(batch.weight)  # nobody needs to compute what the total does not contain
    rows = (
        _build_rollout_rows(batch.rollouts, algo, setup)
        if factors[LossComponent.PO]
        else _build_unweighted_rows(batch, setup)
    )
    rows += _build_pair_rows(batch.pairs, algo, setup) if factors[LossComponent.DPO] else []
    return rows + (_build_anchor_rows(batch.anchors, algo, setup) if factors[LossComponent.SFT] else [])


def build_penalty_rows(rollouts: Sequence[TrainingReply], algo: AlgoConfig, setup: SamplingSetup) -> list[TrainingRow]:
    """Rows whose KL weights are the bare coefficients: their sum is what ``kl_in=reward`` takes off."""
    return [build_training_row(r, build_weight_table(kl=weigh_positions(r.reply, algo.kl)), setup) for r in rollouts]


def _build_unweighted_rows(batch: StepBatch, setup: SamplingSetup) -> list[TrainingRow]:
    """Rollouts of a step that prefers nothing: checked, and without any weight."""
    return [build_training_row(r, build_weight_table(po=np.zeros(len(r.reply.ids))), setup) for r in batch.rollouts]


def _build_rollout_rows(
    rollouts: Sequence[TrainingReply], algo: AlgoConfig, setup: SamplingSetup
) -> list[TrainingRow]:
    preferred = [weigh_positions(r.reply, algo.preference) for r in rollouts]
    shares = aggregate_weights(preferred, algo.aggregation, replies=len(rollouts), max_new_tokens=setup.max_new_tokens)
    spread = {
        "kl": _spread_coefficients(rollouts, algo.kl if algo.kl_in == "loss" else ChannelWeights()),
        "entropy": _spread_coefficients(rollouts, algo.entropy),
    }
    rows = []
    for i, (rollout, po) in enumerate(zip(rollouts, shares, strict=True)):
        learns = rollout.advantage.per_position(letters_to_channels(rollout.reply.channels)) != 0
        if algo.importance == "sequence":  # its weight is a product over all that the reply prefers
            learns = np.full(len(po), bool((learns & (po != 0)).any()))
        weights = build_weight_table(po=po * learns, **{name: by_rollout[i] for name, by_rollout in spread.items()})
        rows.append(build_training_row(rollout, weights, setup))
    return rows


def _build_pair_rows(pairs: Sequence[PreferencePair], algo: AlgoConfig, setup: SamplingSetup) -> list[TrainingRow]:
    total = fsum(pair.weight for pair in pairs)
    rows = []
    for number, pair in enumerate(pairs):
        chosen, rejected = (weigh_positions(side.reply, algo.preference) for side in (pair.chosen, pair.rejected))
        whole = bool(chosen.any() and rejected.any())  # a comparison with nothing teaches nothing
        for role, side, signed in (("chosen", pair.chosen, chosen), ("rejected", pair.rejected, -rejected)):
            weights, share = build_weight_table(dpo=signed * whole), pair.weight / total
            rows.append(build_training_row(side, weights, setup, role=role, pair=number, pair_weight=share))
    return rows


def _build_anchor_rows(anchors: Sequence[TrainingReply], algo: AlgoConfig, setup: SamplingSetup) -> list[TrainingRow]:
    weights = [weigh_positions(anchor.reply, algo.sft) for anchor in anchors]
    shares = aggregate_weights(weights, algo.sft_aggregation, replies=sum(bool(u.any()) for u in weights))
    return [
        build_training_row(anchor, build_weight_table(sft=u), setup, role="anchor")
        for anchor, u in zip(anchors, shares, strict=True)
    ]


def _spread_coefficients(rollouts: Sequence[TrainingReply], coefficients: ChannelWeights) -> list[PositionWeights]:
    """Coefficient / number of joined positions, AUDIO counted apart from everything else: an audio token more
    does not loosen the hold on the words."""
    weights = [weigh_positions(r.reply, coefficients) for r in rollouts]
    audio: list[PositionMask] = [letters_to_channels(r.reply.channels) == Channel.AUDIO for r in rollouts]
    audio_count = sum(int((u[a] != 0).sum()) for u, a in zip(weights, audio, strict=True))
    other_count = sum(int((u[~a] != 0).sum()) for u, a in zip(weights, audio, strict=True))
    return [u / np.where(a, max(audio_count, 1), max(other_count, 1)) for u, a in zip(weights, audio, strict=True)]
