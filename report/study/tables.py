"""The figures of a study as CSV: a row per arm, method and measure, and a row per run. Unknown is empty."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from statistics import fmean

from report.run.table import align_columns
from report.study.findings import PreparedFile, StudyCell, StudyFindings
from report.study.paired import IntervalEstimate
from report.study.trials import Trial
from report.study.why import list_why_figures

MEASURE_COLUMNS = (
    "arm", "method", "measure", "unit", "mean", "lo", "hi", "diff", "diff_lo", "diff_hi",
    "wins", "losses", "ties", "p", "prompts", "seeds",
)  # fmt: skip
CELL_COLUMNS = (
    "cell", "arm", "method", "seed", "state", "detail", "steps", "wall_s", "train_s", "evaluation_s",
    "sampled_tokens", "trained_tokens", "lambda_mean", "lambda_last", "iq", "eq", "reward",
    "commit", "source",
)  # fmt: skip


def measures_to_csv(findings: StudyFindings) -> str:
    """study.csv. ``diff`` and what follows: against the baseline of the same arm."""
    return _format_csv(
        MEASURE_COLUMNS,
        (
            [
                row.arm,
                row.method,
                row.measure,
                row.unit,
                *_estimate_to_numbers(row.mean),
                *_estimate_to_numbers(row.difference),
                *((row.signs.wins, row.signs.losses, row.signs.ties) if row.signs else (None,) * 3),
                row.signs.p if row.signs else None,
                row.prompts,
                row.seeds,
            ]
            for row in findings.rows
        ),
    )


def cells_to_csv(findings: StudyFindings) -> str:
    """cells.csv; the measures are means over the run's test prompts. Prepared files come first.

    After ``CELL_COLUMNS`` a column for every figure of report/study/why.py that a run has.
    """
    known = [name for name in list_why_figures([t.why for t in findings.trials.values()]) if name != "lambda"]
    by_seed = {(row.arm, row.method, row.measure): row.by_seed for row in findings.rows}
    lines = [_prepared_to_line(prepared_file) for prepared_file in findings.study.prepared]
    for cell in findings.study.cells:
        trial = findings.trials.get(cell.name)
        own = [by_seed.get((cell.arm, cell.method, name), {}).get(cell.seed) for name in ("iq", "eq", "reward")]
        why_figures = [trial.why.get(name) for name in known] if trial else []
        lines.append([*_cell_to_line(cell, trial, own), *why_figures])
    heads = [*CELL_COLUMNS, *(f"why_{name}" for name in known)]
    return _format_csv(heads, [[*line, *[None] * (len(heads) - len(line))] for line in lines])


def summarise_lambda(trial: Trial) -> tuple[float | None, float | None]:
    """Lambda, mean over the steps that tell it, and at the last of them."""
    known_lambdas = [value for value in trial.curves["lambda"] if value is not None]
    return (fmean(known_lambdas), known_lambdas[-1]) if known_lambdas else (None, None)


def summarise_study(findings: StudyFindings) -> list[str]:
    """IQ and EQ of every method and what a reader must know, as lines for a terminal."""
    by_name = {(row.arm, row.method, row.measure): row for row in findings.rows}
    table = [("arm", "method", "seeds", "IQ, as heard, %", "EQ", "lambda")]
    for arm, method in findings.list_arm_methods():
        iq, eq = by_name[arm, method, "iq"], by_name[arm, method, "eq"]
        means = [mean for trial in findings.trials_of(arm, method) if (mean := summarise_lambda(trial)[0]) is not None]
        weight = f"{fmean(means):.3f}" if means else "-"
        table.append((arm, method, str(iq.seeds), _format_estimate(iq.mean, 1), _format_estimate(eq.mean, 2), weight))
    return [*align_columns(table), *(f"note: {note}" for note in findings.notes)]


def _format_estimate(estimate: IntervalEstimate, digits: int) -> str:
    if estimate.value is None:
        return "-"
    between = f" [{estimate.lo:.{digits}f}, {estimate.hi:.{digits}f}]" if estimate.lo is not None else ""
    return f"{estimate.value:.{digits}f}{between}"


def _cell_to_line(cell: StudyCell, trial: Trial | None, own: Sequence[float | None]) -> list[object]:
    head: list[object] = [cell.name, cell.arm, cell.method, cell.seed, cell.state, cell.detail]
    if trial is None:
        return [*head, None, cell.wall_s, *[None] * (len(CELL_COLUMNS) - len(head) - 2)]
    times = (cell.wall_s, trial.train_s, trial.evaluation_s)
    source_version = (trial.versions.get("commit"), trial.versions.get("source"))
    return [
        *head,
        len(trial.steps),
        *times,
        trial.sampled,
        trial.trained,
        *summarise_lambda(trial),
        *own,
        *source_version,
    ]


def _prepared_to_line(prepared_file: PreparedFile) -> list[object]:
    value_by_column: dict[str, object] = {
        "cell": prepared_file.name,
        "method": f"for {' '.join(prepared_file.methods)}",
        "state": prepared_file.state,
        "detail": prepared_file.detail,
    }
    value_by_column |= {"wall_s": prepared_file.wall_s, "sampled_tokens": prepared_file.sampled}
    return [value_by_column.get(head) for head in CELL_COLUMNS]


def _estimate_to_numbers(estimate: IntervalEstimate | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if estimate is None else (estimate.value, estimate.lo, estimate.hi)


def _format_csv(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_format_csv_value(value) for value in line] for line in lines)
    return out.getvalue()


def _format_csv_value(value: object) -> object:
    """Six significant digits, and no text that a spreadsheet would take for a formula."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
