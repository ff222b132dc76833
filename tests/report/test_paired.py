"""Intervals, sign tests and divergences against loops, closed forms and exact fractions."""

from fractions import Fraction
from itertools import product
from math import comb, log2, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from conf.study import BootstrapConfig
from report.study.paired import (
    IntervalEstimate,
    bootstrap_token_distances,
    compute_jensen_shannon,
    compute_token_distances,
    count_signs,
    draw_prompts_and_seeds,
    estimate_difference,
    estimate_mean,
    estimate_mean_distance,
    sign_test,
)

Floats = NDArray[np.float64]
FEW = BootstrapConfig(draws=100, seed=3)
MANY = BootstrapConfig(draws=20_000, seed=1)
VALUE = st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(-5, 5))


def table(rows: list[list[float | None]]) -> Floats:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], np.float64)


tables = st.integers(1, 4).flatmap(
    lambda prompts: st.lists(st.lists(VALUE, min_size=prompts, max_size=prompts), min_size=1, max_size=4)
)


def naive_mean(values: Floats, bootstrap: BootstrapConfig) -> IntervalEstimate:
    """Draw by draw, prompt by prompt, seed by seed."""
    columns = [p for p in range(values.shape[1]) if not all(np.isnan(values[:, p]))]
    seeds = range(values.shape[0])
    there = [values[s, p] for s in seeds for p in columns if not np.isnan(values[s, p])]
    if not there:
        return IntervalEstimate(None)
    point = sum(there) / len(there)
    prompts_B, seeds_B = draw_prompts_and_seeds((len(seeds), len(columns)), bootstrap)
    collected: list[float] = []
    for prompt_times, seed_times in zip(prompts_B, seeds_B, strict=True):
        drawn: list[float] = []
        for s in seeds:
            for place, p in enumerate(columns):
                if not np.isnan(values[s, p]):
                    drawn += [values[s, p]] * int(seed_times[s] * prompt_times[place])
        if drawn:
            collected.append(sum(drawn) / len(drawn))
    if len(columns) < 2 or 2 * len(collected) <= bootstrap.draws:
        return IntervalEstimate(point)
    return naive_widened(
        IntervalEstimate(point, *(float(x) for x in np.quantile(collected, [0.025, 0.975]))),
        collected,
        [sum(own) / len(own) for s in seeds if (own := [v for v in values[s] if not np.isnan(v)])],
        len(columns),
    )


def naive_widened(actual: IntervalEstimate, drawn: list[float], seeds: list[float], prompts: int) -> IntervalEstimate:
    """k times as wide, as the module's docstring has it."""
    assert actual.value is not None and actual.lo is not None and actual.hi is not None
    middle = sum(drawn) / len(drawn)
    shown = sum((x - middle) ** 2 for x in drawn) / len(drawn)
    if shown < 1e-18:
        return actual
    count, mid = len(seeds), sum(seeds) / len(seeds)
    own = sum((x - mid) ** 2 for x in seeds) / (count - 1) / count if count > 1 else 0.0
    whole = shown + own / count
    freedom = whole**2 / (own**2 / max(1, count - 1) + (whole - own) ** 2 / (prompts - 1))
    k = student.ppf(0.975, freedom) / norm.ppf(0.975) * sqrt(whole / shown)
    return IntervalEstimate(
        actual.value, actual.value - k * (actual.value - actual.lo), actual.value + k * (actual.hi - actual.value)
    )


def same(ours: IntervalEstimate, theirs: IntervalEstimate) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or a == pytest.approx(b, abs=1e-9))
        for a, b in ((ours.value, theirs.value), (ours.lo, theirs.lo), (ours.hi, theirs.hi))
    )


@settings(max_examples=60)
@given(tables)
def test_a_mean_and_its_interval_equal_a_loop_over_the_same_draws(rows: list[list[float | None]]) -> None:
    assert same(estimate_mean(table(rows), FEW), naive_mean(table(rows), FEW))


