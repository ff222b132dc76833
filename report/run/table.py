"""The before/after table: held-out figures at the start and at the end of a run, with their differences.

One list of rows feeds the terminal and the page. A figure that one side lacks has no difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conf.study import BootstrapConfig
from report.records import Evaluation, HeldOutReply
from report.study import paired
from report.study.paired import IntervalEstimate

HeldOutReplies = Sequence[HeldOutReply]
TABLE_BOOTSTRAP = BootstrapConfig(draws=2000)

FigureUnit = Literal["share", "plain"]

TABLE_FIGURES: tuple[
    tuple[str, str, FigureUnit, int], ...
] = (  # field, label, unit, direction in which it gets better
    ("heard_right", "answer right, as heard", "share", 1),
    ("text_right", "answer right, in text", "share", 1),
    ("style_followed", "style followed", "share", 1),
    ("wer", "WER, own text vs heard", "share", -1),
    ("reward", "reward", "plain", 1),
    ("well_formed", "well formed", "share", 1),
    ("truncated", "truncated", "share", -1),
    ("seconds", "seconds per reply", "plain", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeAfterRow:
    """One figure. ``better``: +1 when the difference is an improvement, -1 when it is a loss, 0 neither."""

    label: str
    before: float | None
    after: float | None
    unit: FigureUnit
    better: int
    change: IntervalEstimate | None = None  # after minus before, over the prompts that both have; None: not known

    @property
    def difference(self) -> float | None:
        """After minus before; None when a side is missing."""
        return None if self.before is None or self.after is None else self.after - self.before

    def cells(self) -> tuple[str, str, str]:
        """Before, after and difference as people read them: shares in %, their differences in points."""

        def show(value: float | None) -> str:
            return "-" if value is None else f"{value:.1%}" if self.unit == "share" else f"{value:.2f}"

        gap = self.difference
        change = "" if gap is None else f"{100 * gap:+.1f} pts" if self.unit == "share" else f"{gap:+.2f}"
        if self.change is not None and self.change.lo is not None and self.change.hi is not None:
            scale, digits = (100, 1) if self.unit == "share" else (1, 2)
            change += f" [{scale * self.change.lo:+.{digits}f}, {scale * self.change.hi:+.{digits}f}]"
        return show(self.before), show(self.after), change


def find_before_after(
    evaluations: Sequence[Evaluation], split: str = "test"
) -> tuple[Evaluation | None, Evaluation | None]:
    """The evaluations before and after training; of several, the last one written."""
    evaluation_by_when = {evaluation.when: evaluation for evaluation in evaluations if evaluation.split == split}
    return evaluation_by_when.get("before"), evaluation_by_when.get("after")


def build_before_after_rows(
    before: Evaluation | None, after: Evaluation | None, replies: tuple[HeldOutReplies, HeldOutReplies] = ((), ())
) -> list[BeforeAfterRow]:
    """The figures that at least one side has, then ``heard_right`` of every task type.

    ``replies``: those that were judged before and after, for the intervals of the differences.
    """
    table_rows = [
        _build_row(
            label, getattr(before, field, None), getattr(after, field, None), unit, direction,
            _estimate_change(field, unit, replies),
        )
        for field, label, unit, direction in TABLE_FIGURES
    ]  # fmt: skip
    tasks = sorted({task for side in (before, after) if side for task in side.by_task})
    for task in tasks:
        start, end = (side.by_task.get(task) if side else None for side in (before, after))
        of_task = tuple(tuple(reply for reply in side if reply.task_type == task) for side in replies)
        change = _estimate_change("heard_right", "share", (of_task[0], of_task[1]))
        table_rows.append(_build_row(f"  {task}, as heard", start, end, "share", 1, change))
    return [row for row in table_rows if row.before is not None or row.after is not None]


def _estimate_change(
    field: str, unit: FigureUnit, replies: tuple[HeldOutReplies, HeldOutReplies]
) -> IntervalEstimate | None:
    """The difference with its interval, prompt by prompt."""
    before, after = ({reply.row_id: _get_reply_figure(reply, field) for reply in side} for side in replies)
    value_pairs = [(x, y) for name, y in after.items() if y is not None and (x := before.get(name)) is not None]
    if not value_pairs:
        return None
    old_1P, new_1P = (np.array([side], dtype=np.float64) for side in zip(*value_pairs, strict=True))
    estimate, whole = paired.estimate_difference(new_1P, old_1P, TABLE_BOOTSTRAP), 1.0 if unit == "share" else None
    return paired.replace_zero_width_interval(estimate, len(value_pairs), whole, TABLE_BOOTSTRAP, signed=True)


def _get_reply_figure(reply: HeldOutReply, field: str) -> float | None:
    match field:
        case "reward":
            return reply.reward
        case "seconds":
            return reply.seconds
        case "well_formed":
            return float(reply.well_formed)
        case "truncated":
            return float(reply.finish == "length")
    return reply.figures.get(field)


def _build_row(
    label: str,
    before: float | None,
    after: float | None,
    unit: FigureUnit,
    direction: int,
    change: IntervalEstimate | None = None,
) -> BeforeAfterRow:
    gap = 0.0 if before is None or after is None else after - before
    sign = (gap > 0) - (gap < 0)
    return BeforeAfterRow(label=label, before=before, after=after, unit=unit, better=sign * direction, change=change)


def align_columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows of words as lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]


def format_table(evaluations: Sequence[Evaluation], split: str = "test") -> list[str]:
    """The table as aligned text lines for a terminal; one sentence when there is nothing to compare."""
    before, after = find_before_after(evaluations, split)
    if before is None and after is None:
        return [f"no evaluation of the {split} split"]
    heads = [
        f"{split}, {name} ({side.count})" if side else f"{split}, {name}: none"
        for name, side in (("before", before), ("after", after))
    ]
    table = [
        ("held out", *heads, "change"),
        *((row.label, *row.cells()) for row in build_before_after_rows(before, after)),
    ]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    return [
        f"{line[0]:<{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in table
    ]
