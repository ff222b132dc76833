"""Means over seeds and prompts, their differences to a baseline, 95 % intervals and sign tests.

    mean         m = sum x_sp / n                        over the values that are there
    one draw     takes prompt p w_p times and seed s v_s times (two independent multinomials)
                 m* = sum v_s w_p x_sp / sum v_s w_p
    interval     the percentiles of m* over the draws
    difference   the same of x_sp - y_sp: a draw takes the same prompts and seeds of both sides
    sign test    per prompt the side with the better mean over seeds wins; two-sided, exact, without ties

Seeds are crossed with prompts (every seed answers every prompt), so a seed is drawn once for all prompts:
what a seed does to the whole run stays in the interval. Of few seeds that part is measured badly and, at the
percentiles, a little too small. The draws depend on ``seed`` and on the two counts alone: the same for all
methods, and the same numbers every time.

Arrays: S seeds, P prompts, B draws, V kinds of audio token. A value that is not there is NaN; a figure that
the values do not define is None, never 0.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROUNDING = 1e-9  # means over seeds that are closer than this are equal
ROWS = 512  # draws whose histograms exist at the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are drawn."""

    draws: int = 4000
    seed: int = 0
    level: float = 0.95  # share of the draws inside the interval


@dataclass(frozen=True, slots=True)
class Estimate:
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
class Signs:
    """Prompts on which one side did better; ``p``: of so uneven a split, were both sides alike."""

    wins: int
    losses: int
    ties: int
    p: float


def mean(values_SP: Floats, bootstrap: Bootstrap) -> Estimate:
    """The mean of what is there, over seeds and prompts."""
    known_SP = values_SP[:, ~np.isnan(values_SP).all(axis=0)]
    if not known_SP.size:
        return Estimate(None)
    drawn_B = _ratio(known_SP, *draws(known_SP.shape, bootstrap))
    return _estimate(float(np.nanmean(known_SP)), drawn_B, bootstrap, varies=known_SP.shape[1] > 1)


def difference(values_SP: Floats, baseline_SP: Floats, bootstrap: Bootstrap) -> Estimate:
    """``values - baseline`` over the seeds and prompts that both have; row s of both is the same seed."""
    return mean(values_SP - baseline_SP, bootstrap)


def signs(values_SP: Floats, baseline_SP: Floats, better: int) -> Signs | None:
    """Prompt by prompt; ``better``: +1 when more is better, -1 when less is. None: no prompt in common."""
    gaps_SP = (values_SP - baseline_SP) * better
    gaps_SP = gaps_SP[:, ~np.isnan(gaps_SP).all(axis=0)]
    if not gaps_SP.size:
        return None
    gaps_P = np.nanmean(gaps_SP, axis=0)
    wins, losses = int((gaps_P > ROUNDING).sum()), int((gaps_P < -ROUNDING).sum())
    return Signs(wins, losses, len(gaps_P) - wins - losses, sign_test(wins, losses))


def sign_test(wins: int, losses: int) -> float:
    """P(a split at least as uneven | heads and tails alike), two-sided and exact; 1 without any trial."""
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(comb(n, k) for k in range(fewer + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**n)))


def distances(counts_SPV: Floats, base_SPV: Floats) -> Floats:
    """Per seed, the divergence in bits of the audio tokens of all prompts from the base's; shape [S]."""
    return divergence(counts_SPV.sum(axis=1), base_SPV.sum(axis=1))


def drawn_distances(counts_SPV: Floats, base_SPV: Floats, bootstrap: Bootstrap) -> Floats:
    """``distances`` of the prompts of every draw; shape [B, S]."""
    seeds, prompts, _ = counts_SPV.shape
    w_BP, _ = draws((seeds, prompts), bootstrap)
    found_BS = np.empty((len(w_BP), seeds))
    for start in range(0, len(w_BP), ROWS):
        rows = w_BP[start : start + ROWS]
        for s in range(seeds):
            found_BS[start : start + ROWS, s] = divergence(rows @ counts_SPV[s], rows @ base_SPV[s])
    return found_BS


def of_distances(values_S: Floats, drawn_BS: Floats, prompts: int, bootstrap: Bootstrap) -> Estimate:
    """The mean over seeds of ``distances``, or of the difference of two of them."""
    _, v_BS = draws((len(values_S), prompts), bootstrap)
    known_BS = ~np.isnan(drawn_BS)
    with np.errstate(invalid="ignore"):
        drawn_B = (v_BS * np.nan_to_num(drawn_BS)).sum(axis=1) / (v_BS * known_BS).sum(axis=1)
    value = None if np.isnan(values_S).all() else float(np.nanmean(values_S))
    return _estimate(value, drawn_B, bootstrap, varies=prompts > 1)


def divergence(p_NV: Floats, q_NV: Floats) -> Floats:
    """Jensen-Shannon divergence of two histograms of counts, in bits; NaN where one is empty; shape [N].

    0: the same shares of every token; 1: no token in common.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p_NV = p_NV / p_NV.sum(axis=-1, keepdims=True)
        q_NV = q_NV / q_NV.sum(axis=-1, keepdims=True)
        gap_N = _entropy((p_NV + q_NV) / 2) - (_entropy(p_NV) + _entropy(q_NV)) / 2
    return np.asarray(np.clip(gap_N, 0.0, 1.0))


def draws(shape: tuple[int, ...], bootstrap: Bootstrap) -> tuple[Floats, Floats]:
    """How often each prompt [B, P] and each seed [B, S] is in each draw, for values of shape [S, P]."""
    seeds, prompts = shape
    return _drawn(0, prompts, bootstrap), _drawn(1, seeds, bootstrap)


@lru_cache(maxsize=16)  # drawing takes longer than all the sums
def _drawn(which: int, count: int, bootstrap: Bootstrap) -> Floats:
    chance = np.random.default_rng([bootstrap.seed, which, count])
    found = chance.multinomial(count, np.full(count, 1 / count), size=bootstrap.draws).astype(np.float64)
    found.setflags(write=False)
    return found


def _ratio(values_SP: Floats, w_BP: Floats, v_BS: Floats) -> Floats:
    """The weighted mean of every draw; NaN where a draw holds no value at all."""
    known_SP = ~np.isnan(values_SP)
    sums_B = (v_BS * (w_BP @ np.nan_to_num(values_SP).T)).sum(axis=1)
    counts_B = (v_BS * (w_BP @ known_SP.T)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums_B / counts_B)


def _estimate(value: float | None, drawn_B: Floats, bootstrap: Bootstrap, *, varies: bool) -> Estimate:
    """No interval of a single prompt, nor where half the draws or more hold no value."""
    defined_B = drawn_B[~np.isnan(drawn_B)]
    if value is None or not varies or 2 * len(defined_B) <= len(drawn_B):
        return Estimate(value)
    outside = (1 - bootstrap.level) / 2
    lo, hi = np.quantile(defined_B, [outside, 1 - outside])
    return Estimate(value, float(lo), float(hi))


def _entropy(p_NV: Floats) -> Floats:
    """In bits; 0 log 0 is 0, and of no distribution it is NaN."""
    logs = np.log2(np.where(p_NV > 0, p_NV, 1.0))
    return np.asarray(-(p_NV * logs).sum(axis=-1))
