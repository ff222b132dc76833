"""The judges of a run in one section: do they answer, what do they cost, can they be believed?

Rollout records, judge_calls.jsonl, canaries.jsonl and the judge/* metrics in, JSON values out. Invariant:
what a run does not have (calls, canaries, a second judge, metrics of an endpoint) is an empty list or None
for the page to say so; no figure of it is made up.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from report import read
from report.records import CanaryRecord, MissingScoreRecord, ScoreRecord
from report.run import verdicts
from report.run.calls import read_call_log, tabulate_calls
from report.run.choose import pick_evenly_spaced
from report.run.curves import (
    MAX_CURVE_POINTS,
    ChartPanel,
    MetricColumn,
    PageData,
    build_chart,
    format_step_span,
    rows_to_columns,
)
from report.run.verdicts import JudgedReplies, JudgedRepliesByStep, divide_or_none, list_all_replies, truncate_text
from store.lines import read_json_lines

MAX_VERDICT_STEPS = 150  # whose records are read
MAX_CURVE_KINDS = 5  # that a curve tells apart
MAX_CANARY_CHECKS = 60  # of one canary that are shown
MAX_TABLE_ROWS = 80  # of a table
MAX_JUDGE_NAMES = 3  # of judges in one cell
SCALE_INTERVALS = 4  # steps of a scale: 1 to 5 has points of 1
FATE_ORDER = {"paid": 0, "unknown": 1, "passed": 2}  # worst first
MISSING_KIND_PREFIX = "judge/missing_"

JudgeMetricRows = Sequence[Mapping[str, float | None]]


def _single_series_panel(title: str, hint: str, metric: str, label: str, look: str) -> ChartPanel:
    return ChartPanel(title, hint, ((metric, label, look),), zero=True)


JUDGE_PANELS = (
    _single_series_panel(
        "From the cache", "share of a step's replies that cost no call", "judge/cached", "cached", "c3"
    ),
    _single_series_panel(
        "Requests",
        "sent to the endpoint since the start, retries included",
        "judge/requests",
        "requests",
        "c1",
    ),
    _single_series_panel("Spend", "since the start, in the currency of the prices", "judge/spent", "spent", "c2"),
    _single_series_panel(
        "Circuit breaker",
        "seconds since the start for which it held all calls back",
        "judge/breaker_open_s",
        "open",
        "c5",
    ),
    ChartPanel(
        "Calls under way",
        "at the end of a step",
        (("judge/in_flight", "in flight", "c1"), ("judge/waiting", "waiting", "c0")),
        zero=True,
    ),
)
PERCENT_TITLES = {"Missing by kind", "From the cache"}  # drawn in percent


def list_judge_metrics(rows: JudgeMetricRows) -> set[str]:
    """The metrics that this section draws."""
    kinds = {name for row in rows for name in row if name.startswith(MISSING_KIND_PREFIX)}
    return kinds | {"judge/missing", "judge/latency_s"} | {name for panel in JUDGE_PANELS for name, *_ in panel.series}


def build_judges_section(run_dir: Path, rows: JudgeMetricRows, scale: tuple[float, float] | None) -> PageData:
    """The section. ValueError: a malformed line of the records or of canaries.jsonl, as file:line."""
    files = read.list_rollout_files(run_dir)
    steps = pick_evenly_spaced(list(files), MAX_VERDICT_STEPS)
    lines_by_step = {step: read.read_judged_replies(files[step]) for step in steps}
    by_step = {step: lines.rows for step, lines in lines_by_step.items()}
    replies = list_all_replies(by_step)
    quarter = max(1, len(steps) // 4)
    spans = steps[:quarter], steps[quarter:][-quarter:]
    early, late = (list_all_replies({step: by_step[step] for step in side}) for side in spans)
    calls = read_call_log(run_dir / "judge_calls.jsonl")
    birds = read_json_lines(run_dir / "canaries.jsonl", TypeAdapter(CanaryRecord))
    tables = {
        "verdicts": verdicts.tabulate_by_judge(replies, early, late),
        "calls": tabulate_calls(calls),
        "canaries": tabulate_canaries(birds.rows),
        "second": compare_second_judge(replies, (scale[1] - scale[0]) / SCALE_INTERVALS if scale else 1.0),
    }
    some = f"verdicts are read from {len(steps)} of {len(files)} recorded steps, evenly spaced"
    notes = (
        some if len(steps) < len(files) else None,
        *(
            f"{name}: the first {MAX_TABLE_ROWS} of {len(t)} rows"
            for name, t in tables.items()
            if len(t) > MAX_TABLE_ROWS
        ),
        *(lines.note for lines in lines_by_step.values()),
        calls.note,
        birds.note if (run_dir / "canaries.jsonl").is_file() else None,
    )
    return {
        "notes": [note for note in notes if note],
        "facts": summarise_verdicts(replies, rows),
        "spans": [format_step_span(steps) for steps in spans],
        **{name: whole[:MAX_TABLE_ROWS] for name, whole in tables.items()},
        "panels": chart_judge_panels(by_step, rows),
        "missing": verdicts.tabulate_missing(replies),
        "lengths": verdicts.tabulate_by_length(replies),
        "spreads": verdicts.build_spread_histograms(early, late),
    }


def summarise_verdicts(replies: JudgedReplies, rows: JudgeMetricRows) -> PageData:
    """The run at a glance: shares of its verdicts, and the last values of what the limiter counts."""
    all_verdicts = [verdict for reply in replies for verdict in reply.scores.values()]
    scores = [verdict for verdict in all_verdicts if isinstance(verdict, ScoreRecord)]
    counted = {
        name: next((row[f"judge/{name}"] for row in reversed(rows) if f"judge/{name}" in row), None)
        for name in ("requests", "spent", "breaker_open_s")
    }
    return {
        "verdicts": len(all_verdicts),
        "missing": divide_or_none(len(all_verdicts) - len(scores), len(all_verdicts)),
        "cached": divide_or_none(sum(score.cached for score in scores), len(scores)),
        **verdicts.summarise_latencies(replies),
        **counted,
    }


def chart_judge_panels(by_step: JudgedRepliesByStep, rows: JudgeMetricRows) -> list[PageData]:
    """Curves over steps; of what the run did not log there is none."""
    shown = pick_evenly_spaced(rows, MAX_CURVE_POINTS)
    steps, table = rows_to_columns(shown)
    charts = [verdicts.chart_latency(by_step, steps, table), chart_missing_by_kind(shown)]
    charts += [build_chart(panel, panel.series, steps, table) for panel in JUDGE_PANELS]
    return [{**panel, "share": panel["title"] in PERCENT_TITLES} for panel in charts if panel["series"]]


def chart_missing_by_kind(rows: JudgeMetricRows) -> PageData:
    """Share of a step's replies without a reward, stacked by kind; rare kinds are one, ``others``.

    A kind that a step does not name did not occur in it. A run that does not log kinds has the line of
    all alone.
    """
    sums: Counter[str] = Counter()
    for row in rows:
        sums.update({name: value for name, value in row.items() if name.startswith(MISSING_KIND_PREFIX) and value})
    ordered = [name for name, _ in sums.most_common()]
    common, rare = ordered[:MAX_CURVE_KINDS], ordered[MAX_CURVE_KINDS:]
    table: dict[str, MetricColumn] = {"judge/missing": [row.get("judge/missing") for row in rows]}
    table |= {name: [_sum_kinds(row, [name]) for row in rows] for name in common}
    table |= {"others": [_sum_kinds(row, rare) for row in rows]} if rare else {}
    series = [(name, name.removeprefix(MISSING_KIND_PREFIX), f"c{n}") for n, name in enumerate(common, start=1)]
    series += [("others", "others", "c0")] if rare else []
    panel = ChartPanel(
        "Missing by kind",
        "share of a step's replies; the line is all kinds",
        (),
        "stack",
        True,
    )
    steps, _ = rows_to_columns(rows)
    return build_chart(panel, (*series, ("judge/missing", "all", "cl")), steps, table)


def _sum_kinds(row: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    """The share of these kinds; None when the step does not tell how many are missing."""
    return None if row.get("judge/missing") is None else sum(row.get(name) or 0.0 for name in names)


def tabulate_canaries(lines: Sequence[CanaryRecord]) -> list[PageData]:
    """A row per axis and canary with the fates of all its checks; whatever was paid comes first.

    A check that was made again after a resume counts once, as it came out the last time.
    """
    checks = {(line.axis, line.name, line.step): line for line in lines}
    histories: dict[tuple[str, str], list[CanaryRecord]] = {}
    for axis, name, step in sorted(checks):
        histories.setdefault((axis, name), []).append(checks[axis, name, step])
    rows = [_summarise_canary(history) for history in histories.values()]
    return sorted(rows, key=lambda row: (FATE_ORDER[row["fate"]], not row["paid"], row["axis"], row["name"]))


def _summarise_canary(history: Sequence[CanaryRecord]) -> dict[str, Any]:
    last = history[-1]
    shown = history[-MAX_CANARY_CHECKS:]
    return {
        "axis": last.axis,
        "name": truncate_text(last.name),
        "fate": last.fate,
        "value": last.value,
        "most": last.most,
        "detail": truncate_text(last.detail),
        "paid": sum(check.fate == "paid" for check in history),
        "checks": len(history),
        "steps": [check.step for check in shown],
        "fates": [check.fate for check in shown],
        "values": [check.value for check in shown],
    }


def compare_second_judge(replies: JudgedReplies, point: float) -> list[PageData]:
    """Per axis how far the second judge agrees with the first, over the replies that both scored."""
    axes = sorted({axis for reply in replies for axis in reply.second})
    return [_compare_axis(axis, [reply for reply in replies if axis in reply.second], point) for axis in axes]


def _compare_axis(axis: str, replies: JudgedReplies, point: float) -> PageData:
    # Here, because it brings scipy along, which takes seconds that no other page needs.
    from judge.agreement import RatedReply, measure_agreement

    pairs = [(reply.prompt_id, reply.scores.get(axis), reply.second[axis]) for reply in replies]
    rated_by_both = [
        (p, first, second)
        for p, first, second in pairs
        if isinstance(first, ScoreRecord) and isinstance(second, ScoreRecord)
    ]
    agreement_figures = measure_agreement(
        [RatedReply(prompt_id=p, judge=first.value, human=second.value) for p, first, second in rated_by_both], point
    )
    return {
        "axis": axis,
        "judges": [
            _list_busiest_judges(first for _, first, _ in rated_by_both),
            _list_busiest_judges(second for _, _, second in rated_by_both),
        ],
        "asked": len(replies),
        "missing": sum(isinstance(second, MissingScoreRecord) for *_, second in pairs),
        "count": agreement_figures.items,
        "prompts": agreement_figures.prompts,
        "ranked": agreement_figures.ranked,
        "pearson": [agreement_figures.pearson.value, agreement_figures.pearson.interval],
        "spearman": [agreement_figures.spearman.value, agreement_figures.spearman.interval],
        "mae": agreement_figures.mae,
        "bias": agreement_figures.bias,
        "within_one": agreement_figures.within_one,
    }


def _list_busiest_judges(scores: Iterable[ScoreRecord]) -> list[str]:
    """Who scored, the busiest first."""
    return [truncate_text(name) for name, _ in Counter(score.judge for score in scores).most_common(MAX_JUDGE_NAMES)]