@settings(max_examples=60)
@given(tables)
def test_a_difference_is_that_of_the_pairs_that_both_have(
    rows: list[list[float | None]],
) -> None:
    ours = table(rows)
    theirs = np.roll(ours, 1, axis=1) * 0.5
    pairs = ours - theirs
    assert same(estimate_difference(ours, theirs, FEW), naive_mean(pairs, FEW))


def test_a_draw_takes_as_many_prompts_and_seeds_as_there_are_and_is_the_same_every_time() -> None:
    first, again = draw_prompts_and_seeds((3, 50), FEW), draw_prompts_and_seeds((3, 50), FEW)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0].sum(axis=1) == 50).all() and (first[1].sum(axis=1) == 3).all()
    assert (draw_prompts_and_seeds((2, 50), FEW)[0] == first[0]).all(), "all methods of a study see the same prompts"
    assert not (draw_prompts_and_seeds((3, 50), BootstrapConfig(draws=100, seed=4))[0] == first[0]).all()


def test_with_one_seed_the_interval_is_that_of_the_mean_of_a_coin() -> None:
    values = np.repeat([[1.0, 0.0]], [60, 140], axis=1)
    mean = estimate_mean(values, MANY)
    deviation = sqrt(0.3 * 0.7 / 200)  # of the mean of 200 draws from it: exactly
    assert mean.value == pytest.approx(0.3)
    assert mean.lo == pytest.approx(0.3 - 1.96 * deviation, abs=0.006)
    assert mean.hi == pytest.approx(0.3 + 1.96 * deviation, abs=0.006)


def test_what_a_seed_does_to_a_whole_run_stays_in_the_interval() -> None:
    seeds, prompts = 8, 400
    chance = np.random.default_rng(0)
    effect, noise = chance.normal(0, 1, (seeds, 1)), chance.normal(0, 1, (1, prompts))
    values = effect + noise
    mean = estimate_mean(values, MANY)
    assert mean.value is not None and mean.lo is not None and mean.hi is not None
    of_seeds, of_prompts = effect.var(ddof=1) / seeds, noise.var() / prompts
    whole = of_seeds + of_prompts
    freedom = whole**2 / (of_seeds**2 / (seeds - 1) + of_prompts**2 / (prompts - 1))
    half = float(student.ppf(0.975, freedom)) * sqrt(whole)
    assert (mean.hi - mean.lo) / 2 == pytest.approx(half, rel=0.06)
    alike = estimate_mean(values.mean(axis=0, keepdims=True), MANY)  # as if there were no seeds
    assert alike.lo is not None and alike.hi is not None
    assert (alike.hi - alike.lo) / (2 * 1.96) == pytest.approx(sqrt(noise.var() / prompts), rel=0.06)


def test_a_paired_difference_knows_that_hard_prompts_are_hard_for_both() -> None:
    hard = np.random.default_rng(0).normal(0, 10, (1, 200))
    difference = estimate_difference(hard + 1.0, hard, MANY)
    assert (difference.value, difference.lo, difference.hi) == pytest.approx((1.0, 1.0, 1.0))
    assert difference.decided == 1


def test_what_is_not_defined_is_none() -> None:
    nothing = np.full((2, 5), np.nan)
    assert estimate_mean(nothing, FEW) == IntervalEstimate(None)
    assert estimate_mean(np.array([[3.0]]), FEW) == IntervalEstimate(3.0), "one prompt has no interval"
    assert count_signs(nothing, nothing, 1) is None
    assert IntervalEstimate(1.0).decided == 0 and IntervalEstimate(1.0, -0.1, 2.0).decided == 0
    assert IntervalEstimate(-1.0, -2.0, -0.5).decided == -1


@pytest.mark.parametrize(("wins", "losses"), list(product(range(0, 26, 3), repeat=2)))
def test_the_sign_test_is_the_exact_binomial(wins: int, losses: int) -> None:
    n = wins + losses
    tail = Fraction(sum(comb(n, k) for k in range(min(wins, losses) + 1)), 2**n)
    assert sign_test(wins, losses) == float(min(Fraction(1), 2 * tail))
    if n:
        assert sign_test(wins, losses) == pytest.approx(binomtest(wins, n).pvalue, abs=1e-12)


