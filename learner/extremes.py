"""The best and the worst of a group's rewards, or why they make no pair. Pure.

Invariant: a missing reward takes its reply out of the group and nothing else, and a group with too few is
dropped whole, as for the gate (``statistics.py``). Equal rewards are told apart by index alone, so the same
rewards give the same pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from learner.statistics import REWARD_ROUNDING, explain_dropped_group

NoPairReason = Literal["verdicts", "margin", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoPair:
    """Why a group gives no pair; ``reason`` is for people."""

    why: NoPairReason
    reason: str


def pick_best_and_worst(rewards: Sequence[float | None], margin: float) -> tuple[int, int] | NoPair:
    """Indices of the best and the worst reply; of equal ones the first. Equal up to rounding: no pair."""
    reason = explain_dropped_group(rewards, len(rewards))
    if reason is not None:
        return NoPair(why="verdicts", reason=reason)
    valid = [(reward, index) for index, reward in enumerate(rewards) if reward is not None]
    worst, best = min(valid), max(valid, key=lambda candidate: (candidate[0], -candidate[1]))
    gap, noise = best[0] - worst[0], REWARD_ROUNDING * max(1.0, abs(best[0]))
    if gap <= noise or gap < margin - noise:
        message = f"best {best[0]:g} and worst {worst[0]:g} must be at least {margin:g} apart"
        return NoPair(why="margin", reason=message)
    return best[1], worst[1]
