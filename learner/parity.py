"""Parity: do engine and learner give the same log-probs to the same sampled tokens?

Everything that can go wrong between the two (temperature, grammar mask, weights that did not arrive, ids
that were re-tokenised) shows here as a difference, before it shows anywhere else. docs/design.md §5, invariant 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan

from learner.types import TrainingReply
from rollout.types import Reply, ReplyKey

FLOAT32_BOUND = 2e-4  # largest difference accepted for float32 on both sides; 3e-5 was measured


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobDifference:
    """|learner - engine| in nats over the compared positions of one channel."""

    count: int
    mean: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Differences by channel letter, and the verdict against the bound."""

    channels: dict[str, LogprobDifference]
    bound: float

    @property
    def passed(self) -> bool:
        """Every difference within the bound, and something was compared."""
        return bool(self.channels) and all(d.largest <= self.bound for d in self.channels.values())


def compare_logprobs(
    rollouts: Sequence[TrainingReply],
    learner_logps: Mapping[ReplyKey, Sequence[float]],
    *,
    bound: float = FLOAT32_BOUND,
) -> ParityReport:
    """Compare at sampled positions that the learner scored (not NaN). A log-prob that is not finite counts
    as infinitely far; a reply that this run did not sample has nothing to compare.

    KeyError: a rollout without learner log-probs.
    """
    gaps: dict[str, list[float]] = {}
    for reply in (rollout.reply for rollout in rollouts if isinstance(rollout.reply, Reply)):
        for letter, sampled, engine, learner in zip(
            reply.channels, reply.sampled, reply.logps, learner_logps[reply.key], strict=True
        ):
            if sampled and not isnan(learner):
                gap = abs(learner - engine)
                gaps.setdefault(letter, []).append(gap if isfinite(gap) else float("inf"))
    return ParityReport(
        channels={
            letter: LogprobDifference(count=len(g), mean=sum(g) / len(g), largest=max(g))
            for letter, g in sorted(gaps.items())
        },
        bound=bound,
    )
