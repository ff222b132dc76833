"""The gate, group statistics and advantages against docs/method.md §3's closed form and worked values."""

from itertools import combinations
from math import ceil, exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.algorithm import AlgoConfig, GateConfig
from judge.types import Scale
from learner.advantage import compute_advantages
from learner.gate import FixedLambda, Gate, build_lambda_source
from learner.statistics import GroupStatistics, compute_group_statistics, explain_dropped_group

REWARDS = st.lists(st.one_of(st.none(), st.floats(1, 5)), min_size=2, max_size=8)


def group(*rewards: float | None, spread: float | None = None) -> GroupStatistics:
    group_statistics = compute_group_statistics(rewards, len(rewards), [spread] * len(rewards))
    assert group_statistics is not None
    return group_statistics


@pytest.mark.parametrize(
    ("rewards", "direction", "information", "raw"),
    [
        ((4, 3, 5, 2), 0.99995, 0.3125, 0.24999),
        ((3, 3, 3, 3), 0.5, 0.0, 0.0),
        ((1, 1, 5, 5), 0.99995, 1.0, 0.79996),
        ((2, 2, 1, 1), 0.00669, 0.0625, 0.000335),
    ],
)
def test_worked_values_of_the_method(
    rewards: tuple[float, ...], direction: float, information: float, raw: float
) -> None:
    reading = Gate(GateConfig(), Scale()).update([group(*rewards)])
    assert reading.direction == pytest.approx(direction, abs=1e-5)
    assert reading.information == information
    assert reading.raw == pytest.approx(raw, abs=1e-5)
    assert reading.weight == reading.raw  # lambda_0 is the first mean


def test_history_has_weight_alpha() -> None:
    gate = Gate(GateConfig(alpha=0.9), Scale())
    first = gate.update([group(1, 1, 5, 5)]).weight
    assert gate.update([group(3, 3, 3, 3)]).weight == pytest.approx(0.9 * first, abs=1e-12)


def test_no_groups_leave_lambda_and_its_history_alone() -> None:
    gate = Gate(GateConfig(), Scale())
    assert gate.update([]).weight == 0.0
    first = gate.update([group(1, 1, 5, 5)])
    assert first.weight == first.raw  # silence before was not a first mean
    silent = gate.update([])
    assert silent.weight == first.weight
    assert silent.metrics() == {"lambda": first.weight}


def test_resume_is_exact() -> None:
    straight, before, after = (Gate(GateConfig(), Scale()) for _ in range(3))
    for gate in (straight, before):
        gate.update([group(1, 2, 5, 5)])
    after.load_state_dict(before.state_dict())
    assert after.update([group(4, 3, 5, 2)]) == straight.update([group(4, 3, 5, 2)])


def test_information_is_relative_to_the_scale() -> None:
    narrow = Gate(GateConfig(theta=0.5), Scale(0.0, 1.0)).update([group(0.0, 1.0)])
    assert narrow.information == 1.0


def test_judge_noise_is_subtracted_only_when_asked() -> None:
    noisy = group(4, 3, 5, 2, spread=1.0)  # V = 1.25, sigma_J^2 = 1
    assert Gate(GateConfig(denoise=True), Scale()).update([noisy]).information == pytest.approx(0.5 / 4)
    assert Gate(GateConfig(denoise=False), Scale()).update([noisy]).information == 0.3125
    drowned = group(4, 3, 5, 2, spread=2.0)
    assert Gate(GateConfig(denoise=True), Scale()).update([drowned]).weight == 0.0


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (0.0, 10.0), (-1.0, 1.0), (1.0, 100.0)])
def test_theta_and_k_that_are_not_set_follow_the_judges_scale(lo: float, hi: float) -> None:
    rewards = [(4, 3, 5, 2), (1, 1, 2, 3), (3, 2, 3, 3)]
    wanted = Gate(GateConfig(theta=3, k=5), Scale()).update([group(*item) for item in rewards])
    mapped = [[lo + (reward - 1) * (hi - lo) / 4 for reward in item] for item in rewards]
    reading = Gate(GateConfig(), Scale(lo, hi)).update([group(*item) for item in mapped])
    assert reading.weight == pytest.approx(wanted.weight, rel=1e-9)
    assert reading.direction == pytest.approx(wanted.direction, rel=1e-9)


