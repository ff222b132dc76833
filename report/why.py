"""Why a method does what it does, in a few figures per run: the last diagnosis, and means over the steps.

    diagnostics.jsonl    gradient ratio and cosine of the whole model, shifts of log-probs since the start
    metrics.jsonl        lambda, clipping, groups that taught nothing, noise of the judge

Invariant: a figure that the files do not tell is not there.
"""

from collections.abc import Mapping, Sequence
from math import fsum
from statistics import fmean

from report.layers import middle
from report.records import Diagnosis

Row = Mapping[str, float | None]

LAST = "of the last diagnosis"
MEANS = {  # figure -> metric, its mean over the steps that tell it
    "lambda": "lambda",
    "clip_fraction": "clip_fraction",
    "noise_variance": "gate/noise_variance",
}
MEANINGS = {
    "text_audio_ratio": f"norms of the preference gradients, TEXT over AUDIO, {LAST}; geometric mean",
    "text_audio_cosine": f"of those two gradients, {LAST}",
    "lambda": "share of preference in the loss, mean over steps",
    "clip_fraction": "of the positions with a preference, mean over steps",
    "groups_dropped": "groups that taught nothing, in all steps",
    "noise_variance": "what the gate holds to be the judge's noise, mean over steps",
}
DROPPED, SHIFT = "groups/dropped", "shift_"


def why(looks: Sequence[Diagnosis], rows: Sequence[Row]) -> dict[str, float]:
    """The figures of one run. ``looks``: its diagnoses in order; ``rows``: its metrics, by step."""
    found: dict[str, float | None] = {}
    if looks:
        last = looks[-1]
        found |= {name: getattr(last.model, name) for name in ("text_audio_ratio", "text_audio_cosine")}
        found |= {f"{SHIFT}{name}": shift.mean for name, shift in sorted(last.shift.items())}
    for name, metric in MEANS.items():
        told = [value for row in rows if (value := row.get(metric)) is not None]
        found[name] = fmean(told) if told else None
    dropped = sorted({metric for row in rows for metric in row if metric.startswith(DROPPED)})
    for metric in dropped:
        found[metric.replace("/", "_")] = fsum(row.get(metric) or 0.0 for row in rows)
    return {name: value for name, value in found.items() if value is not None}


def names(runs: Sequence[Mapping[str, float]]) -> list[str]:
    """The figures that any run has: those of MEANINGS first, in its order."""
    there = {name for run in runs for name in run}
    return [name for name in MEANINGS if name in there] + sorted(there - set(MEANINGS))


def over_seeds(runs: Sequence[Mapping[str, float]], name: str) -> float | None:
    """The mean of one figure over the runs that have it; of ratios the geometric one."""
    told = [run[name] for run in runs if name in run]
    if name.endswith("ratio"):
        return middle(name, told)
    return fmean(told) if told else None


def meaning(name: str) -> str:
    """What a figure is, for the page."""
    if name.startswith(SHIFT):
        what = name.removeprefix(SHIFT).replace("_", " ")
        return f"log-probs of {what} since the start, nats per token, {LAST}"
    return MEANINGS.get(name, f"{name.removeprefix('groups_dropped_').replace('_', ' ')}, groups in all steps")
