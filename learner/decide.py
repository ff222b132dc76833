"""Judged groups in, the step's decision out: lambda, advantages or pairs, and the batch that every rank gets.

Pure: no Ray, no clock, no files. Invariant 3: a missing verdict takes its reply out of its group and
nothing else; a group with fewer than max(2, ceil(G/2)) valid rewards is dropped whole and does not
touch the gate. So everything here equals what the survivors alone would give.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, sqrt

from conf.schema import Config
from judge.rules import vetoes
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict
from learner.advantage import Rewards, compute_channel_advantages
from learner.extremes import NoPair, pick_best_and_worst
from learner.gate import GateReading, LambdaSource
from learner.statistics import (
    GroupStatistics,
    compute_group_statistics,
    compute_mean_and_variance,
    explain_dropped_group,
)
from learner.types import NO_ADVANTAGE, Advantage, PreferencePair, StepBatch, TrainingReply
from rollout.types import Prompt, Reply, ReplyKey

TOO_FEW_VERDICTS, EQUAL_REWARDS, SMALL_MARGIN = (
    "few_verdicts",
    "equal_rewards",
    "small_margin",
)  # why a whole group teaches nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyGroup:
    """The judged replies to one prompt, by index."""

    prompt: Prompt
    replies: tuple[tuple[Reply, ReplyJudgement], ...]

    @property
    def rewards(self) -> list[float | None]:
        """By index; None where it is missing."""
        return [reward_of(judged) for _, judged in self.replies]

    @property
    def keys(self) -> list[ReplyKey]:
        """By index."""
        return [reply.key for reply, _ in self.replies]

    def statistics(self, repeats: int = 1) -> GroupStatistics | None:
        """Figures of the rewards; None: too few. ``repeats``: readings that each score is the mean of."""
        errors = [reward_standard_error(judged, repeats) for _, judged in self.replies]
        return compute_group_statistics(self.rewards, len(self.replies), errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDecision:
    """What a step will learn and why. ``dropped`` has a reason for every reply that teaches nothing."""

    batch: StepBatch
    reading: GateReading
    dropped: Mapping[ReplyKey, str]
    penalties: Mapping[ReplyKey, float] = field(default_factory=dict)  # taken off the rewards before advantages
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def advantages(self) -> dict[ReplyKey, Advantage]:
        """Of every reply that is learnt from against its siblings."""
        return {rollout.key: rollout.advantage for rollout in self.batch.rollouts if rollout.key is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupOutcome:
    """What is learnt from one group. ``drop_kind``: why nothing is learnt from any of its replies."""

    rollouts: tuple[TrainingReply, ...] = ()
    pair: PreferencePair | None = None
    dropped: Mapping[ReplyKey, str] = field(default_factory=dict)
    drop_kind: str | None = None


def reward_of(judged: ReplyJudgement) -> float | None:
    """The reward, or None when it is missing."""
    return judged.reward.value if isinstance(judged.reward, ScoredVerdict) else None


def reward_standard_error(judged: ReplyJudgement, repeats: int) -> float | None:
    """The judge's standard error of the reward, a mean over ``repeats`` readings; None when there is none."""
    return judged.reward.spread / sqrt(max(1, repeats - 1)) if isinstance(judged.reward, ScoredVerdict) else None


def has_nonzero_advantage(group: ReplyGroup, config: Config) -> bool:
    """Whether any reply of the group has an advantage other than zero."""
    return any(advantage != NO_ADVANTAGE for advantage in _compute_advantages(group, config).values())


def decide_step(
    step: int,
    groups: Sequence[ReplyGroup],
    anchors: Sequence[TrainingReply],
    gate: LambdaSource,
    config: Config,
    *,
    pairs: Sequence[PreferencePair] = (),
    penalties: Mapping[ReplyKey, float] | None = None,
) -> StepDecision:
    """Fold one step's groups into lambda and a batch. Updates ``gate``; call once per step, in order.

    ``pairs``: of a manifest. ``penalties``: what is taken off each reply's reward before advantages; the gate
    reads the judge's own.
    """
    outcomes = [_decide_group(group, config, penalties or {}) for group in groups]
    statistics = [
        statistics_of_group
        for group in groups
        if (statistics_of_group := group.statistics(config.judge.repeats)) is not None
    ]
    reading = gate.update(statistics)
    if not config.algo.prefers_at(step):
        reading = replace(reading, weight=0.0)
    kinds = Counter(outcome.drop_kind for outcome in outcomes if outcome.drop_kind is not None)
    counts = {"groups/kept": len(groups) - kinds.total(), "groups/dropped": kinds.total()}
    counts |= {f"groups/dropped_{kind}": count for kind, count in kinds.items()}
    return StepDecision(
        batch=StepBatch(
            step=step,
            weight=reading.weight,
            rollouts=tuple(rollout for outcome in outcomes for rollout in outcome.rollouts),
            anchors=tuple(anchors),
            pairs=(*pairs, *(outcome.pair for outcome in outcomes if outcome.pair is not None)),
        ),
        reading=reading,
        dropped={key: why for outcome in outcomes for key, why in outcome.dropped.items()},
        penalties=penalties or {},
        metrics={**reading.metrics(), **(counts if groups else {}), **_compute_penalty_metrics(penalties)},
    )