@pytest.mark.parametrize("survivors", [2, 3, 4])
def test_missing_verdicts_leave_the_information_as_it_was_on_average_where_that_is_asked(
    survivors: int,
) -> None:
    rewards = [2.0, 3.0, 2.5, 4.0]

    def information(correct: bool) -> float:
        """Mean over every way to lose verdicts."""
        gate = Gate(GateConfig(correct_missing=correct), Scale())
        kept = list(combinations(range(4), survivors))
        groups = [group(*(r if i in here else None for i, r in enumerate(rewards))) for here in kept]
        return sum(gate.update([item]).information or 0.0 for item in groups) / len(groups)

    whole = Gate(GateConfig(), Scale()).update([group(*rewards)]).information
    assert whole is not None
    assert information(True) == pytest.approx(whole, rel=1e-12)
    lost = (survivors - 1) * 4 / (survivors * 3)
    assert information(False) == pytest.approx(whole * lost, rel=1e-12)


def test_fixed_mix_is_constant_and_still_reports_what_the_gate_sees() -> None:
    mixer = build_lambda_source(AlgoConfig(mix="fixed", fixed_lambda=0.3), Scale())
    assert isinstance(mixer, FixedLambda)
    reading = mixer.update([group(1, 1, 5, 5)])
    assert reading.weight == 0.3 and reading.information == 1.0
    assert mixer.update([]).weight == 0.3 and mixer.state_dict() == {}
    assert isinstance(build_lambda_source(AlgoConfig(mix="gate"), Scale()), Gate)


@given(st.lists(st.tuples(REWARDS, st.just(None)), min_size=1, max_size=4))
def test_lambda_is_the_closed_form_on_the_surviving_rewards(
    step: list[tuple[list[float | None], None]],
) -> None:
    """Also when judge calls failed: missing rewards leave no trace (docs/design.md §5, invariants 2 and 3)."""
    kept = [compute_group_statistics(rewards, len(rewards)) for rewards, _ in step]
    survivors = [group for group in kept if group is not None]
    weight = Gate(GateConfig(), Scale()).update(survivors).weight
    raws = []
    for rewards, _ in step:
        valid = [r for r in rewards if r is not None]
        if len(valid) < max(2, ceil(len(rewards) / 2)):
            continue
        mean = sum(valid) / len(valid)
        variance = sum((r - mean) ** 2 for r in valid) / len(valid)
        raws.append(0.8 * min(variance / 4, 1) / (1 + exp(-5 * (max(valid) - 3))))
    assert weight == pytest.approx(sum(raws) / len(raws) if raws else 0.0, abs=1e-12)


def test_a_thin_group_is_dropped_with_a_reason() -> None:
    assert compute_group_statistics([1.0, None, None, None], 4) is None
    assert explain_dropped_group([1.0, None, None, None], 4) == "1 of 4 replies have a reward, 2 needed"
    assert compute_group_statistics([1.0, 2.0], 8) is None  # replies that never came back count as missing
    assert explain_dropped_group([1.0, 2.0, None, None], 4) is None


def test_statistics_refuse_what_cannot_be_a_group() -> None:
    with pytest.raises(ValueError, match="group_size=2"):
        compute_group_statistics([1.0, 2.0, 3.0], 2)
    with pytest.raises(ValueError, match="aligned"):
        compute_group_statistics([1.0, 2.0], 2, [0.0])


@given(REWARDS)
def test_advantages_are_standardised_over_the_survivors(rewards: list[float | None]) -> None:
    advantages = compute_advantages(rewards)
    assert [a is None for a in advantages] == [r is None for r in rewards]
    assert [a for a in advantages if a is not None] == compute_advantages([r for r in rewards if r is not None])
    present = [a for a in advantages if a is not None]
    if any(a != 0 for a in present):
        assert sum(present) == pytest.approx(0, abs=1e-6)
        assert sum(a * a for a in present) / len(present) == pytest.approx(1, rel=1e-6)


def test_rewards_equal_up_to_rounding_have_no_advantage() -> None:
    assert compute_advantages([3.0, None, 3.0]) == [0.0, None, 0.0]
    same = [0.6 * 5 + 0.4 * 1, 0.6 * 3 + 0.4 * 4, 0.1 + 0.2 + 3.1]
    assert len(set(same)) > 1 and compute_advantages(same) == [0.0, 0.0, 0.0]
    assert group(*same).variance == 0.0
    assert compute_advantages([None, None]) == [None, None]
