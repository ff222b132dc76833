"""Rollout records -> what became of the verdicts: by judge, over steps, by kind of failure, by length.

A verdict is what one axis of one reply got: a score or the reason why there is none. Invariant: a share of
nothing is None, never 0; a missing verdict counts as missing whatever its reason.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from report.read import JudgedReply
from report.records import MissingScoreRecord, ScoreRecord
from report.run.calls import compute_quantile
from report.run.curves import ChartPanel, MetricColumn, PageData, build_chart, build_histogram, round_for_page

JudgedReplies = Sequence[JudgedReply]
JudgedRepliesByStep = Mapping[int, JudgedReplies]

LENGTH_BIN_EDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # seconds of audio between the bins
LATENCY_QUANTILES = {"p50": 0.5, "p95": 0.95}
MAX_CELL_CHARS = 160  # characters of a name or a reason
MAX_KIND_ROWS = 40  # rows
LATENCY_PANEL = ChartPanel(
    "Latency per verdict", "seconds from a reply's arrival at a judge to its verdict", (), zero=True
)


def list_all_replies(by_step: JudgedRepliesByStep) -> list[JudgedReply]:
    """All replies in order of steps."""
    return [reply for step in sorted(by_step) for reply in by_step[step]]


def list_axes(replies: Iterable[JudgedReply]) -> list[str]:
    """The axes that were judged, by name."""
    return sorted({axis for reply in replies for axis in reply.scores})


def divide_or_none(part: float, whole: float) -> float | None:
    """Part of whole; of nothing, None."""
    return part / whole if whole else None


def average_or_none(values: Sequence[float]) -> float | None:
    """Of nothing, None."""
    return sum(values) / len(values) if values else None


def tabulate_by_judge(replies: JudgedReplies, early: JudgedReplies, late: JudgedReplies) -> list[PageData]:
    """A row per axis and judge, the busiest first; last in its axis the verdicts that are missing.

    ``noise``: mean of spread², in points² of the scale: what a noise-corrected gate subtracts.
    """
    rows: list[PageData] = []
    for axis in list_axes(replies):
        sides = [_group_scores_by_judge(side, axis) for side in (replies, early, late)]
        whole, start, end = sides
        judged_count = sum(axis in reply.scores for reply in replies)
        for judge in sorted(whole, key=lambda judge: (-len(whole[judge]), judge)):
            judge_scores = whole[judge]
            rows.append(
                {
                    "axis": axis,
                    "judge": truncate_text(judge),
                    "count": len(judge_scores),
                    "share": divide_or_none(len(judge_scores), judged_count),
                    "cached": divide_or_none(sum(score.cached for score in judge_scores), len(judge_scores)),
                    "spread": average_or_none([score.spread for score in judge_scores]),
                    "noise": average_or_none([score.spread**2 for score in judge_scores]),
                    "early": average_or_none([score.value for score in start.get(judge, ())]),
                    "late": average_or_none([score.value for score in end.get(judge, ())]),
                }
            )
        absent = judged_count - sum(map(len, whole.values()))
        rows.append({"axis": axis, "judge": None, "count": absent, "share": divide_or_none(absent, judged_count)})
    return rows


def _group_scores_by_judge(replies: JudgedReplies, axis: str) -> dict[str, list[ScoreRecord]]:
    scores_by_judge: dict[str, list[ScoreRecord]] = defaultdict(list)
    for reply in replies:
        if isinstance(score := reply.scores.get(axis), ScoreRecord):
            scores_by_judge[score.judge].append(score)
    return scores_by_judge


def chart_latency(by_step: JudgedRepliesByStep, steps: Sequence[float], table: Mapping[str, MetricColumn]) -> PageData:
    """p50 and p95 of every step's replies; where no record tells, the mean that the metrics hold."""
    timed = {
        float(step): step_latencies
        for step, replies in sorted(by_step.items())
        if (step_latencies := _list_latencies(replies))
    }
    if not timed:
        return build_chart(LATENCY_PANEL, (("judge/latency_s", "mean", "c1"),), list(steps), table)
    quantiles = {
        name: [compute_quantile(step_latencies, at) for step_latencies in timed.values()]
        for name, at in LATENCY_QUANTILES.items()
    }
    return build_chart(LATENCY_PANEL, (("p95", "p95", "c2"), ("p50", "p50", "c1")), list(timed), quantiles)


