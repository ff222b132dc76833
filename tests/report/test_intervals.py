"""Intervals where all replies agree: a share that was 0 of 4 is not known to be 0."""

import numpy as np
import pytest

from conf.study import BootstrapConfig
from report.records import Evaluation, HeldOutReply
from report.run import table
from report.study.paired import (
    IntervalEstimate,
    estimate_difference,
    estimate_mean,
    replace_zero_width_interval,
)

FEW = BootstrapConfig(draws=200)


def wilson_of_none(n: int) -> float:
    """The upper end for 0 of n at 95 %: z^2 / (n + z^2)."""
    return 1.959964**2 / (n + 1.959964**2)


@pytest.mark.parametrize(("value", "ends"), [(0.0, (0.0, 48.99)), (100.0, (51.01, 100.0))])
def test_a_share_of_none_or_all_of_four_has_wilsons_interval(value: float, ends: tuple[float, float]) -> None:
    zero_width_interval = replace_zero_width_interval(estimate_mean(np.full((1, 4), value), FEW), 4, 100.0, FEW)
    assert zero_width_interval.lo is not None and zero_width_interval.hi is not None
    assert (zero_width_interval.lo, zero_width_interval.hi) == pytest.approx(ends, abs=0.01)


def test_two_sides_that_never_differ_may_differ_where_nobody_looked() -> None:
    values = np.array([[0.0, 100.0, 100.0, 0.0]])
    zero_width_interval = replace_zero_width_interval(
        estimate_difference(values, values, FEW), 4, 100.0, FEW, signed=True
    )
    assert (
        zero_width_interval.value == 0.0
        and zero_width_interval.hi == pytest.approx(200 * wilson_of_none(4))
        and zero_width_interval.lo == -zero_width_interval.hi
    )


def test_of_another_figure_that_is_always_the_same_no_interval_is_known() -> None:
    zero_width_interval = replace_zero_width_interval(estimate_mean(np.full((1, 4), 2.5), FEW), 4, None, FEW)
    assert zero_width_interval == IntervalEstimate(2.5)


def test_an_interval_with_a_width_stays_as_it_is() -> None:
    mean = estimate_mean(np.array([[0.0, 100.0, 0.0, 0.0]]), FEW)
    assert replace_zero_width_interval(mean, 4, 100.0, FEW) == mean


def reply(when: str, row: int, right: float) -> HeldOutReply:
    return HeldOutReply.model_validate(
        {
            "split": "test", "when": when, "step": 0, "row_id": str(row), "task_type": "qa", "style": None, "text": "",
            "transcript": None, "finish": "stop", "well_formed": True, "seconds": 1.0, "codes": [], "scores": {},
            "reward": 1.0 + right, "missing": None, "figures": {"heard_right": right},
        }
    )  # fmt: skip


def evaluation(when: str, right: float) -> Evaluation:
    return Evaluation.model_validate(
        {
            "step": 0, "split": "test", "when": when, "count": 4, "heard_right": right, "text_right": None,
            "style_followed": None, "wer": None, "reward": 1.0 + right, "well_formed": 1.0, "truncated": 0.0,
            "seconds": 1.0, "by_task": {"qa": right}, "took_s": 1.0,
        }
    )  # fmt: skip


def test_a_change_between_before_and_after_has_an_interval() -> None:
    replies = (
        [reply("before", row, 0.0) for row in range(4)],
        [reply("after", row, right) for row, right in enumerate((0.0, 1.0, 1.0, 0.0))],
    )
    rows = {
        row.label.strip(): row
        for row in table.build_before_after_rows(evaluation("before", 0.0), evaluation("after", 0.5), replies)
    }
    heard = rows["answer right, as heard"]
    assert heard.change is not None and heard.change.value == 0.5 == heard.difference
    assert heard.change.lo is not None and heard.change.lo < 0.5 and "+50.0 pts [" in heard.cells()[2]
    assert rows["qa, as heard"].change == heard.change
    assert rows["truncated"].cells()[2] == "+0.0 pts [-98.0, +98.0]", "0 of 4 both times"
    assert rows["seconds per reply"].cells()[2] == "+0.00"
