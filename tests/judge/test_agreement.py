"""Agreement of a judge with people and itself, held against scipy and against definitions written out."""

from itertools import combinations
from statistics import fmean, variance

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from judge.agreement import (
    RatedReply,
    compare_passes,
    estimate_repeat_variance,
    measure_agreement,
    measure_rater_agreement,
    pearson_correlation,
    spearman_correlation,
)

LEVELS = st.sampled_from([1.0, 1.5, 2.0, 3.0, 3.25, 4.0, 5.0])
PAIRS = st.lists(st.tuples(LEVELS, LEVELS), min_size=0, max_size=12)
ITEMS = st.lists(st.builds(RatedReply, prompt_id=st.sampled_from("abcd"), judge=LEVELS, human=LEVELS), max_size=25)


def constant(values: list[float]) -> bool:
    return len(set(values)) < 2


@given(PAIRS)
def test_correlations_are_scipys_or_undefined(pairs: list[tuple[float, float]]) -> None:
    x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if constant(x) or constant(y):
        assert pearson_correlation(x, y) is None and spearman_correlation(x, y) is None
    else:
        assert pearson_correlation(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
        assert spearman_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


@given(ITEMS)
@settings(max_examples=60)
def test_the_five_figures_are_their_definitions(items: list[RatedReply]) -> None:
    agreement = measure_agreement(items, draws=20)
    groups = [[item for item in items if item.prompt_id == name] for name in "abcd"]
    several = [group for group in groups if len(group) > 1]
    ranks = [spearman_correlation([i.judge for i in g], [i.human for i in g]) for g in several]
    defined = [rank for rank in ranks if rank is not None]
    assert (agreement.items, agreement.prompts) == (len(items), sum(map(bool, groups)))
    assert (agreement.ranked, agreement.unranked) == (len(defined), len(ranks) - len(defined))
    assert agreement.spearman.value == (pytest.approx(fmean(defined)) if defined else None)
    whole = pearson_correlation([i.judge for i in items], [i.human for i in items])
    assert agreement.pearson.value == (None if whole is None else pytest.approx(whole))
    off = [item.judge - item.human for item in items]
    if not items:
        assert agreement.mae is agreement.bias is agreement.within_one is None
    else:
        assert agreement.mae == pytest.approx(fmean(map(abs, off))) and agreement.bias == pytest.approx(fmean(off))
        assert agreement.within_one == pytest.approx(fmean(abs(outcome) <= 1 for outcome in off))


def test_one_point_is_what_the_scale_says_and_rounding_does_not_cost_it() -> None:
    items = [RatedReply(prompt_id="a", judge=0.1 + 0.2, human=0.05), RatedReply(prompt_id="a", judge=1.0, human=0.74)]
    assert measure_agreement(items, 0.25).within_one == 0.5


def drawn_again(items: list[RatedReply], seed: int) -> tuple[list[float | None], list[float]]:
    """The bootstrap written out: the same draws, the figures from the items themselves."""
    names = list(dict.fromkeys(item.prompt_id for item in items))
    groups = [[item for item in items if item.prompt_id == name] for name in names]
    ranks = [spearman_correlation([i.judge for i in g], [i.human for i in g]) for g in groups]
    counts = np.random.default_rng(seed).multinomial(len(names), [1 / len(names)] * len(names), size=300)
    whole: list[float | None] = []
    for draw in counts:
        taken = [item for group, times in zip(groups, draw, strict=True) for item in group * times]
        whole.append(pearson_correlation([i.judge for i in taken], [i.human for i in taken]))
    defined = [rank for rank in ranks if rank is not None]
    assert len(defined) == len(ranks)
    return whole, (counts @ np.array(defined) / len(defined)).tolist()


def test_intervals_are_percentiles_over_prompts_drawn_again() -> None:
    random = np.random.default_rng(5)
    items = [
        RatedReply(prompt_id=f"p{prompt}", judge=float(quality + noise), human=float(quality))
        for prompt in range(9)
        for quality, noise in zip(random.uniform(1, 5, 4), random.normal(0, 1, 4), strict=True)
    ]
    agreement = measure_agreement(items, draws=300, seed=3)
    whole, ranks = drawn_again(items, 3)
    assert agreement.pearson.interval == pytest.approx(tuple(np.percentile(np.array(whole, float), (2.5, 97.5))))
    assert agreement.spearman.interval == pytest.approx(tuple(np.percentile(ranks, (2.5, 97.5))))
    assert measure_agreement(items, draws=300, seed=3) == agreement != measure_agreement(items, draws=300, seed=4)


def test_one_prompt_has_figures_but_no_interval() -> None:
    items = [RatedReply(prompt_id="a", judge=float(x), human=float(x)) for x in (1, 3, 5)]
    agreement = measure_agreement(items)
    assert agreement.pearson.value == agreement.spearman.value == pytest.approx(1.0)
    assert agreement.pearson.interval is agreement.spearman.interval is None


@given(st.lists(st.lists(LEVELS, min_size=6, max_size=6), min_size=1, max_size=6))
def test_repeat_variance_is_the_sample_variance_of_all_readings(readings: list[list[float]]) -> None:
    passes = [
        (fmean(reading[:3]), float(np.std(reading[:3])), fmean(reading[3:]), float(np.std(reading[3:])))
        for reading in readings
    ]
    assert estimate_repeat_variance(passes, 3) == pytest.approx(fmean(map(variance, readings)), abs=1e-9)


def test_with_one_reading_a_pass_the_variance_is_that_between_passes() -> None:
    assert estimate_repeat_variance([(2.0, 0.0, 4.0, 0.0), (3.0, 0.0, 3.0, 0.0)], 1) == pytest.approx(1.0)
    assert estimate_repeat_variance([], 1) is None
    with pytest.raises(ValueError, match="repeats must be at least 1: got 0"):
        estimate_repeat_variance([], 0)


def test_a_retest_correlates_and_measures_two_passes() -> None:
    passes = compare_passes([1.0, 2.0, 4.0], [1.5, 2.0, 3.5])
    assert passes.items == 3 and passes.mae == pytest.approx(1 / 3)
    assert passes.pearson == pytest.approx(stats.pearsonr([1, 2, 4], [1.5, 2, 3.5]).statistic)
    assert compare_passes([], []).pearson is None and compare_passes([], []).mae is None


def test_people_agree_by_anova_over_the_items_that_several_rated() -> None:
    groups = [[1.0, 2.0], [4.0, 5.0, 5.0], [3.0], [2.0, 2.0]]
    several = [group for group in groups if len(group) > 1]
    rater_agreement = measure_rater_agreement(groups)
    pairs = [abs(a - b) for group in several for a, b in combinations(group, 2)]
    assert rater_agreement.items == 3 and rater_agreement.difference == pytest.approx(fmean(pairs))
    n, k = sum(map(len, several)), len(several)
    grand = fmean(x for group in several for x in group)
    between = sum(len(g) * (fmean(g) - grand) ** 2 for g in several) / (k - 1)
    within = sum((x - fmean(g)) ** 2 for g in several for x in g) / (n - k)
    assert between / within == pytest.approx(stats.f_oneway(*several).statistic)
    size = (n - sum(len(g) ** 2 for g in several) / n) / (k - 1)
    assert rater_agreement.icc == pytest.approx((between - within) / (between + (size - 1) * within))


@pytest.mark.parametrize("ratings", [[], [[1.0], [2.0]], [[3.0, 3.0], [3.0, 3.0]]])
def test_raters_that_say_nothing_about_each_other_have_no_figure(ratings: list[list[float]]) -> None:
    assert measure_rater_agreement(ratings).icc is None
