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
from judge import vetoes
from judge.types import Judged, Missing, Scored
from learner.advantage import Rewards, group_advantages
from learner.extremes import Dropped, best_and_worst
from learner.gate import GateReading, Mixer
from learner.statistics import GroupStatistics, group_statistics, mean_and_variance, why_dropped
from learner.types import NONE, Advantage, Anchor, Pair, Rollout, StepBatch
from rollout.types import Prompt, Reply

Key = tuple[str, int]  # prompt id, index in the group

FEW, EQUAL, CLOSE = "few_verdicts", "equal_rewards", "small_margin"  # why a whole group teaches nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The judged replies to one prompt, by index."""

    prompt: Prompt
    replies: tuple[tuple[Reply, Judged], ...]

    @property
    def rewards(self) -> list[float | None]:
        """By index; None where it is missing."""
        return [reward_of(judged) for _, judged in self.replies]

    @property
    def keys(self) -> list[Key]:
        """By index."""
        return [(reply.prompt_id, reply.index) for reply, _ in self.replies]

    def statistics(self, repeats: int = 1) -> GroupStatistics | None:
        """None: too few rewards. ``repeats``: readings behind each score, of which its spread tells."""
        errors = [error_of(judged, repeats) for _, judged in self.replies]
        return group_statistics(self.rewards, len(self.replies), errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a step will learn and why. ``dropped`` has a reason for every reply that teaches nothing."""

    batch: StepBatch
    reading: GateReading
    advantages: Mapping[Key, Advantage]
    dropped: Mapping[Key, str]
    penalties: Mapping[Key, float] = field(default_factory=dict)  # taken off the rewards before advantages
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lesson:
    """What one group teaches. ``kind``: why the whole group teaches nothing."""

    rollouts: tuple[Rollout, ...] = ()
    pair: Pair | None = None
    advantages: Mapping[Key, Advantage] = field(default_factory=dict)
    dropped: Mapping[Key, str] = field(default_factory=dict)
    kind: str | None = None


def reward_of(judged: Judged) -> float | None:
    """The reward, or None when it is missing."""
    return judged.reward.value if isinstance(judged.reward, Scored) else None


def error_of(judged: Judged, repeats: int) -> float | None:
    """The judge's standard error of the reward, a mean over ``repeats`` readings; None when there is none."""
    return judged.reward.spread / sqrt(max(1, repeats - 1)) if isinstance(judged.reward, Scored) else None


def differs(group: Group, config: Config) -> bool:
    """Whether the judges told any reply of the group from another."""
    return any(one != NONE for one in _advantages(group, config).values())


def decide(
    step: int,
    groups: Sequence[Group],
    anchors: Sequence[Anchor],
    gate: Mixer,
    config: Config,
    *,
    pairs: Sequence[Pair] = (),
    penalties: Mapping[Key, float] | None = None,
) -> Decision:
    """Fold one step's groups into lambda and a batch. Updates ``gate``; call once per step, in order.

    ``pairs``: of a manifest. ``penalties``: what is taken off each reply's reward before advantages; the gate
    reads the judge's own.
    """
    lessons = [_lesson(group, config, penalties or {}) for group in groups]
    statistics = [found for group in groups if (found := group.statistics(config.judge.repeats)) is not None]
    reading = gate.update(statistics)
    if not config.algo.prefers_at(step):
        reading = replace(reading, weight=0.0)
    kinds = Counter(lesson.kind for lesson in lessons if lesson.kind is not None)
    counts = {"groups/kept": len(groups) - kinds.total(), "groups/dropped": kinds.total()}
    counts |= {f"groups/dropped_{kind}": count for kind, count in kinds.items()}
    return Decision(
        batch=StepBatch(
            step=step,
            weight=reading.weight,
            rollouts=tuple(row for lesson in lessons for row in lesson.rollouts),
            anchors=tuple(anchors),
            pairs=(*pairs, *(lesson.pair for lesson in lessons if lesson.pair is not None)),
        ),
        reading=reading,
        advantages={key: one for lesson in lessons for key, one in lesson.advantages.items()},
        dropped={key: why for lesson in lessons for key, why in lesson.dropped.items()},
        penalties=penalties or {},
        metrics={**reading.metrics(), **(counts if groups else {}), **_paid(penalties)},
    )


def _paid(penalties: Mapping[Key, float] | None) -> dict[str, float]:
    return {"reward/kl_penalty": fsum(penalties.values()) / len(penalties)} if penalties else {}


def _lesson(group: Group, config: Config, penalties: Mapping[Key, float]) -> _Lesson:
    missing = {
        key: f"no reward: {judged.reward.reason}"
        for key, (_, judged) in zip(group.keys, group.replies, strict=True)
        if isinstance(judged.reward, Missing)
    }

    def nothing(kind: str, why: str) -> _Lesson:
        return _Lesson(dropped=dict.fromkeys(group.keys, f"group dropped: {why}") | missing, kind=kind)

    few = why_dropped(group.rewards, len(group.replies))
    if few is not None:
        return nothing(FEW, few)
    if config.algo.equal_groups != "keep" and not differs(group, config):
        return nothing(EQUAL, "all rewards are equal")
    if config.algo.loss != "online_dpo":
        return _compared(group, config, penalties, missing)
    found = best_and_worst(group.rewards, config.margin)
    return nothing(CLOSE, found.reason) if isinstance(found, Dropped) else _paired(group, *found, missing)


def _compared(group: Group, config: Config, penalties: Mapping[Key, float], missing: Mapping[Key, str]) -> _Lesson:
    """Every reply against the others."""
    told = _advantages(group, config, penalties)
    rows = [
        row_of(group.prompt, reply, told[key])
        for key, (reply, _) in zip(group.keys, group.replies, strict=True)
        if key in told
    ]
    return _Lesson(rollouts=tuple(rows), advantages=told, dropped=missing)


def _advantages(group: Group, config: Config, penalties: Mapping[Key, float] | None = None) -> dict[Key, Advantage]:
    """Of each reply of a kept group that has a reward; a dropped group has none."""
    if why_dropped(group.rewards, len(group.replies)) is not None:
        return {}
    rewards = [
        None if reward is None else reward - (penalties or {}).get(key, 0.0)
        for key, reward in zip(group.keys, group.rewards, strict=True)
    ]
    weights: dict[str, float] = {name: w for name, w in config.judge.weights.items() if w > 0}
    algo = config.algo
    if penalties and _equal(group.rewards):  # divided by their own deviation they would all be of size one
        algo = algo.model_copy(update={"normalise": "none"})
    found = group_advantages(rewards, _axes(group, weights), weights, algo)
    return {key: one for key, one in zip(group.keys, found, strict=True) if one is not None}


def _equal(rewards: Rewards) -> bool:
    """Whether the judges held all alike."""
    return mean_and_variance([reward for reward in rewards if reward is not None])[1] == 0.0


def _paired(group: Group, best: int, worst: int, missing: dict[Key, str]) -> _Lesson:
    """The best reply against the worst."""
    chosen, rejected = (row_of(group.prompt, group.replies[i][0]) for i in (best, worst))
    others = dict.fromkeys(group.keys, "neither best nor worst of its group") | missing
    del others[group.keys[best]], others[group.keys[worst]]
    return _Lesson(pair=Pair(chosen=chosen, rejected=rejected), dropped=others)


def _axes(group: Group, weights: Mapping[str, float]) -> dict[str, Rewards]:
    """Each reply's score on every weighted axis, where it has a reward; a veto is the floor of every axis.

    ``form``: 1 for a well-formed reply, else 0.
    """

    def score(judged: Judged, axis: str) -> float | None:
        verdict = vetoes.decided(judged) or judged.axes[axis]
        return verdict.value if isinstance(verdict, Scored) else None

    found: dict[str, Rewards] = {axis: [score(judged, axis) for _, judged in group.replies] for axis in weights}
    return found | {"form": [float(reply.well_formed) for reply, _ in group.replies]}


def rewarded(groups: Sequence[Group]) -> tuple[Rollout, ...]:
    """Every reply that has a reward."""
    return tuple(
        row_of(group.prompt, reply)
        for group in groups
        for reply, judged in group.replies
        if reward_of(judged) is not None
    )


def row_of(prompt: Prompt, reply: Reply, advantage: Advantage = NONE) -> Rollout:
    """A reply as the learner takes it."""
    return Rollout(
        prompt_id=reply.prompt_id,
        index=reply.index,
        prompt_ids=prompt.ids,
        ids=reply.ids,
        logps=reply.logps,
        channels=reply.channels,
        sampled=reply.sampled,
        advantage=advantage,
        features=prompt.features,
    )