def test_known_values_of_the_sign_test() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(55, 25) == pytest.approx(0.00105, abs=1e-5)  # the paper's 68.8 % of 80
    assert sign_test(2000, 1) < 1e-300


@given(tables)
def test_signs_equal_a_loop_over_prompts_and_change_sides_with_the_direction(
    rows: list[list[float | None]],
) -> None:
    ours = table(rows)
    theirs = np.flip(ours, axis=1)
    counts = {1: 0, -1: 0, 0: 0}
    for p in range(ours.shape[1]):
        gaps = [a - b for a, b in zip(ours[:, p], theirs[:, p], strict=True) if not np.isnan(a - b)]
        if gaps:
            gap = sum(gaps) / len(gaps)
            counts[0 if abs(gap) <= 1e-9 else 1 if gap > 0 else -1] += 1
    signs, turned = count_signs(ours, theirs, 1), count_signs(ours, theirs, -1)
    if not sum(counts.values()):
        assert signs is None and turned is None
        return
    assert signs is not None and turned is not None
    assert (signs.wins, signs.losses, signs.ties) == (counts[1], counts[-1], counts[0])
    assert (turned.wins, turned.losses, turned.p) == (signs.losses, signs.wins, signs.p)


# --- audio tokens


def naive_divergence(p: list[float], q: list[float]) -> float:
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return sum(x / 2 * log2(x / m) for side in (p, q) for x, m in zip(side, middle, strict=True) if x > 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_a_divergence_equals_its_definition_lies_in_0_to_1_and_is_symmetric(
    counts: list[tuple[int, int]],
) -> None:
    p, q = np.array(counts, np.float64).T
    actual = compute_jensen_shannon(p[None], q[None])[0]
    if not p.sum() or not q.sum():
        assert np.isnan(actual)
        return
    assert actual == pytest.approx(naive_divergence(p.tolist(), q.tolist()), abs=1e-12)
    assert 0 <= actual <= 1 and actual == pytest.approx(compute_jensen_shannon(q[None], p[None])[0], abs=1e-12)


def test_the_same_shares_are_0_bits_apart_and_strangers_1_bit() -> None:
    same_shares = compute_jensen_shannon(np.array([[1.0, 3.0, 0.0]]), np.array([[2.0, 6.0, 0.0]]))
    strangers = compute_jensen_shannon(np.array([[1.0, 3.0, 0.0]]), np.array([[0.0, 0.0, 5.0]]))
    assert same_shares[0] == pytest.approx(0, abs=1e-12) and strangers[0] == pytest.approx(1)
    half = compute_jensen_shannon(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]))  # H(3/4, 1/4) - 1/2
    assert half[0] == pytest.approx(-0.75 * log2(0.75) - 0.25 * log2(0.25) - 0.5)


def test_distances_of_draws_equal_a_loop_over_prompts() -> None:
    chance = np.random.default_rng(0)
    ours, base = (chance.poisson(2, (2, 6, 5)).astype(float) for _ in range(2))
    token_distances = bootstrap_token_distances(ours, base, FEW)
    times, seeds = draw_prompts_and_seeds((2, 6), FEW)
    for b in range(FEW.draws):
        for s in range(2):
            p, q = (sum(times[b, i] * side[s, i] for i in range(6)) for side in (ours, base))
            assert token_distances[b, s] == pytest.approx(naive_divergence(p.tolist(), q.tolist()))
    plain = compute_token_distances(ours, base)
    point = estimate_mean_distance(plain, token_distances, 6, FEW)
    loop = [float(np.average(token_distances[b], weights=seeds[b])) for b in range(FEW.draws)]
    own = [float(2 * plain[s] - token_distances[:, s].mean()) for s in range(2)]
    lo, hi = np.quantile(loop, [0.025, 0.975])
    mirrored = IntervalEstimate(sum(own) / 2, 2 * plain.mean() - hi, 2 * plain.mean() - lo)
    assert same(point, naive_widened(mirrored, loop, own, 6))


