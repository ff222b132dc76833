"""Group-relative advantage: how much better a reply was than its siblings.

    std            A_i = (R_i - mean R) / std R    over the valid rewards of the group, population std
    none           A_i = R_i - mean R
    leave_one_out  A_i = R_i - mean of the others

Invariant: a missing reward stays missing, and a group whose rewards are all equal (up to rounding) gives
exactly 0.0 each: dividing rounding noise by itself would make advantages of size one out of nothing.
"""

from collections.abc import Mapping, Sequence
from math import fsum, sqrt

from conf.algorithm import AlgoConfig
from learner.statistics import compute_mean_and_variance
from learner.types import Advantage

RELEASED_STD_FLOOR = 1e-4  # beside the standard deviation in the paper's released code

Rewards = Sequence[float | None]


def compute_advantages(rewards: Rewards, normalise: str = "std", floor: float = 0.0) -> list[float | None]:
    """One advantage per reward, None where the reward is missing.

    ``floor`` is added to the standard deviation. Never drops a group: ``statistics.explain_dropped_group`` does.
    """
    valid = [reward for reward in rewards if reward is not None]
    if not valid:
        return [None] * len(rewards)
    mean, variance = compute_mean_and_variance(valid)
    if variance == 0.0:
        return [None if reward is None else 0.0 for reward in rewards]
    factor = {
        "std": 1.0 / (sqrt(variance) + floor),
        "none": 1.0,
        "leave_one_out": len(valid) / (len(valid) - 1),
    }[normalise]
    return [None if reward is None else (reward - mean) * factor for reward in rewards]


def compute_channel_advantages(
    rewards: Rewards,
    axes: Mapping[str, Rewards],
    weights: Mapping[str, float],
    algo: AlgoConfig,
) -> list[Advantage | None]:
    """The advantage of each reply for TEXT, AUDIO and form (BOUNDARY and STOP); None where the reward is missing.

    ``axes``: the score of each reply on every weighted axis, and ``form`` (1 for a well-formed reply, else
    0); read by ``routed`` and ``normalise_by=axis``. ``weights``: of the axes in the reward.
    """
    valid = [reward is not None for reward in rewards]
    floor = RELEASED_STD_FLOOR if algo.faithful else 0.0

    def normalised(scores: Rewards) -> list[float | None]:
        valid_scores = [score if is_valid else None for score, is_valid in zip(scores, valid, strict=True)]
        return compute_advantages(valid_scores, algo.normalise, floor)

    if algo.routed:
        parts = [normalised(axes[name]) for name in ("semantic", "acoustic", "form")]
        return [
            Advantage(text, audio, form) if text is not None and audio is not None and form is not None else None
            for text, audio, form in zip(*parts, strict=True)
        ]
    if algo.normalise_by == "reward":
        return [None if a is None else Advantage.shared(a) for a in normalised(rewards)]
    total = fsum(weights.values())
    by_axis = {name: normalised(axes[name]) for name in weights}
    return [
        Advantage.shared(fsum(w * (by_axis[name][i] or 0.0) for name, w in weights.items()) / total) if ok else None
        for i, ok in enumerate(valid)
    ]
