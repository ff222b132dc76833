"""The figures of a study as CSV: a row per arm, method and measure, and a row per run. Unknown is empty."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from statistics import fmean

from report.paired import Estimate
from report.study import Cell, Findings, PreparedFile
from report.table import aligned
from report.trials import Trial
from report.why import names

MEASURES = (
    "arm", "method", "measure", "unit", "mean", "lo", "hi", "diff", "diff_lo", "diff_hi",
    "wins", "losses", "ties", "p", "prompts", "seeds",
)  # fmt: skip
CELLS = (
    "cell", "arm", "method", "seed", "state", "detail", "steps", "wall_s", "train_s", "evaluation_s",
    "sampled_tokens", "trained_tokens", "lambda_mean", "lambda_last", "iq", "eq", "reward",
    "commit", "source",
)  # fmt: skip


def measures(found: Findings) -> str:
    """study.csv. ``diff`` and what follows: against the baseline of the same arm."""
    return _csv(
        MEASURES,
        (
            [
                row.arm,
                row.method,
                row.measure,
                row.unit,
                *_numbers(row.mean),
                *_numbers(row.difference),
                *((row.signs.wins, row.signs.losses, row.signs.ties) if row.signs else (None,) * 3),
                row.signs.p if row.signs else None,
                row.prompts,
                row.seeds,
            ]
            for row in found.rows
        ),
    )


def cells(found: Findings) -> str:
    """cells.csv; the measures are means over the run's test prompts. Prepared files come first.

    After CELLS a column for every figure of report/why.py that a run has.
    """
    known = [name for name in names([t.why for t in found.trials.values()]) if name != "lambda"]
    by_seed = {(row.arm, row.method, row.measure): row.by_seed for row in found.rows}
    lines = [_prepared(one) for one in found.study.prepared]
    for cell in found.study.cells:
        trial = found.trials.get(cell.name)
        own = [by_seed.get((cell.arm, cell.method, name), {}).get(cell.seed) for name in ("iq", "eq", "reward")]
        more = [trial.why.get(name) for name in known] if trial else []
        lines.append([*_cell(cell, trial, own), *more])
    heads = [*CELLS, *(f"why_{name}" for name in known)]
    return _csv(heads, [[*line, *[None] * (len(heads) - len(line))] for line in lines])


def weights(trial: Trial) -> tuple[float | None, float | None]:
    """Lambda, mean over the steps that tell it, and at the last of them."""
    told = [value for value in trial.curves["lambda"] if value is not None]
    return (fmean(told), told[-1]) if told else (None, None)


def summary(found: Findings) -> list[str]:
    """IQ and EQ of every method and what a reader must know, as lines for a terminal."""
    by_name = {(row.arm, row.method, row.measure): row for row in found.rows}
    table = [("arm", "method", "seeds", "IQ, as heard, %", "EQ", "lambda")]
    for arm, method in found.pairs():
        iq, eq = by_name[arm, method, "iq"], by_name[arm, method, "eq"]
        means = [mean for trial in found.of(arm, method) if (mean := weights(trial)[0]) is not None]
        weight = f"{fmean(means):.3f}" if means else "-"
        table.append((arm, method, str(iq.seeds), _shown(iq.mean, 1), _shown(eq.mean, 2), weight))
    return [*aligned(table), *(f"note: {note}" for note in found.notes)]


def _shown(estimate: Estimate, digits: int) -> str:
    if estimate.value is None:
        return "-"
    between = f" [{estimate.lo:.{digits}f}, {estimate.hi:.{digits}f}]" if estimate.lo is not None else ""
    return f"{estimate.value:.{digits}f}{between}"


def _cell(cell: Cell, trial: Trial | None, own: Sequence[float | None]) -> list[object]:
    head: list[object] = [cell.name, cell.arm, cell.method, cell.seed, cell.state, cell.detail]
    if trial is None:
        return [*head, None, cell.wall_s, *[None] * (len(CELLS) - len(head) - 2)]
    times = (cell.wall_s, trial.train_s, trial.evaluation_s)
    made = (trial.versions.get("commit"), trial.versions.get("source"))
    return [*head, len(trial.steps), *times, trial.sampled, trial.trained, *weights(trial), *own, *made]


def _prepared(one: PreparedFile) -> list[object]:
    told: dict[str, object] = {
        "cell": one.name,
        "method": f"for {' '.join(one.methods)}",
        "state": one.state,
        "detail": one.detail,
    }
    told |= {"wall_s": one.wall_s, "sampled_tokens": one.sampled}
    return [told.get(head) for head in CELLS]


def _numbers(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.lo, estimate.hi)


def _csv(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_text(value) for value in line] for line in lines)
    return out.getvalue()


def _text(value: object) -> object:
    """Six significant digits, and no text that a spreadsheet would take for a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