def _compute_penalty_metrics(penalties: Mapping[ReplyKey, float] | None) -> dict[str, float]:
    return {"reward/kl_penalty": fsum(penalties.values()) / len(penalties)} if penalties else {}


def _decide_group(group: ReplyGroup, config: Config, penalties: Mapping[ReplyKey, float]) -> _GroupOutcome:
    missing = {
        key: f"no reward: {judged.reward.reason}"
        for key, (_, judged) in zip(group.keys, group.replies, strict=True)
        if isinstance(judged.reward, MissingVerdict)
    }

    def drop_group(kind: str, why: str) -> _GroupOutcome:
        return _GroupOutcome(dropped=dict.fromkeys(group.keys, f"group dropped: {why}") | missing, drop_kind=kind)

    too_few = explain_dropped_group(group.rewards, len(group.replies))
    if too_few is not None:
        return drop_group(TOO_FEW_VERDICTS, too_few)
    if config.algo.equal_groups != "keep" and not has_nonzero_advantage(group, config):
        return drop_group(EQUAL_REWARDS, "all rewards are equal")
    if config.algo.loss != "online_dpo":
        return _build_advantage_outcome(group, config, penalties, missing)
    selection = pick_best_and_worst(group.rewards, config.margin)
    return (
        drop_group(SMALL_MARGIN, selection.reason)
        if isinstance(selection, NoPair)
        else _build_pair_outcome(group, *selection, missing)
    )


def _build_advantage_outcome(
    group: ReplyGroup, config: Config, penalties: Mapping[ReplyKey, float], missing: Mapping[ReplyKey, str]
) -> _GroupOutcome:
    """Every reply against the others."""
    advantages = _compute_advantages(group, config, penalties)
    rollouts = [
        TrainingReply(prompt=group.prompt, reply=reply, advantage=advantages[reply.key])
        for reply, _ in group.replies
        if reply.key in advantages
    ]
    return _GroupOutcome(rollouts=tuple(rollouts), dropped=missing)


def _compute_advantages(
    group: ReplyGroup, config: Config, penalties: Mapping[ReplyKey, float] | None = None
) -> dict[ReplyKey, Advantage]:
    """Of each reply of a kept group that has a reward; a dropped group has none."""
    if explain_dropped_group(group.rewards, len(group.replies)) is not None:
        return {}
    rewards = [
        None if reward is None else reward - (penalties or {}).get(key, 0.0)
        for key, reward in zip(group.keys, group.rewards, strict=True)
    ]
    weights: dict[str, float] = {name: w for name, w in config.judge.weights.items() if w > 0}
    algo = config.algo
    if penalties and _are_rewards_equal(group.rewards):  # divided by their own deviation they would all be of size one
        algo = algo.model_copy(update={"normalise": "none"})
    advantages = compute_channel_advantages(rewards, _collect_axis_scores(group, weights), weights, algo)
    return {key: advantage for key, advantage in zip(group.keys, advantages, strict=True) if advantage is not None}


def _are_rewards_equal(rewards: Rewards) -> bool:
    """Up to rounding."""
    return compute_mean_and_variance([reward for reward in rewards if reward is not None])[1] == 0.0


def _build_pair_outcome(group: ReplyGroup, best: int, worst: int, missing: dict[ReplyKey, str]) -> _GroupOutcome:
    """The best reply against the worst."""
    chosen, rejected = (TrainingReply(prompt=group.prompt, reply=group.replies[i][0]) for i in (best, worst))
    others = dict.fromkeys(group.keys, "neither best nor worst of its group") | missing
    del others[group.keys[best]], others[group.keys[worst]]
    return _GroupOutcome(pair=PreferencePair(chosen=chosen, rejected=rejected), dropped=others)


def _collect_axis_scores(group: ReplyGroup, weights: Mapping[str, float]) -> dict[str, Rewards]:
    """Each reply's score on every weighted axis, where it has a reward; a veto is the floor of every axis.

    ``form``: 1 for a well-formed reply, else 0.
    """

    def score(judged: ReplyJudgement, axis: str) -> float | None:
        verdict = vetoes.find_veto(judged) or judged.axes[axis]
        return verdict.value if isinstance(verdict, ScoredVerdict) else None

    scores_by_axis: dict[str, Rewards] = {
        axis: [score(judged, axis) for _, judged in group.replies] for axis in weights
    }
    return scores_by_axis | {"form": [float(reply.well_formed) for reply, _ in group.replies]}


def select_rewarded_rollouts(groups: Sequence[ReplyGroup]) -> tuple[TrainingReply, ...]:
    """Every reply that has a reward."""
    return tuple(
        TrainingReply(prompt=group.prompt, reply=reply)
        for group in groups
        for reply, judged in group.replies
        if reward_of(judged) is not None
    )
