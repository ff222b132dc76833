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

from report import read, verdicts
from report.calls import read_calls, tabled
from report.choose import spaced
from report.curves import MOST_POINTS, Column, Data, Panel, chart, columns, span
from report.records import Canary, NoScore, Score
from report.verdicts import ByStep, Replies, cut, everything, share

MOST_STEPS = 150  # whose records are read
MOST_KINDS = 5  # that a curve tells apart
MOST_CHECKS = 60  # of one canary that are shown
MOST_ROWS = 80  # of a table
MOST_NAMES = 3  # of judges in one cell
LEVELS = 4  # steps of a scale: 1 to 5 has points of 1
FATES = {"paid": 0, "unknown": 1, "passed": 2}  # worst first
KIND = "judge/missing_"

Rows = Sequence[Mapping[str, float | None]]


def _one(title: str, hint: str, metric: str, label: str, look: str) -> Panel:
    return Panel(title, hint, ((metric, label, look),), zero=True)


PANELS = (
    _one("From the cache", "share of a step's replies that cost no call", "judge/cached", "cached", "c3"),
    _one(
        "Requests",
        "sent to the endpoint since the start, retries included",
        "judge/requests",
        "requests",
        "c1",
    ),
    _one("Spend", "since the start, in the currency of the prices", "judge/spent", "spent", "c2"),
    _one(
        "Circuit breaker",
        "seconds since the start for which it held all calls back",
        "judge/breaker_open_s",
        "open",
        "c5",
    ),
    Panel(
        "Calls under way",
        "at the end of a step",
        (("judge/in_flight", "in flight", "c1"), ("judge/waiting", "waiting", "c0")),
        zero=True,
    ),
)
SHARES = {"Missing by kind", "From the cache"}  # drawn in percent


def drawn(rows: Rows) -> set[str]:
    """The metrics that this section draws."""
    kinds = {name for row in rows for name in row if name.startswith(KIND)}
    return kinds | {"judge/missing", "judge/latency_s"} | {name for panel in PANELS for name, *_ in panel.series}


