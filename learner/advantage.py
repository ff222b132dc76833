"""Group-relative advantage: how much better a reply was than its siblings.

    A_i = (R_i - mean R) / std R    over the valid rewards of the group, population std

Invariant: a missing reward stays missing, and a group whose rewards are all equal (up to rounding) gives
exactly 0.0 each: dividing rounding noise by itself would make advantages of size one out of nothing.
"""

from collections.abc import Sequence
from math import sqrt

from learner.statistics import mean_and_variance


def advantages(rewards: Sequence[float | None]) -> list[float | None]:
    """One advantage per reward, None where the reward is missing.

    Never drops a group: ``statistics.why_dropped`` decides that.
    """
    valid = [reward for reward in rewards if reward is not None]
    if not valid:
        return [None] * len(rewards)
    mean, variance = mean_and_variance(valid)
    if variance == 0.0:
        return [None if reward is None else 0.0 for reward in rewards]
    std = sqrt(variance)
    return [None if reward is None else (reward - mean) / std for reward in rewards]
