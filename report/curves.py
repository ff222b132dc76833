"""metrics.jsonl and evaluations.jsonl as the curves and histograms of the page.

Invariant: a value that a step lacks is null all the way to the page, where it is a gap; never 0.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from report.choose import spaced
from report.records import Evaluation, RolloutRecord, Score

MOST_POINTS = 800  # of one curve; a longer run is shown at evenly spaced steps
BINS = 16

Column = list[float | None]
Data = dict[str, object]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart and its series. ``kind``: line or stack. ``zero``: the axis starts at 0."""

    title: str
    hint: str
    series: tuple[tuple[str, str, str], ...]  # metric, label, colour class
    kind: str = "line"
    zero: bool = False


PHASES = (
    ("time/generate", "generate", "c1"),
    ("time/judge", "judge", "c2"),
    ("time/learn", "learn", "c3"),
    ("time/sync", "sync", "c4"),
)
DIAGNOSE = ("time/diagnose", "diagnose", "c5")
LAYERS = (  # the phases, with generation cut in two
    ("time/generate_alone", "generate", "c1"),
    ("time/judge_overlapped", "generate, judging meanwhile", "c6"),
    *PHASES[1:],
)
PANELS = (
    Panel(
        "Lambda",
        "share of preference in the loss",
        (("lambda", "lambda", "c1"), ("lambda_raw", "before smoothing", "c1 thin")),
        zero=True,
    ),
    Panel(
        "Reward",
        "over the step's replies, on the judge's scale",
        (("reward/mean", "mean", "c1"), ("reward/max", "max", "c3"), ("reward/std", "std", "c0")),
    ),
    Panel("Reward per axis", "mean score of each judge axis", ()),
    Panel(
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
    Panel(
        "KL per channel",
        "k3 estimate to the frozen start policy",
        (("loss/kl_text", "text", "c1"), ("loss/kl_audio", "audio", "c2")),
        zero=True,
    ),
    Panel(
        "Entropy per channel",
        "nats per token",
        (("entropy/text", "text", "c1"), ("entropy/audio", "audio", "c2")),
        zero=True,
    ),
    Panel(
        "Loss",
        "total and its components",
        (("loss/total", "total", "c0"), ("loss/sft", "sft", "c3"), ("loss/po", "preference", "c4")),
    ),
    Panel(
        "Log-prob mismatch",
        "engine against learner's replay, per channel",
        (("mismatch/text", "text", "c1"), ("mismatch/audio", "audio", "c2")),
        zero=True,
    ),
    Panel(
        "Time per step",
        "seconds, stacked by phase; the line is the step's wall clock",
        (*LAYERS, DIAGNOSE, ("time/rest", "orchestration", "c0"), ("time/step", "step", "cl")),
        kind="stack",
        zero=True,
    ),
    Panel("Rollout speed", "tokens per second", (("rollout/tokens_per_s", "tokens/s", "c1"),), zero=True),
    Panel(
        "Rollout tokens",
        "per step, by channel",
        (("rollout/text_tokens", "text", "c1"), ("rollout/audio_tokens", "audio", "c2")),
        zero=True,
    ),
    Panel("Gradient", "norm before clipping", (("grad_norm", "norm", "c0"),)),
)


def columns(rows: Sequence[Mapping[str, float | None]]) -> tuple[list[float], dict[str, Column]]:
    """Rows of metrics -> steps, and one column of that length per metric; null where a step lacks it."""
    names = sorted({name for row in rows for name in row} - {"step"})
    steps = [row["step"] for row in rows]
    table = {name: [row.get(name) for row in rows] for name in names}
    if "time/step" in table:
        table["time/rest"] = [_rest(row) for row in rows]
    if "time/generate" in table:
        table["time/generate_alone"] = [_alone(row) for row in rows]
    return [step for step in steps if step is not None], table


def _rest(row: Mapping[str, float | None]) -> float | None:
    """Step time that no phase accounts for; null when a part is not known. Negative when phases overlap."""
    whole = row.get("time/step")
    parts = [row.get(name) for name, _, _ in PHASES]
    known = [part for part in parts if part is not None]
    looked = row.get(DIAGNOSE[0]) or 0.0  # an older run does not know it, and had none
    return whole - sum(known) - looked if whole is not None and len(known) == len(parts) else None


def _alone(row: Mapping[str, float | None]) -> float | None:
    """Generation in which nothing was judged."""
    generate, overlapped = row.get("time/generate"), row.get("time/judge_overlapped")
    return None if generate is None else generate if overlapped is None else generate - overlapped


def curves(
    rows: Sequence[Mapping[str, float | None]],
    evaluations: Iterable[Evaluation],
    elsewhere: Container[str] = (),
) -> Data:
    """Everything the page's charts need: panels with their series, and the metrics that no panel shows.

    ``elsewhere``: metrics that another section of the page draws.
    """
    shown = spaced(rows, MOST_POINTS)
    steps, table = columns(shown)
    held_steps, held = _held_out(evaluations)
    axes = [
        name
        for name in table
        if name.startswith("reward/") and name not in ("reward/mean", "reward/max", "reward/std")
    ]
    panels, used = [], {"policy_version"}
    for panel in PANELS:
        series = panel.series or tuple(
            (name, name.removeprefix("reward/"), f"c{1 + n % 5}") for n, name in enumerate(axes)
        )
        source = held if panel.title == "Held-out validation" else table
        panels.append(chart(panel, series, held_steps if source is held else steps, source))
        used |= {name for name, _, _ in series}
    others = [Panel(name, "", ((name, name, "c1"),)) for name in table if name not in used and name not in elsewhere]
    more = [chart(panel, panel.series, steps, table) for panel in others]
    thinned = f"{len(shown)} of {len(rows)} steps are drawn, evenly spaced" if len(shown) < len(rows) else None
    return {"panels": panels, "more": more, "note": thinned}


def span(steps: Sequence[int]) -> str | None:
    """Steps as people say them; None when there are none."""
    if not steps:
        return None
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def chart(panel: Panel, series: Sequence[tuple[str, str, str]], xs: list[float], table: Mapping[str, Column]) -> Data:
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
            {"name": name, "label": label, "look": look, "ys": [short(y) for y in table[name]]}
            for name, label, look in known
        ],
    }


