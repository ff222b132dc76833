"""RUN/judge_calls.jsonl in numbers: per judge how many calls, how long, how they failed, what they cost.

Invariant: the file is read as a stream and no text of it is kept but the names of judges, models and kinds,
cut to NAME characters; so a log of any size, or of one endless line, fits in memory. A line that is no call
is counted and said, the last one may be torn.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

LONGEST = 4_000_000  # bytes of a line: far more than any call with its texts and log-probs has
NAME = 200
MOST_JUDGES, MOST_KINDS = 40, 30  # that are told apart

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Call(BaseModel):
    """A line, as far as the page counts it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    judge: str
    model: str = ""
    seconds: Seconds
    kind: str | None = None  # of the failure; null: it was answered
    attempts: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    spent: Seconds | None = None


@dataclass(slots=True)
class Calls:
    """The calls of one judge to one model. ``attempts`` and ``spent`` cover the calls that tell them."""

    judge: str
    model: str
    seconds: "array[float]" = field(default_factory=lambda: array("d"))  # failed calls too
    failed: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    spent: float | None = None


@dataclass(frozen=True, slots=True)
class CallLog:
    """All calls, by judge and model in order of their first call. ``note``: what was left out."""

    by_judge: tuple[Calls, ...]
    note: str | None = None


def read_calls(path: Path) -> CallLog:
    """The log in numbers; of no file, no calls and no note: local judges call nobody."""
    if not path.is_file():
        return CallLog(())
    kind = TypeAdapter(_Call)
    found: dict[tuple[str, str], Calls] = {}
    malformed = crowded = 0
    torn = False  # whether the last line seen was bad; a bad one that is not the last is malformed
    with path.open("rb") as file:
        for line in _lines(file):
            malformed += torn
            torn = False
            try:
                call = kind.validate_json(line)
            except ValidationError:
                torn = True
                continue
            name = (call.judge[:NAME], call.model[:NAME])
            if name not in found and len(found) >= MOST_JUDGES:
                crowded += 1
                continue
            _count(found.setdefault(name, Calls(*name)), call)
    notes = (
        f"{malformed} lines of {path.name} are no calls and were left out" if malformed else "",
        f"the last line of {path.name} is torn and was left out" if torn else "",
        f"{crowded} calls of further judges are not shown" if crowded else "",
    )
    return CallLog(tuple(found.values()), "; ".join(filter(None, notes)) or None)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Line by line; of one longer than LONGEST only the beginning, which is no JSON."""
    while line := file.readline(LONGEST):
        yield line
        while len(line) == LONGEST and not line.endswith(b"\n"):
            line = file.readline(LONGEST)


def _count(calls: Calls, call: _Call) -> None:
    calls.seconds.append(call.seconds)
    if call.kind is not None:
        kind = call.kind[:NAME]
        calls.failed[kind if kind in calls.failed or len(calls.failed) < MOST_KINDS else "others"] += 1
    if call.attempts is not None:
        calls.attempts[min(call.attempts, 100)] += 1
    if call.spent is not None:
        calls.spent = (calls.spent or 0.0) + call.spent


def tabled(log: CallLog) -> list[dict[str, object]]:
    """A row per judge and model: how many, how long, how often again, how they failed, what they cost."""
    rows = []
    for calls in log.by_judge:
        told = calls.attempts.total()
        rows.append(
            {
                "judge": calls.judge,
                "model": calls.model,
                "count": len(calls.seconds),
                "p50": quantile(calls.seconds, 0.5),
                "p95": quantile(calls.seconds, 0.95),
                "attempts": sum(n * count for n, count in calls.attempts.items()) / told if told else None,
                "again": sum(count for n, count in calls.attempts.items() if n > 1) / told if told else None,
                "failed": calls.failed.most_common(),
                "spent": calls.spent,
            }
        )
    return rows


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which ``share`` of them lie, linear between neighbours; of nothing, None."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
