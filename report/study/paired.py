"""Means over seeds and prompts, their differences to a baseline, 95 % intervals and sign tests.

    mean         m = sum x_sp / n                        over the values that are there
    one draw     takes prompt p w_p times and seed s v_s times (two independent multinomials)
                 m* = sum v_s w_p x_sp / sum v_s w_p
    interval     the percentiles of m* over the draws, each k times as far from m
    difference   the same of x_sp - y_sp: a draw takes the same prompts and seeds of both sides
    distance     a figure that drawing pushes up: d - bias, bias = mean d* - d; percentiles mirrored at d
    sign test    per prompt the side with the better mean over seeds wins; two-sided, exact, without ties

Seeds are crossed with prompts (every seed answers every prompt), so a seed is drawn once for all prompts:
what a seed does to the whole run stays in the interval. Draws of S seeds show (S - 1) / S of that variance,
and no draw can leave the range of the S seeds, however few they are:

    V_s = var(seed means) / S            unbiased; S - 1 degrees of freedom
    V   = var(m*) + V_s / S              what the draws lack is added
    f   = V^2 / (V_s^2 / (S - 1) + (V - V_s)^2 / (P - 1))        Satterthwaite
    k   = t_f / z * sqrt(V / var(m*))    1 where seeds agree and prompts are many; 3 seeds alone: 2.7

``python -m bench.coverage`` measures how often intervals hold the truth. The draws depend on ``seed`` and on
the two counts alone: the same for all methods, and the same numbers every time.

Arrays: S seeds, P prompts, B draws, V kinds of audio token. A value that is not there is NaN; a figure that
the values do not define is None, never 0.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from conf.study import BootstrapConfig
from judge.agreement import draw_bootstrap_counts, percentile_interval

FigureArray = NDArray[np.float64]

MEAN_ROUNDING = 1e-9  # means over seeds that are closer than this are equal
DRAWS_PER_CHUNK = 512  # draws whose histograms exist at the same time


@dataclass(frozen=True, slots=True)
class IntervalEstimate:
    """A figure and its interval; None where it is not defined."""

    value: float | None
    lo: float | None = None
    hi: float | None = None

    @property
    def decided(self) -> int:
        """The sign of the figure where its interval leaves 0 out, else 0."""
        if self.lo is None or self.hi is None:
            return 0
        return (self.lo > 0) - (self.hi < 0)


@dataclass(frozen=True, slots=True)
class SignCounts:
    """Prompts on which one side did better; ``p``: of so uneven a split, were both sides alike."""

    wins: int
    losses: int
    ties: int
    p: float


def estimate_mean(values_SP: FigureArray, bootstrap: BootstrapConfig) -> IntervalEstimate:
    """The mean of what is there, over seeds and prompts."""
    known_SP = values_SP[:, ~np.isnan(values_SP).all(axis=0)]
    if not known_SP.size:
        return IntervalEstimate(None)
    drawn_B = _average_draws(known_SP, *draw_prompts_and_seeds(known_SP.shape, bootstrap))
    seeds_S = np.array([np.nanmean(row) for row in known_SP if not np.isnan(row).all()])
    value, prompts = float(np.nanmean(known_SP)), known_SP.shape[1]
    interval = percentile_interval(drawn_B, bootstrap.level) or (None, None)
    return _widen_interval(IntervalEstimate(value, *interval), drawn_B, seeds_S, prompts, bootstrap)


def estimate_difference(
    values_SP: FigureArray, baseline_SP: FigureArray, bootstrap: BootstrapConfig
) -> IntervalEstimate:
    """``values - baseline`` over the seeds and prompts that both have; row s of both is the same seed."""
    return estimate_mean(values_SP - baseline_SP, bootstrap)


def count_signs(values_SP: FigureArray, baseline_SP: FigureArray, better: int) -> SignCounts | None:
    """Prompt by prompt; ``better``: +1 when more is better, -1 when less is. None: no prompt in common."""
    gaps_SP = (values_SP - baseline_SP) * better
    gaps_SP = gaps_SP[:, ~np.isnan(gaps_SP).all(axis=0)]
    if not gaps_SP.size:
        return None
    gaps_P = np.nanmean(gaps_SP, axis=0)
    wins, losses = int((gaps_P > MEAN_ROUNDING).sum()), int((gaps_P < -MEAN_ROUNDING).sum())
    return SignCounts(wins, losses, len(gaps_P) - wins - losses, sign_test(wins, losses))


def sign_test(wins: int, losses: int) -> float:
    """P(a split at least as uneven | heads and tails alike), two-sided and exact; 1 without any trial."""
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(comb(n, k) for k in range(fewer + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


def compute_token_distances(counts_SPV: FigureArray, base_SPV: FigureArray) -> FigureArray:
    """Per seed, the divergence in bits of the audio tokens of all prompts from the base's; shape [S]."""
    return compute_jensen_shannon(counts_SPV.sum(axis=1), base_SPV.sum(axis=1))