def short(value: float | None) -> float | None:
    """Six significant digits: what a chart can show, at half the bytes."""
    return None if value is None else float(f"{value:.6g}")


def _held_out(evaluations: Iterable[Evaluation]) -> tuple[list[float], dict[str, Column]]:
    by_step = {evaluation.step: evaluation for evaluation in evaluations if evaluation.split == "validation"}
    steps = sorted(by_step)
    fields = ("heard_right", "text_right", "style_followed", "wer")
    return [float(step) for step in steps], {
        f"eval/{field}": [getattr(by_step[step], field) for step in steps] for field in fields
    }


def histograms(
    early: Sequence[RolloutRecord], late: Sequence[RolloutRecord], scale: tuple[float, float] | None
) -> list[Data]:
    """Shares of the valid scores per bin, early against late steps, for the reward and for every axis."""
    axes = sorted({axis for record in (*early, *late) for axis in record.scores})
    drawn = (
        histogram(axis, [[_value(record, axis) for record in side] for side in (early, late)], scale)
        for axis in ("reward", *axes)
    )
    return [found for found in drawn if found is not None]


def histogram(name: str, sides: Sequence[Sequence[float | None]], scale: tuple[float, float] | None) -> Data | None:
    """Early and late values as shares per bin; a None is counted as missing. No value at all: None."""
    values = [[value for value in side if value is not None] for side in sides]
    if not any(values):
        return None
    edges = _edges([value for side in values for value in side], scale)
    return {
        "axis": name,
        "edges": edges,
        "shares": [_shares(side, edges) for side in values],
        "counts": [len(side) for side in values],
        "missing": [len(side) - len(value) for side, value in zip(sides, values, strict=True)],
        "means": [sum(value) / len(value) if value else None for value in values],
    }


def _value(record: RolloutRecord, axis: str) -> float | None:
    if axis == "reward":
        return record.reward
    score = record.scores.get(axis)
    return score.value if isinstance(score, Score) else None


def _edges(values: Sequence[float], scale: tuple[float, float] | None) -> list[float]:
    lo, hi = min(values), max(values)
    lo, hi = (min(lo, scale[0]), max(hi, scale[1])) if scale else (lo, hi)
    lo, hi = (lo, hi) if lo < hi else (lo - 0.5, hi + 0.5)
    return [lo + (hi - lo) * place / BINS for place in range(BINS + 1)]


def _shares(values: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Share of ``values`` in each bin; the last bin holds its upper edge too. No values: no shares."""
    width = edges[1] - edges[0]
    counts = [0] * (len(edges) - 1)
    for value in values:
        counts[min(int((value - edges[0]) / width), len(counts) - 1)] += 1
    return [count / len(values) for count in counts] if values else []
