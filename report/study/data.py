"""A study's figures as the JSON that its page draws. Numbers have six digits; unknown is null."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean

from report.run.choose import pick_evenly_spaced
from report.run.curves import MetricColumn, PageData, round_for_page
from report.study.comparison import StudyRow
from report.study.findings import PreparedFile, StudyCell, StudyFindings
from report.study.measures import DISTANCE_MEANING, HELD_OUT_MEASURES, TOKEN_DISTANCE
from report.study.paired import IntervalEstimate
from report.study.tables import summarise_lambda
from report.study.trials import Trial
from report.study.why import average_over_seeds, describe_why_figure, list_why_figures

STUDY_PAGE_SCRIPTS = ("elements.js", "charts.js", "study_plots.js", "study.js")
STUDY_PAGE_STYLES = ("page.css", "study.css")
MAX_STUDY_POINTS = 120  # of one curve
STUDY_CURVES = (
    ("lambda", "Lambda", "share of preference in the loss, per step"),
    ("reward/mean", "Reward in training", "mean over the step's sampled replies, on the judge's scale"),
)
MEASURE_MEANINGS = {measure.name: measure.meaning for measure in HELD_OUT_MEASURES} | {
    TOKEN_DISTANCE: DISTANCE_MEANING
}


def build_study_data(findings: StudyFindings) -> PageData:
    """Everything on the page."""
    methods = list(dict.fromkeys(method for _, method in findings.list_arm_methods()))
    arms = list(dict.fromkeys(arm for arm, _ in findings.list_arm_methods()))
    return {
        "head": _build_study_head(findings),
        "baseline": findings.study.baseline,
        "methods": methods,
        "made_of": dict(findings.study.methods),
        "arms": [_build_arm(findings, arm) for arm in arms],
        "cells": [
            *(_build_prepared_row(prepared_file) for prepared_file in findings.study.prepared),
            *(_build_cell_row(findings, cell) for cell in findings.study.cells),
        ],
    }


def _build_study_head(findings: StudyFindings) -> PageData:
    study, trials = findings.study, list(findings.trials.values())
    seeds = sorted({cell.seed for cell in study.cells})
    spent = [*(cell.wall_s for cell in study.cells), *(prepared_file.wall_s for prepared_file in study.prepared)]
    walls = [seconds for seconds in spent if seconds is not None]
    counts = [*(trial.sampled for trial in trials), *(prepared_file.sampled for prepared_file in study.prepared)]
    sampled = [count for count in counts if count is not None]
    bootstrap = study.bootstrap
    commits = sorted({trial.versions.get("commit", "") for trial in trials} - {"", "none"})
    facts = [
        ("cells", f"{len(trials)} of {len(study.cells)} finished"),
        ("seeds", ", ".join(map(str, seeds))),
        ("test prompts", str(len(trials[0].prompts)) if trials else ""),
        ("held against", study.baseline),
        ("intervals", f"{bootstrap.level:.0%}, {bootstrap.draws} draws of prompts and seeds"),
        ("on the clock", f"{fsum(walls) / 3600:.1f} h" if walls else ""),
        ("tokens sampled", f"{fsum(sampled) / 1e6:.2f} million" if sampled else ""),
        ("commit", ", ".join(commit[:12] for commit in commits)),
    ]
    agreed = dict(trials[0].versions) if trials else {}
    for trial in trials:
        agreed = {name: value for name, value in agreed.items() if trial.versions.get(name) == value}
    return {
        "name": study.name,
        "facts": [fact for fact in facts if fact[1]],
        "file": study.file,
        "config": study.settings,
        "versions": sorted(agreed.items()),
        "notes": list(findings.notes),
    }


def _build_arm(findings: StudyFindings, arm: str) -> PageData:
    rows = [row for row in findings.rows if row.arm == arm]
    methods = list(dict.fromkeys(row.method for row in rows))
    trials = {method: findings.trials_of(arm, method) for method in methods}
    return {
        "name": arm,
        "changes": findings.study.arms.get(arm, ""),
        "methods": [_build_method(method, trials[method]) for method in methods],
        "measures": [
            _build_measure([row for row in rows if row.measure == name])
            for name in dict.fromkeys(row.measure for row in rows)
        ],
        "why": _build_why_table(trials),
        "front": find_pareto_front(rows),
        "curves": [
            {"title": title, "hint": hint, "name": name, **_overlay_to_json(overlay_curves(trials, name))}
            for name, title, hint in STUDY_CURVES
        ],
    }


def _build_method(name: str, trials: Sequence[Trial]) -> PageData:
    """Lambda and minutes are means over the seeds."""
    means = [mean for trial in trials if (mean := summarise_lambda(trial)[0]) is not None]
    lasts = [last for trial in trials if (last := summarise_lambda(trial)[1]) is not None]
    seconds = [trial.train_s for trial in trials if trial.train_s is not None]
    return {
        "name": name,
        "seeds": [trial.seed for trial in trials],
        "lambda": round_for_page(fmean(means)) if means else None,
        "lambda_seeds": [round_for_page(mean) for mean in means],
        "lambda_last": round_for_page(fmean(lasts)) if lasts else None,
        "minutes": round_for_page(fmean(seconds) / 60) if seconds else None,
        "sampled": _mean_for_page([trial.sampled for trial in trials]),
        "trained": _mean_for_page([trial.trained for trial in trials]),
    }


def _mean_for_page(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round_for_page(fmean(known)) if known else None


def _build_why_table(trials: Mapping[str, Sequence[Trial]]) -> PageData:
    """Means over the seeds; a figure that no run has is not there."""
    known = list_why_figures([trial.why for runs in trials.values() for trial in runs])
    return {
        "figures": [{"name": name, "meaning": describe_why_figure(name)} for name in known],
        "rows": [
            {
                "method": method,
                "values": [round_for_page(average_over_seeds([t.why for t in runs], name)) for name in known],
            }
            for method, runs in trials.items()
        ],
    }


def _build_measure(rows: Sequence[StudyRow]) -> PageData:
    first = rows[0]
    return {
        "name": first.measure,
        "label": first.label,
        "unit": first.unit,
        "better": first.better,
        "meaning": MEASURE_MEANINGS[first.measure],
        "rows": [
            {
                "method": row.method,
                "mean": _estimate_to_list(row.mean),
                "diff": _estimate_to_list(row.difference) if row.difference else None,
                "verdict": row.decided * row.better,
                "signs": [row.signs.wins, row.signs.losses, row.signs.ties] if row.signs else None,
                "p": round_for_page(row.signs.p) if row.signs else None,
                "seeds": [[seed, round_for_page(value)] for seed, value in row.by_seed.items()],
                "prompts": row.prompts,
            }
            for row in rows
        ],
    }


def _estimate_to_list(estimate: IntervalEstimate) -> list[float | None]:
    return [round_for_page(estimate.value), round_for_page(estimate.lo), round_for_page(estimate.hi)]


def find_pareto_front(rows: Sequence[StudyRow]) -> list[str]:
    """The methods that no other beats in both IQ and EQ (as good in one and better in the other)."""
    points: dict[str, tuple[float, float]] = {}
    of = {(row.method, row.measure): row.mean.value for row in rows}
    for method in dict.fromkeys(row.method for row in rows):
        iq, eq = of.get((method, "iq")), of.get((method, "eq"))
        if iq is not None and eq is not None:
            points[method] = (iq, eq)
    return [
        method
        for method, (iq, eq) in points.items()
        if not any((a >= iq and b >= eq) and (a > iq or b > eq) for a, b in points.values())
    ]


@dataclass(frozen=True, slots=True)
class MethodCurve:
    """One method's curve: the mean over the seeds that tell the step, and every seed."""

    method: str
    mean: MetricColumn
    seeds: Sequence[MetricColumn]


