"""How far a judge and people agree about the same replies, and a judge with itself.

    Pearson               over all items, on the scale
    Spearman in a prompt  rank correlation of a prompt's items, mean over prompts: what a group needs
    MAE, bias             mean |judge - human|, mean (judge - human)
    within one            share of items with |judge - human| of at most one point

Invariant: a figure that the data do not define (fewer than two items, one side all alike) is None, never 0.
Intervals: items of a prompt are not independent, so whole prompts are drawn again, with replacement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

ScoreArray = NDArray[np.float64]

BOOTSTRAP_DRAWS = 2000  # of the bootstrap
INTERVAL_LEVEL = 0.95  # share of the draws inside an interval
MIN_VARIANCE_SHARE = 1e-12  # squared deviations below this share of the squared size are rounding
SCORE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedReply:
    """One reply: the judge's score and the mean of its human ratings, on one scale."""

    prompt_id: str
    judge: float
    human: float


@dataclass(frozen=True, slots=True)
class AgreementEstimate:
    """A figure and its 95 % interval; None where it is not defined."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The five figures.

    ``ranked``: prompts that have a rank correlation; ``unranked``: two items or more, but one side all alike.
    """

    items: int
    prompts: int
    pearson: AgreementEstimate
    spearman: AgreementEstimate
    ranked: int
    unranked: int
    mae: float | None
    bias: float | None
    within_one: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaterAgreement:
    """People among themselves, over the items with two raters or more.

    ``icc``: share of a single rating's variance that is the item's (one-way random effects, ICC(1)).
    ``difference``: mean absolute difference of two ratings of one item.
    """

    items: int
    icc: float | None
    difference: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetestAgreement:
    """Two independent passes of one judge over the same items."""

    items: int
    pearson: float | None
    mae: float | None


