"""RUN/judge_calls.jsonl in numbers: per judge how many calls, how long, how they failed, what they cost.

Invariant: the file is read as a stream and no text of it is kept but the names of judges, models and kinds,
cut to ``MAX_NAME_CHARS``; so a log of any size, or of one endless line, fits in memory. A line that is no call is
counted and said, the last one may be torn.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MAX_CALL_LINE_BYTES = 4_000_000  # bytes of a line: far more than any call with its texts and log-probs has
MAX_NAME_CHARS = 200
MAX_CALL_ROWS, MAX_FAILURE_KINDS = 40, 30  # that are told apart

NonNegativeAmount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _CallLine(BaseModel):
    """A line, as far as the page counts it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    judge: str
    model: str = ""
    seconds: NonNegativeAmount
    kind: str | None = None  # of the failure; null: it was answered
    attempts: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    spent: NonNegativeAmount | None = None


@dataclass(slots=True)
class JudgeCalls:
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

    by_judge: tuple[JudgeCalls, ...]
    note: str | None = None


def read_call_log(path: Path) -> CallLog:
    """The log in numbers; of no file, no calls and no note: local judges call nobody."""
    if not path.is_file():
        return CallLog(())
    kind = TypeAdapter(_CallLine)
    calls_by_model: dict[tuple[str, str], JudgeCalls] = {}
    malformed = crowded = 0
    torn = False  # whether the last line seen was bad; a bad one that is not the last is malformed
    with path.open("rb") as file:
        for line in _iterate_lines(file):
            malformed += torn
            torn = False
            try:
                call = kind.validate_json(line)
            except ValidationError:
                torn = True
                continue
            name = (call.judge[:MAX_NAME_CHARS], call.model[:MAX_NAME_CHARS])
            if name not in calls_by_model and len(calls_by_model) >= MAX_CALL_ROWS:
                crowded += 1
                continue
            _count_call(calls_by_model.setdefault(name, JudgeCalls(*name)), call)
    notes = (
        f"{malformed} lines of {path.name} are no calls and were left out" if malformed else "",
        f"the last line of {path.name} is torn and was left out" if torn else "",
        f"{crowded} calls of further judges are not shown" if crowded else "",
    )
    return CallLog(tuple(calls_by_model.values()), "; ".join(filter(None, notes)) or None)


def _iterate_lines(file: BinaryIO) -> Iterator[bytes]:
    """Line by line; of one longer than ``MAX_CALL_LINE_BYTES`` only the beginning, which is no JSON."""
    while line := file.readline(MAX_CALL_LINE_BYTES):
        yield line
        while len(line) == MAX_CALL_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_CALL_LINE_BYTES)


def _count_call(calls: JudgeCalls, call: _CallLine) -> None:
    calls.seconds.append(call.seconds)
    if call.kind is not None:
        kind = call.kind[:MAX_NAME_CHARS]
        calls.failed[kind if kind in calls.failed or len(calls.failed) < MAX_FAILURE_KINDS else "others"] += 1
    if call.attempts is not None:
        calls.attempts[min(call.attempts, 100)] += 1
    if call.spent is not None:
        calls.spent = (calls.spent or 0.0) + call.spent


def tabulate_calls(log: CallLog) -> list[dict[str, object]]:
    """A row per judge and model: how many, how long, how often again, how they failed, what they cost."""
    rows = []
    for calls in log.by_judge:
        calls_with_attempts = calls.attempts.total()
        rows.append(
            {
                "judge": calls.judge,
                "model": calls.model,
                "count": len(calls.seconds),
                "p50": compute_quantile(calls.seconds, 0.5),
                "p95": compute_quantile(calls.seconds, 0.95),
                "attempts": sum(n * count for n, count in calls.attempts.items()) / calls_with_attempts
                if calls_with_attempts
                else None,
                "again": sum(count for n, count in calls.attempts.items() if n > 1) / calls_with_attempts
                if calls_with_attempts
                else None,
                "failed": calls.failed.most_common(),
                "spent": calls.spent,
            }
        )
    return rows


def compute_quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which ``share`` of them lie, linear between neighbours; of nothing, None."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