def bootstrap_token_distances(
    counts_SPV: FigureArray, base_SPV: FigureArray, bootstrap: BootstrapConfig
) -> FigureArray:
    """``compute_token_distances`` of the prompts of every draw; shape [B, S]."""
    seeds, prompts, _ = counts_SPV.shape
    w_BP, _ = draw_prompts_and_seeds((seeds, prompts), bootstrap)
    found_BS = np.empty((len(w_BP), seeds))
    for start in range(0, len(w_BP), DRAWS_PER_CHUNK):
        rows = w_BP[start : start + DRAWS_PER_CHUNK]
        for s in range(seeds):
            found_BS[start : start + DRAWS_PER_CHUNK, s] = compute_jensen_shannon(
                rows @ counts_SPV[s], rows @ base_SPV[s]
            )
    return found_BS


def remove_bias(values_S: FigureArray, drawn_BS: FigureArray) -> FigureArray:
    """``compute_token_distances``, or differences of two, without what few tokens alone make of them; shape [S].

    Histograms of few tokens are apart though they have one source, by about as much as those of a draw are
    more apart than their own. What is left can be below 0: no more apart than chance has it.
    """
    known_BS = ~np.isnan(drawn_BS)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * values_S - np.nan_to_num(drawn_BS).sum(axis=0) / known_BS.sum(axis=0))


def estimate_mean_distance(
    values_S: FigureArray, drawn_BS: FigureArray, prompts: int, bootstrap: BootstrapConfig
) -> IntervalEstimate:
    """The mean over seeds of ``compute_token_distances``, or of the difference of two of them, without its bias.

    The percentiles are mirrored at the plain figure: draws are as far above it as it is above the truth.
    """
    seeds_S = remove_bias(values_S, drawn_BS)
    seeds_S = seeds_S[~np.isnan(seeds_S)]
    if not seeds_S.size:
        return IntervalEstimate(None)
    _, v_BS = draw_prompts_and_seeds((len(values_S), prompts), bootstrap)
    known_BS = ~np.isnan(drawn_BS)
    with np.errstate(invalid="ignore"):
        drawn_B = (v_BS * np.nan_to_num(drawn_BS)).sum(axis=1) / (v_BS * known_BS).sum(axis=1)
    plain, value = float(np.nanmean(values_S)), float(seeds_S.mean())
    interval = percentile_interval(drawn_B, bootstrap.level)
    if interval is None:
        return IntervalEstimate(value)
    lo, hi = interval
    return _widen_interval(
        IntervalEstimate(value, 2 * plain - hi, 2 * plain - lo), drawn_B, seeds_S, prompts, bootstrap
    )