def judges(run_dir: Path, rows: Rows, scale: tuple[float, float] | None) -> Data:
    """The section. ValueError: a malformed line of the records or of canaries.jsonl, as file:line."""
    files = read.rollout_files(run_dir)
    steps = spaced(list(files), MOST_STEPS)
    found = {step: read.verdicts(files[step]) for step in steps}
    by_step = {step: lines.rows for step, lines in found.items()}
    replies = everything(by_step)
    quarter = max(1, len(steps) // 4)
    spans = steps[:quarter], steps[quarter:][-quarter:]
    early, late = (everything({step: by_step[step] for step in side}) for side in spans)
    calls = read_calls(run_dir / "judge_calls.jsonl")
    birds = read.lines(run_dir / "canaries.jsonl", TypeAdapter(Canary))
    tables = {
        "verdicts": verdicts.by_judge(replies, early, late),
        "calls": tabled(calls),
        "canaries": canaries(birds.rows),
        "second": second(replies, (scale[1] - scale[0]) / LEVELS if scale else 1.0),
    }
    some = f"verdicts are read from {len(steps)} of {len(files)} recorded steps, evenly spaced"
    notes = (
        some if len(steps) < len(files) else None,
        *(f"{name}: the first {MOST_ROWS} of {len(t)} rows" for name, t in tables.items() if len(t) > MOST_ROWS),
        *(lines.note for lines in found.values()),
        calls.note,
        birds.note if (run_dir / "canaries.jsonl").is_file() else None,
    )
    return {
        "notes": [note for note in notes if note],
        "facts": facts(replies, rows),
        "spans": [span(steps) for steps in spans],
        **{name: whole[:MOST_ROWS] for name, whole in tables.items()},
        "panels": panels(by_step, rows),
        "missing": verdicts.missing(replies),
        "lengths": verdicts.by_length(replies),
        "spreads": verdicts.spreads(early, late),
    }


def facts(replies: Replies, rows: Rows) -> Data:
    """The run at a glance: shares of its verdicts, and the last values of what the limiter counts."""
    found = [verdict for reply in replies for verdict in reply.scores.values()]
    scores = [verdict for verdict in found if isinstance(verdict, Score)]
    counted = {
        name: next((row[f"judge/{name}"] for row in reversed(rows) if f"judge/{name}" in row), None)
        for name in ("requests", "spent", "breaker_open_s")
    }
    return {
        "verdicts": len(found),
        "missing": share(len(found) - len(scores), len(found)),
        "cached": share(sum(score.cached for score in scores), len(scores)),
        **verdicts.latencies(replies),
        **counted,
    }


def panels(by_step: ByStep, rows: Rows) -> list[Data]:
    """Curves over steps; of what the run did not log there is none."""
    shown = spaced(rows, MOST_POINTS)
    steps, table = columns(shown)
    found = [verdicts.latency(by_step, steps, table), missing_by_kind(shown)]
    found += [chart(panel, panel.series, steps, table) for panel in PANELS]
    return [{**panel, "share": panel["title"] in SHARES} for panel in found if panel["series"]]


def missing_by_kind(rows: Rows) -> Data:
    """Share of a step's replies without a reward, stacked by kind; rare kinds are one, ``others``.

    A kind that a step does not name did not occur in it. A run that does not log kinds has the line of
    all alone.
    """
    sums: Counter[str] = Counter()
    for row in rows:
        sums.update({name: value for name, value in row.items() if name.startswith(KIND) and value})
    ordered = [name for name, _ in sums.most_common()]
    common, rare = ordered[:MOST_KINDS], ordered[MOST_KINDS:]
    table: dict[str, Column] = {"judge/missing": [row.get("judge/missing") for row in rows]}
    table |= {name: [_kinds(row, [name]) for row in rows] for name in common}
    table |= {"others": [_kinds(row, rare) for row in rows]} if rare else {}
    series = [(name, name.removeprefix(KIND), f"c{n}") for n, name in enumerate(common, start=1)]
    series += [("others", "others", "c0")] if rare else []
    panel = Panel(
        "Missing by kind",
        "share of a step's replies; the line is all kinds",
        (),
        "stack",
        True,
    )
    steps, _ = columns(rows)
    return chart(panel, (*series, ("judge/missing", "all", "cl")), steps, table)


def _kinds(row: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    """The share of these kinds; None when the step does not tell how many are missing."""
    return None if row.get("judge/missing") is None else sum(row.get(name) or 0.0 for name in names)


def canaries(lines: Sequence[Canary]) -> list[Data]:
    """A row per axis and canary with the fates of all its checks; whatever was paid comes first.

    A check that was made again after a resume counts once, as it came out the last time.
    """
    checks = {(line.axis, line.name, line.step): line for line in lines}
    histories: dict[tuple[str, str], list[Canary]] = {}
    for axis, name, step in sorted(checks):
        histories.setdefault((axis, name), []).append(checks[axis, name, step])
    rows = [_canary(history) for history in histories.values()]
    return sorted(rows, key=lambda row: (FATES[row["fate"]], not row["paid"], row["axis"], row["name"]))


def _canary(history: Sequence[Canary]) -> dict[str, Any]:
    last = history[-1]
    shown = history[-MOST_CHECKS:]
    return {
        "axis": last.axis,
        "name": cut(last.name),
        "fate": last.fate,
        "value": last.value,
        "most": last.most,
        "detail": cut(last.detail),
        "paid": sum(check.fate == "paid" for check in history),
        "checks": len(history),
        "steps": [check.step for check in shown],
        "fates": [check.fate for check in shown],
        "values": [check.value for check in shown],
    }


def second(replies: Replies, point: float) -> list[Data]:
    """Per axis how far the second judge agrees with the first, over the replies that both scored."""
    axes = sorted({axis for reply in replies for axis in reply.second})
    return [_second(axis, [reply for reply in replies if axis in reply.second], point) for axis in axes]


def _second(axis: str, asked: Replies, point: float) -> Data:
    # Here, because it brings scipy along, which takes seconds that no other page needs.
    from judge.agreement import Item, agreement

    pairs = [(reply.prompt_id, reply.scores.get(axis), reply.second[axis]) for reply in asked]
    both = [(p, ours, theirs) for p, ours, theirs in pairs if isinstance(ours, Score) and isinstance(theirs, Score)]
    found = agreement([Item(prompt_id=p, judge=ours.value, human=theirs.value) for p, ours, theirs in both], point)
    return {
        "axis": axis,
        "judges": [_names(ours for _, ours, _ in both), _names(theirs for _, _, theirs in both)],
        "asked": len(asked),
        "missing": sum(isinstance(theirs, NoScore) for *_, theirs in pairs),
        "count": found.items,
        "prompts": found.prompts,
        "ranked": found.ranked,
        "pearson": [found.pearson.value, found.pearson.interval],
        "spearman": [found.spearman.value, found.spearman.interval],
        "mae": found.mae,
        "bias": found.bias,
        "within_one": found.within_one,
    }


def _names(scores: Iterable[Score]) -> list[str]:
    """Who scored, the busiest first."""
    return [cut(name) for name, _ in Counter(score.judge for score in scores).most_common(MOST_NAMES)]
