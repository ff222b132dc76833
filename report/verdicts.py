"""Rollout records -> what became of the verdicts: by judge, over steps, by kind of failure, by length.

A verdict is what one axis of one reply got: a score or the reason why there is none. Invariant: a share of
nothing is None, never 0; a missing verdict counts as missing whatever its reason.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from report.calls import quantile
from report.curves import Column, Data, Panel, chart, histogram, short
from report.read import JudgedReply
from report.records import NoScore, Score

Replies = Sequence[JudgedReply]
ByStep = Mapping[int, Replies]

LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # seconds of audio between the bins
QUANTILES = {"p50": 0.5, "p95": 0.95}
MOST_TEXT = 160  # characters of a name or a reason
MOST_KINDS = 40  # rows
LATENCY = Panel("Latency per verdict", "seconds from a reply's arrival at a judge to its verdict", (), zero=True)


def everything(by_step: ByStep) -> list[JudgedReply]:
    """All replies in order of steps."""
    return [reply for step in sorted(by_step) for reply in by_step[step]]


def axes_of(replies: Iterable[JudgedReply]) -> list[str]:
    """The axes that were judged, by name."""
    return sorted({axis for reply in replies for axis in reply.scores})


def share(part: float, whole: float) -> float | None:
    """Part of whole; of nothing, None."""
    return part / whole if whole else None


def mean(values: Sequence[float]) -> float | None:
    """Of nothing, None."""
    return sum(values) / len(values) if values else None


def by_judge(replies: Replies, early: Replies, late: Replies) -> list[Data]:
    """A row per axis and judge, the busiest first; last in its axis the verdicts that are missing.

    ``noise``: mean of spread², in points² of the scale: what a noise-corrected gate subtracts.
    """
    rows: list[Data] = []
    for axis in axes_of(replies):
        sides = [_scores(side, axis) for side in (replies, early, late)]
        whole, start, end = sides
        asked = sum(axis in reply.scores for reply in replies)
        for judge in sorted(whole, key=lambda judge: (-len(whole[judge]), judge)):
            found = whole[judge]
            rows.append(
                {
                    "axis": axis,
                    "judge": cut(judge),
                    "count": len(found),
                    "share": share(len(found), asked),
                    "cached": share(sum(score.cached for score in found), len(found)),
                    "spread": mean([score.spread for score in found]),
                    "noise": mean([score.spread**2 for score in found]),
                    "early": mean([score.value for score in start.get(judge, ())]),
                    "late": mean([score.value for score in end.get(judge, ())]),
                }
            )
        absent = asked - sum(map(len, whole.values()))
        rows.append({"axis": axis, "judge": None, "count": absent, "share": share(absent, asked)})
    return rows


def _scores(replies: Replies, axis: str) -> dict[str, list[Score]]:
    found: dict[str, list[Score]] = defaultdict(list)
    for reply in replies:
        if isinstance(score := reply.scores.get(axis), Score):
            found[score.judge].append(score)
    return found


def latency(by_step: ByStep, steps: Sequence[float], table: Mapping[str, Column]) -> Data:
    """p50 and p95 of every step's replies; where no record tells, the mean that the metrics hold."""
    timed = {float(step): found for step, replies in sorted(by_step.items()) if (found := _latencies(replies))}
    if not timed:
        return chart(LATENCY, (("judge/latency_s", "mean", "c1"),), list(steps), table)
    quantiles = {name: [quantile(found, at) for found in timed.values()] for name, at in QUANTILES.items()}
    return chart(LATENCY, (("p95", "p95", "c2"), ("p50", "p50", "c1")), list(timed), quantiles)


def latencies(replies: Replies) -> Data:
    """p50 and p95 in seconds over all replies that tell; None without any."""
    found = _latencies(replies)
    return {name: quantile(found, at) for name, at in QUANTILES.items()}


def _latencies(replies: Replies) -> list[float]:
    return [reply.judge_latency_s for reply in replies if reply.judge_latency_s is not None]


def missing(replies: Replies) -> Data:
    """Kinds of missing verdicts, the commonest first: how many per axis, of all verdicts, and one reason."""
    axes = axes_of(replies)
    counts: Counter[tuple[str, str]] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    verdicts = [(axis, verdict) for reply in replies for axis, verdict in reply.scores.items()]
    for axis, verdict in verdicts:
        if isinstance(verdict, NoScore):
            counts[verdict.kind, axis] += 1
            reasons[verdict.kind][verdict.missing] += 1
    kinds = sorted(reasons, key=lambda kind: (-reasons[kind].total(), kind))
    rows = [
        {
            "kind": cut(kind),
            "counts": [counts[kind, axis] for axis in axes],
            "count": reasons[kind].total(),
            "share": share(reasons[kind].total(), len(verdicts)),
            "reason": cut(reasons[kind].most_common(1)[0][0]),
        }
        for kind in kinds[:MOST_KINDS]
    ]
    absent = counts.total()
    return {
        "axes": axes,
        "rows": rows,
        "count": absent,
        "of": len(verdicts),
        "share": share(absent, len(verdicts)),
    }


def cut(text: str) -> str:
    """At most MOST_TEXT characters: a reason may quote what an endpoint sent, whole."""
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def by_length(replies: Replies) -> Data:
    """Share of missing verdicts per axis over bins of the reply's seconds: failures are seldom chance.

    Bins at the ends that hold no reply are left out; one inside that holds none is a gap.
    """
    axes = axes_of(replies)
    bins: list[list[JudgedReply]] = [[] for _ in range(len(LENGTHS) + 1)]
    for reply in replies:
        if reply.seconds is not None and reply.scores:
            bins[bisect_right(LENGTHS, reply.seconds)].append(reply)
    filled = [place for place, members in enumerate(bins) if members]
    shown = range(filled[0], filled[-1] + 1) if filled else range(0)
    return {
        "labels": [_bin(place) for place in shown],
        "counts": [len(bins[place]) for place in shown],
        "axes": axes,
        "shares": [[_absent(bins[place], axis) for place in shown] for axis in axes],
        "unknown": sum(reply.seconds is None for reply in replies),
    }


def _bin(place: int) -> str:
    lower = f"{LENGTHS[place - 1]:g}" if place else "0"
    return f"{lower}–{LENGTHS[place]:g}" if place < len(LENGTHS) else f"{lower}+"


def _absent(replies: Replies, axis: str) -> float | None:
    found = [reply.scores[axis] for reply in replies if axis in reply.scores]
    part = share(sum(isinstance(verdict, NoScore) for verdict in found), len(found))
    return None if part is None else short(part)


def spreads(early: Replies, late: Replies) -> list[Data]:
    """Histogram of the judges' own spread per axis, early against late; of an axis without spread, none."""
    drawn = []
    for axis in axes_of((*early, *late)):
        sides = [
            [verdict.spread if isinstance(verdict, Score) else None for verdict in _of(side, axis)]
            for side in (early, late)
        ]
        if any(spread for side in sides for spread in side):
            drawn.append(histogram(axis, sides, (0.0, 0.0)))
    return [found for found in drawn if found is not None]


def _of(replies: Replies, axis: str) -> list[Score | NoScore]:
    return [reply.scores[axis] for reply in replies if axis in reply.scores]