def compute_jensen_shannon(p_NV: FigureArray, q_NV: FigureArray) -> FigureArray:
    """Jensen-Shannon divergence of two histograms of counts, in bits; NaN where one is empty; shape [N].

    0: the same shares of every token; 1: no token in common.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p_NV = p_NV / p_NV.sum(axis=-1, keepdims=True)
        q_NV = q_NV / q_NV.sum(axis=-1, keepdims=True)
        gap_N = _compute_entropy((p_NV + q_NV) / 2) - (_compute_entropy(p_NV) + _compute_entropy(q_NV)) / 2
    return np.asarray(np.clip(gap_N, 0.0, 1.0))


def draw_prompts_and_seeds(shape: tuple[int, ...], bootstrap: BootstrapConfig) -> tuple[FigureArray, FigureArray]:
    """How often each prompt [B, P] and each seed [B, S] is in each draw, for values of shape [S, P]."""
    seeds, prompts = shape
    return _draw_counts(0, prompts, bootstrap), _draw_counts(1, seeds, bootstrap)


@lru_cache(maxsize=16)  # drawing takes longer than all the sums
def _draw_counts(which: int, count: int, bootstrap: BootstrapConfig) -> FigureArray:
    drawn_counts = draw_bootstrap_counts(count, bootstrap.draws, (bootstrap.seed, which, count)).astype(np.float64)
    drawn_counts.setflags(write=False)
    return drawn_counts


def _average_draws(values_SP: FigureArray, w_BP: FigureArray, v_BS: FigureArray) -> FigureArray:
    """The weighted mean of every draw; NaN where a draw holds no value at all."""
    known_SP = ~np.isnan(values_SP)
    sums_B = (v_BS * (w_BP @ np.nan_to_num(values_SP).T)).sum(axis=1)
    counts_B = (v_BS * (w_BP @ known_SP.T)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums_B / counts_B)


def _widen_interval(
    estimate: IntervalEstimate, drawn_B: FigureArray, seeds_S: FigureArray, prompts: int, bootstrap: BootstrapConfig
) -> IntervalEstimate:
    """The interval k times as wide (see above); none of a single prompt."""
    value, lo, hi = estimate.value, estimate.lo, estimate.hi
    if value is None or lo is None or hi is None or prompts < 2:
        return IntervalEstimate(value)
    shown = float(np.nanvar(drawn_B))
    if shown <= MEAN_ROUNDING**2:
        return estimate
    seeds = len(seeds_S)
    of_seeds = float(seeds_S.var(ddof=1)) / seeds if seeds > 1 else 0.0
    whole = shown + of_seeds / seeds
    noise = of_seeds**2 / max(1, seeds - 1) + (whole - of_seeds) ** 2 / (prompts - 1)
    quantile = (1 + bootstrap.level) / 2
    k = float(stdtrit(whole**2 / noise, quantile) / ndtri(quantile)) * (whole / shown) ** 0.5
    return IntervalEstimate(value, value - k * (value - lo), value + k * (hi - value))


def replace_zero_width_interval(
    estimate: IntervalEstimate, prompts: int, whole: float | None, bootstrap: BootstrapConfig, *, signed: bool = False
) -> IntervalEstimate:
    """An interval of no width says that the replies agree, not that the figure is known.

    Of a share at none or all of the prompts (``whole``: the value of all) it is Wilson's for 0 of n; of a
    difference of shares (``signed``), as if so many prompts might differ. Of any other figure there is none.
    """
    value, lo, hi = estimate.value, estimate.lo, estimate.hi
    if value is None or lo is None or hi is None or hi - lo > MEAN_ROUNDING:
        return estimate
    if whole is None or min(abs(value), abs(whole - abs(value))) > MEAN_ROUNDING:
        return IntervalEstimate(value)
    z_2 = float(ndtri((1 + bootstrap.level) / 2)) ** 2
    most = whole * z_2 / (prompts + z_2)
    if signed:
        return IntervalEstimate(value, max(-whole, value - 2 * most), min(whole, value + 2 * most))
    return IntervalEstimate(value, max(0.0, value - most), min(whole, value + most))


def _compute_entropy(p_NV: FigureArray) -> FigureArray:
    """In bits; 0 log 0 is 0, and of no distribution it is NaN."""
    logs = np.log2(np.where(p_NV > 0, p_NV, 1.0))
    return np.asarray(-(p_NV * logs).sum(axis=-1))