def summarise_latencies(replies: JudgedReplies) -> PageData:
    """p50 and p95 in seconds over all replies that tell; None without any."""
    known_latencies = _list_latencies(replies)
    return {name: compute_quantile(known_latencies, at) for name, at in LATENCY_QUANTILES.items()}


def _list_latencies(replies: JudgedReplies) -> list[float]:
    return [reply.judge_latency_s for reply in replies if reply.judge_latency_s is not None]


def tabulate_missing(replies: JudgedReplies) -> PageData:
    """Kinds of missing verdicts, the commonest first: how many per axis, of all verdicts, and one reason."""
    axes = list_axes(replies)
    counts: Counter[tuple[str, str]] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    verdicts = [(axis, verdict) for reply in replies for axis, verdict in reply.scores.items()]
    for axis, verdict in verdicts:
        if isinstance(verdict, MissingScoreRecord):
            counts[verdict.kind, axis] += 1
            reasons[verdict.kind][verdict.missing] += 1
    kinds = sorted(reasons, key=lambda kind: (-reasons[kind].total(), kind))
    rows = [
        {
            "kind": truncate_text(kind),
            "counts": [counts[kind, axis] for axis in axes],
            "count": reasons[kind].total(),
            "share": divide_or_none(reasons[kind].total(), len(verdicts)),
            "reason": truncate_text(reasons[kind].most_common(1)[0][0]),
        }
        for kind in kinds[:MAX_KIND_ROWS]
    ]
    absent = counts.total()
    return {
        "axes": axes,
        "rows": rows,
        "count": absent,
        "of": len(verdicts),
        "share": divide_or_none(absent, len(verdicts)),
    }


def truncate_text(text: str) -> str:
    """At most ``MAX_CELL_CHARS`` characters: a reason may quote what an endpoint sent, whole."""
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"


def tabulate_by_length(replies: JudgedReplies) -> PageData:
    """Share of missing verdicts per axis over bins of the reply's seconds: failures are seldom chance.

    Bins at the ends that hold no reply are left out; one inside that holds none is a gap.
    """
    axes = list_axes(replies)
    bins: list[list[JudgedReply]] = [[] for _ in range(len(LENGTH_BIN_EDGES) + 1)]
    for reply in replies:
        if reply.seconds is not None and reply.scores:
            bins[bisect_right(LENGTH_BIN_EDGES, reply.seconds)].append(reply)
    filled = [place for place, members in enumerate(bins) if members]
    shown = range(filled[0], filled[-1] + 1) if filled else range(0)
    return {
        "labels": [_format_bin(place) for place in shown],
        "counts": [len(bins[place]) for place in shown],
        "axes": axes,
        "shares": [[_share_missing(bins[place], axis) for place in shown] for axis in axes],
        "unknown": sum(reply.seconds is None for reply in replies),
    }


def _format_bin(place: int) -> str:
    lower = f"{LENGTH_BIN_EDGES[place - 1]:g}" if place else "0"
    return f"{lower}–{LENGTH_BIN_EDGES[place]:g}" if place < len(LENGTH_BIN_EDGES) else f"{lower}+"


def _share_missing(replies: JudgedReplies, axis: str) -> float | None:
    axis_verdicts = [reply.scores[axis] for reply in replies if axis in reply.scores]
    part = divide_or_none(
        sum(isinstance(verdict, MissingScoreRecord) for verdict in axis_verdicts), len(axis_verdicts)
    )
    return None if part is None else round_for_page(part)


def build_spread_histograms(early: JudgedReplies, late: JudgedReplies) -> list[PageData]:
    """Histogram of the judges' own spread per axis, early against late; of an axis without spread, none."""
    drawn = []
    for axis in list_axes((*early, *late)):
        sides = [
            [
                verdict.spread if isinstance(verdict, ScoreRecord) else None
                for verdict in _get_axis_verdicts(side, axis)
            ]
            for side in (early, late)
        ]
        if any(spread for side in sides for spread in side):
            drawn.append(build_histogram(axis, sides, (0.0, 0.0)))
    return [axis_histogram for axis_histogram in drawn if axis_histogram is not None]


def _get_axis_verdicts(replies: JudgedReplies, axis: str) -> list[ScoreRecord | MissingScoreRecord]:
    return [reply.scores[axis] for reply in replies if axis in reply.scores]
