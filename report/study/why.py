"""Why a method does what it does, in a few figures per run: the last diagnosis, and means over the steps.

    diagnostics.jsonl    gradient ratio and cosine of the whole model, shifts of log-probs since the start
    metrics.jsonl        lambda, clipping, groups that taught nothing, noise of the judge

Invariant: a figure that the files do not tell is not there.
"""

from collections.abc import Mapping, Sequence
from math import fsum
from statistics import fmean

from report.records import DiagnosisRecord
from report.run.layers import average_figure

MetricRow = Mapping[str, float | None]

OF_LAST_DIAGNOSIS = "of the last diagnosis"
AVERAGED_METRICS = {  # figure -> metric, its mean over the steps that tell it
    "lambda": "lambda",
    "clip_fraction": "clip_fraction",
    "noise_variance": "gate/noise_variance",
}
FIGURE_MEANINGS = {
    "text_audio_ratio": f"norms of the preference gradients, TEXT over AUDIO, {OF_LAST_DIAGNOSIS}; geometric mean",
    "text_audio_cosine": f"of those two gradients, {OF_LAST_DIAGNOSIS}",
    "lambda": "share of preference in the loss, mean over steps",
    "clip_fraction": "of the positions with a preference, mean over steps",
    "groups_dropped": "groups that taught nothing, in all steps",
    "noise_variance": "what the gate holds to be the judge's noise, mean over steps",
}
DROPPED_METRIC, SHIFT_PREFIX = "groups/dropped", "shift_"


def compute_why_figures(looks: Sequence[DiagnosisRecord], rows: Sequence[MetricRow]) -> dict[str, float]:
    """The figures of one run. ``looks``: its diagnoses in order; ``rows``: its metrics, by step."""
    figures: dict[str, float | None] = {}
    if looks:
        last = looks[-1]
        figures |= {name: getattr(last.model, name) for name in ("text_audio_ratio", "text_audio_cosine")}
        figures |= {f"{SHIFT_PREFIX}{name}": shift.mean for name, shift in sorted(last.shift.items())}
    for name, metric in AVERAGED_METRICS.items():
        known_values = [value for row in rows if (value := row.get(metric)) is not None]
        figures[name] = fmean(known_values) if known_values else None
    dropped = sorted({metric for row in rows for metric in row if metric.startswith(DROPPED_METRIC)})
    for metric in dropped:
        figures[metric.replace("/", "_")] = fsum(row.get(metric) or 0.0 for row in rows)
    return {name: value for name, value in figures.items() if value is not None}


def list_why_figures(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """The figures that any run has: those of ``FIGURE_MEANINGS`` first, in its order."""
    there = {name for run in runs for name in run}
    return [name for name in FIGURE_MEANINGS if name in there] + sorted(there - set(FIGURE_MEANINGS))


def average_over_seeds(runs: Sequence[Mapping[str, float]], name: str) -> float | None:
    """The mean of one figure over the runs that have it; of ratios the geometric one."""
    known_values = [run[name] for run in runs if name in run]
    if name.endswith("ratio"):
        return average_figure(name, known_values)
    return fmean(known_values) if known_values else None


def describe_why_figure(name: str) -> str:
    """What a figure is, for the page."""
    if name.startswith(SHIFT_PREFIX):
        what = name.removeprefix(SHIFT_PREFIX).replace("_", " ")
        return f"log-probs of {what} since the start, nats per token, {OF_LAST_DIAGNOSIS}"
    return FIGURE_MEANINGS.get(name, f"{name.removeprefix('groups_dropped_').replace('_', ' ')}, groups in all steps")
