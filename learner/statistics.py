"""What a group of replies to one prompt says: how many were judged, how good, how different.

Invariant: only rewards that exist count. A missing reward (None) has no effect on any figure but
``size``; nothing stands in for it. A group with too few valid rewards has no statistics at all (docs/method.md
§3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, fsum, sqrt

REWARD_ROUNDING = 1e-9  # rewards closer than this, relative to their size, differ by float rounding only


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatistics:
    """Figures of one kept group, in the judge's units."""

    count: int  # valid rewards, n
    size: int  # replies, G
    mean: float
    variance: float  # population variance; exactly 0 when the rewards are equal up to rounding
    best: float
    noise_variance: float = 0.0  # sigma_J^2: variance of a reward by the judge's repeats, mean over the valid ones

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return sqrt(self.variance)


def minimum_valid_rewards(group_size: int) -> int:
    """Fewest valid rewards that a group of ``group_size`` replies needs."""
    return max(2, ceil(group_size / 2))


def explain_dropped_group(rewards: Sequence[float | None], group_size: int) -> str | None:
    """Why this group is left out of the step, or None when it is kept."""
    valid, needed = sum(reward is not None for reward in rewards), minimum_valid_rewards(group_size)
    return None if valid >= needed else f"{valid} of {group_size} replies have a reward, {needed} needed"


def compute_mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population variance; the variance is exactly 0 when the values are equal up to rounding."""
    mean = fsum(values) / len(values)
    if max(values) - min(values) <= REWARD_ROUNDING * max(1.0, abs(mean)):
        return mean, 0.0
    return mean, fsum((value - mean) ** 2 for value in values) / len(values)


def compute_group_statistics(
    rewards: Sequence[float | None], group_size: int, errors: Sequence[float | None] | None = None
) -> GroupStatistics | None:
    """Statistics over the valid rewards of a group; None when it is dropped (``explain_dropped_group`` says why).

    ``errors``: the judge's standard error per reward, aligned with ``rewards``; read where a reward is
    valid.
    ValueError: more rewards than replies, or errors of another length.
    """
    if len(rewards) > group_size:
        raise ValueError(f"a group has at most group_size={group_size} rewards: got {len(rewards)}")
    if errors is not None and len(errors) != len(rewards):
        raise ValueError(f"errors must be aligned with rewards: got {len(errors)} for {len(rewards)}")
    if explain_dropped_group(rewards, group_size) is not None:
        return None
    valid = [reward for reward in rewards if reward is not None]
    mean, variance = compute_mean_and_variance(valid)
    noise = [
        error**2
        for reward, error in zip(rewards, errors or (), strict=False)
        if reward is not None and error is not None
    ]
    return GroupStatistics(
        count=len(valid),
        size=group_size,
        mean=mean,
        variance=variance,
        best=max(valid),
        noise_variance=fsum(noise) / len(noise) if noise else 0.0,
    )
