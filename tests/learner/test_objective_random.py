"""Every objective against docs/method.md written a second time (``naive_objective``), on random steps.

Group sizes 2 to 8, missing and vetoed and equal rewards, channels that never occur, forced and PAD
positions, every option at random; on one rank or two, in micro-batches of any size. In float64, so that
what is compared is the formula.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.types import Scale
from learner.gate import build_lambda_source
from tests.helpers.objective_draws import Step, steps
from tests.helpers.objective_world import COMPONENTS, Found, decided, expected, product, verdicts

RANDOM = settings(max_examples=100, derandomize=True)
CUTS = (st.sampled_from([1, 2]), st.integers(0, 60))  # ranks, tokens of a micro-batch beyond the least


def assert_equal(actual: Found, wanted: Found) -> None:
    """1e-6 relative; below 1e-12 there is rounding only. What the total does not hold is exactly 0."""
    assert actual.weight == pytest.approx(wanted.weight, rel=1e-12, abs=1e-15)
    for name in (*COMPONENTS, "total"):
        held = name == "total" or (actual.weight < 1 if name == "sft" else actual.weight > 0)
        value = wanted.losses[name] if held else 0.0
        assert actual.losses[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name
    scale = float(wanted.gradient.abs().max())
    assert float((actual.gradient - wanted.gradient).abs().max()) <= 1e-6 * scale + 1e-12


def assert_as_in_loops(step: Step, ranks: int, room: int) -> None:
    actual = product(step, decided(step).batch, ranks=ranks, room=room)
    assert_equal(actual, expected(step, verdicts(step)))


@RANDOM
@given(steps("grpo"), *CUTS)
def test_grpo_is_that_of_the_loops(step: Step, ranks: int, room: int) -> None:
    assert_as_in_loops(step, ranks, room)


@RANDOM
@given(steps("routed"), *CUTS)
def test_routed_is_that_of_the_loops(step: Step, ranks: int, room: int) -> None:
    assert_as_in_loops(step, ranks, room)


@RANDOM
@given(steps("penalised"), *CUTS)
def test_a_kl_in_the_reward_is_that_of_the_loops(step: Step, ranks: int, room: int) -> None:
    assert_as_in_loops(step, ranks, room)


@RANDOM
@given(steps("dpo"), *CUTS)
def test_dpo_is_that_of_the_loops(step: Step, ranks: int, room: int) -> None:
    assert_as_in_loops(step, ranks, room)


@RANDOM
@given(steps("online_dpo"), *CUTS)
def test_online_dpo_is_that_of_the_loops(step: Step, ranks: int, room: int) -> None:
    assert_as_in_loops(step, ranks, room)


@settings(max_examples=60, derandomize=True)
@given(st.lists(steps("grpo", mix="gate"), min_size=2, max_size=3))
def test_lambda_of_a_run_is_that_of_the_loops(run: list[Step]) -> None:
    """One algorithm and one judge, several steps: history, and steps without any group that counts."""
    mixer, previous = build_lambda_source(run[0].algo, Scale(run[0].judge.scale_lo, run[0].judge.scale_hi)), None
    for step in run:
        step.algo, step.judge = run[0].algo, run[0].judge
        wanted = verdicts(step, previous)
        assert decided(step, mixer).batch.weight == pytest.approx(wanted.weight, rel=1e-12, abs=1e-15)
        previous = wanted.weight if wanted.groups or previous is not None else None