def measure_agreement(
    items: Sequence[RatedReply], point: float = 1.0, *, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> Agreement:
    """The figures and their intervals; ``point``: one step of the scale (1 on 1..5).

    Example:
        measure_agreement(
            [RatedReply(prompt_id="a", judge=4, human=5), RatedReply(prompt_id="a", judge=2, human=1)]
        )
    """
    groups = [np.array([(item.judge, item.human) for item in group]) for group in _group_by_prompt(items).values()]
    pairs = np.concatenate(groups) if groups else np.empty((0, 2))
    ranks = [spearman_correlation(group[:, 0], group[:, 1]) for group in groups if len(group) > 1]
    defined_ranks = [rank for rank in ranks if rank is not None]
    off = pairs[:, 0] - pairs[:, 1]
    return Agreement(
        items=len(pairs),
        prompts=len(groups),
        pearson=AgreementEstimate(
            pearson_correlation(pairs[:, 0], pairs[:, 1]), _pearson_interval(groups, draws, seed)
        ),
        spearman=AgreementEstimate(_mean_or_none(defined_ranks), _mean_interval(defined_ranks, draws, seed)),
        ranked=len(defined_ranks),
        unranked=len(ranks) - len(defined_ranks),
        mae=_mean_or_none(np.abs(off)),
        bias=_mean_or_none(off),
        within_one=_mean_or_none(np.abs(off) <= point + SCORE_TOLERANCE),
    )


def pearson_correlation(first: Sequence[float] | ScoreArray, second: Sequence[float] | ScoreArray) -> float | None:
    """Linear correlation; None for fewer than two pairs or a side that is all alike."""
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    assert x.shape == y.shape
    if len(x) < 2 or np.ptp(x) <= SCORE_TOLERANCE or np.ptp(y) <= SCORE_TOLERANCE:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def spearman_correlation(first: Sequence[float] | ScoreArray, second: Sequence[float] | ScoreArray) -> float | None:
    """Correlation of the ranks, equal values sharing the mean of theirs; None as for ``pearson_correlation``."""
    return pearson_correlation(rankdata(np.asarray(first).round(9)), rankdata(np.asarray(second).round(9)))


def compare_passes(first: Sequence[float], second: Sequence[float]) -> RetestAgreement:
    """Scores of the same items, in the same order, by two passes."""
    off = np.abs(np.subtract(first, second))
    return RetestAgreement(items=len(off), pearson=pearson_correlation(first, second), mae=_mean_or_none(off))


def estimate_repeat_variance(passes: Sequence[tuple[float, float, float, float]], repeats: int) -> float | None:
    """Sample variance (n - 1) of one reading of one item, mean over the items.

    ``passes``: per item mean and population deviation of the ``repeats`` readings of a first and a second
    pass, which makes 2 * ``repeats`` readings. A score is the mean of ``repeats`` of them: its variance is
    this over ``repeats``. None: no item. ValueError: fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1: got {repeats}")
    squares = [repeats * (within**2 + again**2 + (mean - second) ** 2 / 2) for mean, within, second, again in passes]
    return fmean(squares) / (2 * repeats - 1) if squares else None


def measure_rater_agreement(ratings: Sequence[Sequence[float]]) -> RaterAgreement:
    """Human ratings item by item; items with a single one say nothing about agreement."""
    several = [np.asarray(item_ratings, np.float64) for item_ratings in ratings if len(item_ratings) > 1]
    differences = [abs(a - b) for item_ratings in several for a, b in combinations(item_ratings.tolist(), 2)]
    return RaterAgreement(
        items=len(several), icc=_intraclass_correlation(several), difference=_mean_or_none(differences)
    )


def _intraclass_correlation(several: Sequence[ScoreArray]) -> float | None:
    """From the mean squares between and within items, with the mean group size that unequal groups need."""
    if len(several) < 2:
        return None
    sizes = np.array([len(item_ratings) for item_ratings in several])
    everything = np.concatenate(several)
    means = np.array([item_ratings.mean() for item_ratings in several])
    between = float(sizes @ (means - everything.mean()) ** 2) / (len(several) - 1)
    within = sum(float(((item_ratings - item_ratings.mean()) ** 2).sum()) for item_ratings in several) / (
        sizes.sum() - len(several)
    )
    size = float(sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(several) - 1)
    total = between + (size - 1) * within
    return (between - within) / total if total > SCORE_TOLERANCE else None


def _group_by_prompt(items: Sequence[RatedReply]) -> Mapping[str, list[RatedReply]]:
    groups: dict[str, list[RatedReply]] = {}
    for item in items:
        groups.setdefault(item.prompt_id, []).append(item)
    return groups


def _mean_or_none(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def draw_bootstrap_counts(count: int, draws: int, seed: int | Sequence[int]) -> NDArray[np.int64]:
    """How often each of ``count`` things is in each draw with replacement; shape [draws, count]."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def percentile_interval(values: ScoreArray, level: float = INTERVAL_LEVEL) -> tuple[float, float] | None:
    """Of the draws in which the figure is defined; None when half of them or fewer are."""
    defined = values[np.isfinite(values)]
    if 2 * len(defined) <= len(values):
        return None
    outside = (1 - level) / 2
    low, high = np.quantile(defined, [outside, 1 - outside])
    return float(low), float(high)


def _mean_interval(values: Sequence[float], draws: int, seed: int) -> tuple[float, float] | None:
    """Of the mean of one value per prompt."""
    if len(values) < 2:
        return None
    return percentile_interval(draw_bootstrap_counts(len(values), draws, seed) @ np.asarray(values) / len(values))


def _pearson_interval(groups: Sequence[ScoreArray], draws: int, seed: int) -> tuple[float, float] | None:
    """From sums per prompt: a draw only adds them up. Sums about the common mean, so that none is large."""
    if len(groups) < 2:
        return None
    centre = np.concatenate(groups).mean(axis=0)
    sums = np.array(
        [[len(g), *g.sum(0), *(g * g).sum(0), (g[:, 0] * g[:, 1]).sum()] for g in (g - centre for g in groups)]
    )
    n, x, y, xx, yy, xy = (draw_bootstrap_counts(len(groups), draws, seed) @ sums).T
    along, across = xx - x * x / n, yy - y * y / n
    defined = (along > MIN_VARIANCE_SHARE * (1 + xx)) & (across > MIN_VARIANCE_SHARE * (1 + yy))
    product = np.sqrt(np.where(defined, along * across, np.nan))
    return percentile_interval(np.clip((xy - x * y / n) / product, -1, 1))
