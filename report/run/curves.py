"""metrics.jsonl and evaluations.jsonl as the curves and histograms of the page.

Invariant: a value that a step lacks is null all the way to the page, where it is a gap; never 0.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from report.records import Evaluation, RolloutRecord, ScoreRecord
from report.run.choose import pick_evenly_spaced

MAX_CURVE_POINTS = 800  # of one curve; a longer run is shown at evenly spaced steps
HISTOGRAM_BINS = 16

MetricColumn = list[float | None]
PageData = dict[str, object]


@dataclass(frozen=True, slots=True)
class ChartPanel:
    """One chart and its series. ``kind``: line or stack. ``zero``: the axis starts at 0."""

    title: str
    hint: str
    series: tuple[tuple[str, str, str], ...]  # metric, label, colour class
    kind: str = "line"
    zero: bool = False


PHASE_SERIES = (
    ("time/generate", "generate", "c1"),
    ("time/judge", "judge", "c2"),
    ("time/learn", "learn", "c3"),
    ("time/sync", "sync", "c4"),
)
DIAGNOSE_SERIES = ("time/diagnose", "diagnose", "c5")
STACKED_SERIES = (  # the phases, with generation cut in two
    ("time/generate_alone", "generate", "c1"),
    ("time/judge_overlapped", "generate, judging meanwhile", "c6"),
    *PHASE_SERIES[1:],
)
RUN_PANELS = (
    ChartPanel(
        "Lambda",
        "share of preference in the loss",
        (("lambda", "lambda", "c1"), ("lambda_raw", "before smoothing", "c1 thin")),
        zero=True,
    ),
    ChartPanel(
        "Reward",
        "over the step's replies, on the judge's scale",
        (("reward/mean", "mean", "c1"), ("reward/max", "max", "c3"), ("reward/std", "std", "c0")),
    ),
    ChartPanel("Reward per axis", "mean score of each judge axis", ()),
    ChartPanel(
        "Held-out validation",
        "greedy replies; shares",
        (
            ("eval/heard_right", "right as heard", "c1"),
            ("eval/text_right", "right in text", "c3"),
            ("eval/style_followed", "style followed", "c4"),
            ("eval/wer", "WER", "c2"),
        ),
        zero=True,
    ),
    ChartPanel(
        "KL per channel",
        "k3 estimate to the frozen start policy",
        (("loss/kl_text", "text", "c1"), ("loss/kl_audio", "audio", "c2")),
        zero=True,
    ),
    ChartPanel(
        "Entropy per channel",
        "nats per token",
        (("entropy/text", "text", "c1"), ("entropy/audio", "audio", "c2")),
        zero=True,
    ),
    ChartPanel(
        "Loss",
        "total and its components",
        (("loss/total", "total", "c0"), ("loss/sft", "sft", "c3"), ("loss/po", "preference", "c4")),
    ),
    ChartPanel(
        "Log-prob mismatch",
        "engine against learner's replay, per channel",
        (("mismatch/text", "text", "c1"), ("mismatch/audio", "audio", "c2")),
        zero=True,
    ),
    ChartPanel(
        "Time per step",
        "seconds, stacked by phase; the line is the step's wall clock",
        (*STACKED_SERIES, DIAGNOSE_SERIES, ("time/rest", "orchestration", "c0"), ("time/step", "step", "cl")),
        kind="stack",
        zero=True,
    ),
    ChartPanel("Rollout speed", "tokens per second", (("rollout/tokens_per_s", "tokens/s", "c1"),), zero=True),
    ChartPanel(
        "Rollout tokens",
        "per step, by channel",
        (("rollout/text_tokens", "text", "c1"), ("rollout/audio_tokens", "audio", "c2")),
        zero=True,
    ),
    ChartPanel("Gradient", "norm before clipping", (("grad_norm", "norm", "c0"),)),
)


def rows_to_columns(rows: Sequence[Mapping[str, float | None]]) -> tuple[list[float], dict[str, MetricColumn]]:
    """Rows of metrics -> steps, and one column of that length per metric; null where a step lacks it."""
    names = sorted({name for row in rows for name in row} - {"step"})
    steps = [row["step"] for row in rows]
    table = {name: [row.get(name) for row in rows] for name in names}
    if "time/step" in table:
        table["time/rest"] = [_unaccounted_time(row) for row in rows]
    if "time/generate" in table:
        table["time/generate_alone"] = [_generation_time_alone(row) for row in rows]
    return [step for step in steps if step is not None], table


def _unaccounted_time(row: Mapping[str, float | None]) -> float | None:
    """Step time that no phase accounts for; null when a part is not known. Negative when phases overlap."""
    whole = row.get("time/step")
    parts = [row.get(name) for name, _, _ in PHASE_SERIES]
    known = [part for part in parts if part is not None]
    looked = row.get(DIAGNOSE_SERIES[0]) or 0.0  # an older run does not know it, and had none
    return whole - sum(known) - looked if whole is not None and len(known) == len(parts) else None


def _generation_time_alone(row: Mapping[str, float | None]) -> float | None:
    """Generation in which nothing was judged."""
    generate, overlapped = row.get("time/generate"), row.get("time/judge_overlapped")
    return None if generate is None else generate if overlapped is None else generate - overlapped


def build_run_curves(
    rows: Sequence[Mapping[str, float | None]],
    evaluations: Iterable[Evaluation],
    elsewhere: Container[str] = (),
) -> PageData:
    """Everything the page's charts need: panels with their series, and the metrics that no panel shows.

    ``elsewhere``: metrics that another section of the page draws.
    """
    shown = pick_evenly_spaced(rows, MAX_CURVE_POINTS)
    steps, table = rows_to_columns(shown)
    held_steps, held_out = _collect_held_out_columns(evaluations)
    axes = [
        name
        for name in table
        if name.startswith("reward/") and name not in ("reward/mean", "reward/max", "reward/std")
    ]
    panels, used = [], {"policy_version"}
    for panel in RUN_PANELS:
        series = panel.series or tuple(
            (name, name.removeprefix("reward/"), f"c{1 + n % 5}") for n, name in enumerate(axes)
        )
        source = held_out if panel.title == "Held-out validation" else table
        panels.append(build_chart(panel, series, held_steps if source is held_out else steps, source))
        used |= {name for name, _, _ in series}
    others = [
        ChartPanel(name, "", ((name, name, "c1"),)) for name in table if name not in used and name not in elsewhere
    ]
    other_charts = [build_chart(panel, panel.series, steps, table) for panel in others]
    thinned = f"{len(shown)} of {len(rows)} steps are drawn, evenly spaced" if len(shown) < len(rows) else None
    return {"panels": panels, "more": other_charts, "note": thinned}


def format_step_span(steps: Sequence[int]) -> str | None:
    """Steps as people say them; None when there are none."""
    if not steps:
        return None
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def build_chart(
    panel: ChartPanel, series: Sequence[tuple[str, str, str]], xs: list[float], table: Mapping[str, MetricColumn]
) -> PageData:
    """One panel as the page draws it; a metric without any value is named as absent."""
    present = {name for name, column in table.items() if any(value is not None for value in column)}
    known = [(name, label, look) for name, label, look in series if name in present]
    absent = [name for name, _, _ in series if name not in present]
    return {
        "title": panel.title,
        "hint": panel.hint,
        "kind": panel.kind,
        "zero": panel.zero,
        "xs": xs,
        "absent": absent,
        "series": [
            {"name": name, "label": label, "look": look, "ys": [round_for_page(y) for y in table[name]]}
            for name, label, look in known
        ],
    }


def round_for_page(value: float | None) -> float | None:
    """Six significant digits: what a chart can show, at half the bytes."""
    return None if value is None else float(f"{value:.6g}")


def _collect_held_out_columns(evaluations: Iterable[Evaluation]) -> tuple[list[float], dict[str, MetricColumn]]:
    by_step = {evaluation.step: evaluation for evaluation in evaluations if evaluation.split == "validation"}
    steps = sorted(by_step)
    fields = ("heard_right", "text_right", "style_followed", "wer")
    return [float(step) for step in steps], {
        f"eval/{field}": [getattr(by_step[step], field) for step in steps] for field in fields
    }


def build_histograms(
    early: Sequence[RolloutRecord], late: Sequence[RolloutRecord], scale: tuple[float, float] | None
) -> list[PageData]:
    """Shares of the valid scores per bin, early against late steps, for the reward and for every axis."""
    axes = sorted({axis for record in (*early, *late) for axis in record.scores})
    drawn = (
        build_histogram(axis, [[_get_axis_value(record, axis) for record in side] for side in (early, late)], scale)
        for axis in ("reward", *axes)
    )
    return [axis_histogram for axis_histogram in drawn if axis_histogram is not None]


def build_histogram(
    name: str, sides: Sequence[Sequence[float | None]], scale: tuple[float, float] | None
) -> PageData | None:
    """Early and late values as shares per bin; a None is counted as missing. No value at all: None."""
    values = [[value for value in side if value is not None] for side in sides]
    if not any(values):
        return None
    edges = _compute_bin_edges([value for side in values for value in side], scale)
    return {
        "axis": name,
        "edges": edges,
        "shares": [_compute_bin_shares(side, edges) for side in values],
        "counts": [len(side) for side in values],
        "missing": [len(side) - len(value) for side, value in zip(sides, values, strict=True)],
        "means": [sum(value) / len(value) if value else None for value in values],
    }


def _get_axis_value(record: RolloutRecord, axis: str) -> float | None:
    if axis == "reward":
        return record.reward
    score = record.scores.get(axis)
    return score.value if isinstance(score, ScoreRecord) else None


def _compute_bin_edges(values: Sequence[float], scale: tuple[float, float] | None) -> list[float]:
    lo, hi = min(values), max(values)
    lo, hi = (min(lo, scale[0]), max(hi, scale[1])) if scale else (lo, hi)
    lo, hi = (lo, hi) if lo < hi else (lo - 0.5, hi + 0.5)
    return [lo + (hi - lo) * place / HISTOGRAM_BINS for place in range(HISTOGRAM_BINS + 1)]


def _compute_bin_shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Share of ``values`` in each bin; the last bin holds its upper edge too. No values: no shares."""
    width = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(int((value - edges[0]) / width), len(counts) - 1)] += 1
    return [count / len(values) for count in counts] if values else []
