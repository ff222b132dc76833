"""Judged groups in, the step's decision out: lambda, advantages, and the batch that every rank gets.

Pure: no Ray, no clock, no files. Invariant 3: a missing verdict takes its reply out of its group and
nothing else; a group with fewer than max(2, ceil(G/2)) valid rewards is dropped whole and does not
touch the gate. So everything here equals what the survivors alone would give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from judge.types import Judged, Missing, Scored
from learner.advantage import advantages
from learner.gate import GateReading, Mixer
from learner.statistics import GroupStatistics, group_statistics, why_dropped
from learner.types import Anchor, Rollout, StepBatch
from rollout.types import Prompt, Reply

Key = tuple[str, int]  # prompt id, index in the group


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The judged replies to one prompt, by index."""

    prompt: Prompt
    replies: tuple[tuple[Reply, Judged], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a step will learn and why. ``dropped`` has a reason for every reply that teaches nothing."""

    batch: StepBatch
    reading: GateReading
    advantages: Mapping[Key, float]
    dropped: Mapping[Key, str]
    metrics: Mapping[str, float] = field(default_factory=dict)


def reward_of(judged: Judged) -> float | None:
    """The reward, or None when it is missing."""
    return judged.reward.value if isinstance(judged.reward, Scored) else None


def spread_of(judged: Judged) -> float | None:
    """The judge's standard deviation on the reward, or None when there is no reward."""
    return judged.reward.spread if isinstance(judged.reward, Scored) else None


def decide(step: int, groups: Sequence[Group], anchors: Sequence[Anchor], gate: Mixer) -> Decision:
    """Fold one step's groups into lambda and a batch. Updates ``gate``; call once per step, in order."""
    statistics: list[GroupStatistics] = []
    found: dict[Key, float] = {}
    dropped: dict[Key, str] = {}
    rows: list[Rollout] = []
    for group in groups:
        rewards = [reward_of(judged) for _, judged in group.replies]
        summary = group_statistics(rewards, len(rewards), [spread_of(judged) for _, judged in group.replies])
        statistics += [summary] if summary is not None else []
        for (reply, judged), advantage in zip(group.replies, advantages(rewards), strict=True):
            key = (reply.prompt_id, reply.index)
            if isinstance(judged.reward, Missing):
                dropped[key] = f"no reward: {judged.reward.reason}"
            elif summary is None:
                dropped[key] = f"group dropped: {why_dropped(rewards, len(rewards))}"
            else:
                assert advantage is not None
                found[key] = advantage
                rows.append(_row(group.prompt, reply, advantage))
    reading = gate.update(statistics)
    counts = {"groups/kept": len(statistics), "groups/dropped": len(groups) - len(statistics)}
    return Decision(
        batch=StepBatch(step=step, weight=reading.weight, rollouts=tuple(rows), anchors=tuple(anchors)),
        reading=reading,
        advantages=found,
        dropped=dropped,
        metrics={**reading.metrics(), **counts},
    )


def _row(prompt: Prompt, reply: Reply, advantage: float) -> Rollout:
    return Rollout(
        prompt_id=reply.prompt_id,
        index=reply.index,
        prompt_ids=prompt.ids,
        ids=reply.ids,
        logps=reply.logps,
        channels=reply.channels,
        sampled=reply.sampled,
        advantage=advantage,
    )
