"""The best and the worst of a group's rewards, or why they make no pair. Pure.

Invariant: a missing reward takes its reply out of the group and nothing else, and a group with too few is
dropped whole, as for the gate (``statistics.py``). Equal rewards are told apart by index alone, so the same
rewards give the same pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from learner.statistics import ROUNDING, why_dropped

Why = Literal["verdicts", "margin", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """Why a group gives no pair; ``reason`` is for people."""

    why: Why
    reason: str


def best_and_worst(rewards: Sequence[float | None], margin: float) -> tuple[int, int] | Dropped:
    """Indices of the best and the worst reply; of equal ones the first. Equal up to rounding: no pair."""
    reason = why_dropped(rewards, len(rewards))
    if reason is not None:
        return Dropped(why="verdicts", reason=reason)
    valid = [(reward, index) for index, reward in enumerate(rewards) if reward is not None]
    worst, best = min(valid), max(valid, key=lambda one: (one[0], -one[1]))
    gap, noise = best[0] - worst[0], ROUNDING * max(1.0, abs(best[0]))
    if gap <= noise or gap < margin - noise:
        told = f"best {best[0]:g} and worst {worst[0]:g} must be at least {margin:g} apart"
        return Dropped(why="margin", reason=told)
    return best[1], worst[1]