def test_a_policy_without_audio_has_no_distance() -> None:
    silent, base = np.zeros((1, 3, 2)), np.ones((1, 3, 2))
    mean_distance = estimate_mean_distance(
        compute_token_distances(silent, base), bootstrap_token_distances(silent, base, FEW), 3, FEW
    )
    assert mean_distance == IntervalEstimate(None)


def drawn_counts(
    chance: np.random.Generator, shares: Floats, seeds: int = 3, prompts: int = 40, tokens: int = 30
) -> Floats:
    """Histograms of replies whose tokens are drawn from ``shares``."""
    return chance.multinomial(tokens, shares, size=(seeds, prompts)).astype(np.float64)


SHARES = np.random.default_rng(7).dirichlet(np.ones(48))
OTHERS = np.random.default_rng(8).dirichlet(np.ones(48))
NEAR = 0.9 * SHARES + 0.1 * OTHERS


def held(ours: Floats, theirs: Floats, truth: float) -> tuple[int, float]:
    """In how many of 40 seeded trials the interval holds the truth, and the mean error of the figure."""
    count, errors = 0, []
    for trial in range(40):
        chance = np.random.default_rng(trial)
        one, other = drawn_counts(chance, ours), drawn_counts(chance, theirs)
        mean_distance = estimate_mean_distance(
            compute_token_distances(one, other), bootstrap_token_distances(one, other, COARSE), one.shape[1], COARSE
        )
        assert mean_distance.value is not None and mean_distance.lo is not None and mean_distance.hi is not None
        assert mean_distance.lo < mean_distance.value < mean_distance.hi
        count += mean_distance.lo <= truth <= mean_distance.hi
        errors.append(mean_distance.value - truth)
    return count, sum(errors) / len(errors)


COARSE = BootstrapConfig(draws=150)


def test_two_samples_of_one_source_are_0_apart() -> None:
    count, error = held(SHARES, SHARES, 0.0)
    assert count >= 36 and abs(error) < 0.002
    plain = compute_token_distances(*(drawn_counts(np.random.default_rng(n), SHARES) for n in (0, 1)))
    assert plain.mean() > 0.01, "without the correction they would not be"


@pytest.mark.parametrize("theirs", [NEAR, OTHERS])
def test_a_known_distance_lies_in_the_interval(theirs: Floats) -> None:
    truth = naive_divergence(SHARES.tolist(), theirs.tolist())
    count, error = held(SHARES, theirs, truth)
    assert count >= 36 and abs(error) < 0.01


def test_a_known_difference_of_two_distances_lies_in_the_interval() -> None:
    truth = naive_divergence(NEAR.tolist(), SHARES.tolist())  # against 0, of the base's own source
    count = 0
    for trial in range(40):
        chance = np.random.default_rng(trial)
        base, near, same_source = (drawn_counts(chance, shares) for shares in (SHARES, NEAR, SHARES))
        gap_S = compute_token_distances(near, base) - compute_token_distances(same_source, base)
        gap_BS = bootstrap_token_distances(near, base, COARSE) - bootstrap_token_distances(same_source, base, COARSE)
        mean_distance = estimate_mean_distance(gap_S, gap_BS, 40, COARSE)
        assert mean_distance.value is not None and mean_distance.lo is not None and mean_distance.hi is not None
        assert mean_distance.lo < mean_distance.value < mean_distance.hi
        count += mean_distance.lo <= truth <= mean_distance.hi
    assert count >= 36


def test_intervals_of_three_seeds_hold_the_truth_about_as_often_as_they_say() -> None:
    chance, count = np.random.default_rng(0), 0
    for _ in range(200):
        values = chance.normal(0, 1, (3, 1)) + chance.normal(0, 1, (1, 40)) + chance.normal(0, 0.5, (3, 40))
        mean = estimate_mean(values, BootstrapConfig(draws=200))
        assert mean.lo is not None and mean.hi is not None
        count += mean.lo <= 0 <= mean.hi
    assert count >= 176, "88 % of 200; percentiles alone hold it in 75 to 80 %"
