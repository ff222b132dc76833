"""A study's figures as the JSON that its page draws. Numbers have six digits; unknown is null."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean

from report.choose import spaced
from report.comparison import Row
from report.curves import Column, Data, short
from report.measures import DISTANCE, DISTANCE_MEANING, MEASURES
from report.paired import Estimate
from report.study import Cell, Findings, PreparedFile
from report.study_tables import weights
from report.trials import Trial
from report.why import meaning, names, over_seeds

SCRIPTS = ("elements.js", "charts.js", "study_plots.js", "study.js")
STYLES = ("page.css", "study.css")
MOST_POINTS = 120  # of one curve
CURVES = (
    ("lambda", "Lambda", "share of preference in the loss, per step"),
    ("reward/mean", "Reward in training", "mean over the step's sampled replies, on the judge's scale"),
)
MEANINGS = {measure.name: measure.meaning for measure in MEASURES} | {DISTANCE: DISTANCE_MEANING}


def data(found: Findings) -> Data:
    """Everything on the page."""
    methods = list(dict.fromkeys(method for _, method in found.pairs()))
    arms = list(dict.fromkeys(arm for arm, _ in found.pairs()))
    return {
        "head": _head(found),
        "baseline": found.study.baseline,
        "methods": methods,
        "made_of": dict(found.study.methods),
        "arms": [_arm(found, arm) for arm in arms],
        "cells": [
            *(_prepared(one) for one in found.study.prepared),
            *(_cell(found, cell) for cell in found.study.cells),
        ],
    }


def _head(found: Findings) -> Data:
    study, trials = found.study, list(found.trials.values())
    seeds = sorted({cell.seed for cell in study.cells})
    spent = [*(cell.wall_s for cell in study.cells), *(one.wall_s for one in study.prepared)]
    walls = [seconds for seconds in spent if seconds is not None]
    counts = [*(trial.sampled for trial in trials), *(one.sampled for one in study.prepared)]
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
        "notes": list(found.notes),
    }


def _arm(found: Findings, arm: str) -> Data:
    rows = [row for row in found.rows if row.arm == arm]
    methods = list(dict.fromkeys(row.method for row in rows))
    trials = {method: found.of(arm, method) for method in methods}
    return {
        "name": arm,
        "changes": found.study.arms.get(arm, ""),
        "methods": [_method(method, trials[method]) for method in methods],
        "measures": [
            _measure([row for row in rows if row.measure == name])
            for name in dict.fromkeys(row.measure for row in rows)
        ],
        "why": _why(trials),
        "front": front(rows),
        "curves": [
            {"title": title, "hint": hint, "name": name, **_drawn(curves(trials, name))}
            for name, title, hint in CURVES
        ],
    }


def _method(name: str, trials: Sequence[Trial]) -> Data:
    """Lambda and minutes are means over the seeds."""
    means = [mean for trial in trials if (mean := weights(trial)[0]) is not None]
    lasts = [last for trial in trials if (last := weights(trial)[1]) is not None]
    seconds = [trial.train_s for trial in trials if trial.train_s is not None]
    return {
        "name": name,
        "seeds": [trial.seed for trial in trials],
        "lambda": short(fmean(means)) if means else None,
        "lambda_seeds": [short(mean) for mean in means],
        "lambda_last": short(fmean(lasts)) if lasts else None,
        "minutes": short(fmean(seconds) / 60) if seconds else None,
        "sampled": _mean([trial.sampled for trial in trials]),
        "trained": _mean([trial.trained for trial in trials]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return short(fmean(known)) if known else None


def _why(trials: Mapping[str, Sequence[Trial]]) -> Data:
    """Means over the seeds; a figure that no run has is not there."""
    known = names([trial.why for runs in trials.values() for trial in runs])
    return {
        "figures": [{"name": name, "meaning": meaning(name)} for name in known],
        "rows": [
            {"method": method, "values": [short(over_seeds([t.why for t in runs], name)) for name in known]}
            for method, runs in trials.items()
        ],
    }


def _measure(rows: Sequence[Row]) -> Data:
    first = rows[0]
    return {
        "name": first.measure,
        "label": first.label,
        "unit": first.unit,
        "better": first.better,
        "meaning": MEANINGS[first.measure],
        "rows": [
            {
                "method": row.method,
                "mean": _three(row.mean),
                "diff": _three(row.difference) if row.difference else None,
                "verdict": row.decided * row.better,
                "signs": [row.signs.wins, row.signs.losses, row.signs.ties] if row.signs else None,
                "p": short(row.signs.p) if row.signs else None,
                "seeds": [[seed, short(value)] for seed, value in row.by_seed.items()],
                "prompts": row.prompts,
            }
            for row in rows
        ],
    }


def _three(estimate: Estimate) -> list[float | None]:
    return [short(estimate.value), short(estimate.lo), short(estimate.hi)]


def front(rows: Sequence[Row]) -> list[str]:
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
class Line:
    """One method's curve: the mean over the seeds that tell the step, and every seed."""

    method: str
    mean: Column
    seeds: Sequence[Column]


@dataclass(frozen=True, slots=True)
class Overlay:
    """The curves of all methods on common steps."""

    steps: Sequence[float]
    lines: Sequence[Line]


def curves(trials: Mapping[str, Sequence[Trial]], name: str) -> Overlay:
    """One metric of all methods; a method that never logged it has no line."""
    steps = spaced(sorted({step for runs in trials.values() for trial in runs for step in trial.steps}), MOST_POINTS)
    lines = []
    for method, runs in trials.items():
        seeds = [_at(trial, name, steps) for trial in runs]
        if any(value is not None for column in seeds for value in column):
            lines.append(Line(method, mean_of(seeds), seeds))
    return Overlay(steps, lines)


def _drawn(overlay: Overlay) -> Data:
    lines = [{"method": line.method, "mean": line.mean, "seeds": line.seeds} for line in overlay.lines]
    return {"xs": overlay.steps, "lines": lines}


def _at(trial: Trial, name: str, steps: Sequence[float]) -> Column:
    told = dict(zip(trial.steps, trial.curves[name], strict=True))
    return [short(told.get(step)) for step in steps]


def mean_of(columns: Sequence[Column]) -> Column:
    """Step by step over the columns that tell it; null where none does."""
    told = [[value for value in row if value is not None] for row in zip(*columns, strict=True)]
    return [short(fmean(values)) if values else None for values in told]


def _prepared(one: PreparedFile) -> Data:
    return {
        "name": one.name,
        "arm": "",
        "method": f"for {', '.join(one.methods)}",
        "seed": ", ".join(map(str, one.seeds)),
        "state": one.state,
        "detail": one.detail,
        "wall_s": short(one.wall_s),
        "sampled": short(one.sampled),
    }


def _cell(found: Findings, cell: Cell) -> Data:
    trial = found.trials.get(cell.name)
    told: Data = {
        "name": cell.name,
        "arm": cell.arm,
        "method": cell.method,
        "seed": cell.seed,
        "state": cell.state,
        "detail": cell.detail,
        "wall_s": short(cell.wall_s),
    }
    if trial is None:
        return told
    return told | {
        "steps": len(trial.steps),
        "train_s": short(trial.train_s),
        "evaluation_s": short(trial.evaluation_s),
        "sampled": short(trial.sampled),
        "trained": short(trial.trained),
        "commit": trial.versions.get("commit", "")[:12],
    }