@dataclass(frozen=True, slots=True)
class CurveOverlay:
    """The curves of all methods on common steps."""

    steps: Sequence[float]
    lines: Sequence[MethodCurve]


def overlay_curves(trials: Mapping[str, Sequence[Trial]], name: str) -> CurveOverlay:
    """One metric of all methods; a method that never logged it has no line."""
    steps = pick_evenly_spaced(
        sorted({step for runs in trials.values() for trial in runs for step in trial.steps}), MAX_STUDY_POINTS
    )
    lines = []
    for method, runs in trials.items():
        seeds = [_values_at_steps(trial, name, steps) for trial in runs]
        if any(value is not None for column in seeds for value in column):
            lines.append(MethodCurve(method, average_columns(seeds), seeds))
    return CurveOverlay(steps, lines)


def _overlay_to_json(overlay: CurveOverlay) -> PageData:
    lines = [{"method": line.method, "mean": line.mean, "seeds": line.seeds} for line in overlay.lines]
    return {"xs": overlay.steps, "lines": lines}


def _values_at_steps(trial: Trial, name: str, steps: Sequence[float]) -> MetricColumn:
    value_by_step = dict(zip(trial.steps, trial.curves[name], strict=True))
    return [round_for_page(value_by_step.get(step)) for step in steps]


def average_columns(columns: Sequence[MetricColumn]) -> MetricColumn:
    """Step by step over the columns that tell it; null where none does."""
    known_by_step = [[value for value in row if value is not None] for row in zip(*columns, strict=True)]
    return [round_for_page(fmean(values)) if values else None for values in known_by_step]


def _build_prepared_row(prepared_file: PreparedFile) -> PageData:
    return {
        "name": prepared_file.name,
        "arm": "",
        "method": f"for {', '.join(prepared_file.methods)}",
        "seed": ", ".join(map(str, prepared_file.seeds)),
        "state": prepared_file.state,
        "detail": prepared_file.detail,
        "wall_s": round_for_page(prepared_file.wall_s),
        "sampled": round_for_page(prepared_file.sampled),
    }


def _build_cell_row(findings: StudyFindings, cell: StudyCell) -> PageData:
    trial = findings.trials.get(cell.name)
    cell_facts: PageData = {
        "name": cell.name,
        "arm": cell.arm,
        "method": cell.method,
        "seed": cell.seed,
        "state": cell.state,
        "detail": cell.detail,
        "wall_s": round_for_page(cell.wall_s),
    }
    if trial is None:
        return cell_facts
    return cell_facts | {
        "steps": len(trial.steps),
        "train_s": round_for_page(trial.train_s),
        "evaluation_s": round_for_page(trial.evaluation_s),
        "sampled": round_for_page(trial.sampled),
        "trained": round_for_page(trial.trained),
        "commit": trial.versions.get("commit", "")[:12],
    }
