"""Verdicts on finished replies, a line of JSON each, written as they come; and the table made of them.

Invariant: what is in the file (speech/journal.py) was judged by the judge and from the manifest that its
first line names, and stays. An item that is in it with a lasting verdict is never asked about again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from conf.judging import Axis, JudgeConfig
from judge.replies import Item
from judge.types import Judged, Missing, Scored
from judge.voice import SpeechNorms
from speech.files import replacing
from speech.journal import Journal, Line, Named

AXES: tuple[Axis, ...] = get_args(Axis)
HOW = {"workers", "deadline_s", "max_missing", "second"}  # settings that change no verdict
HOW_OF_API = {
    *("base_url", "key_env", "deadline_s", "outage_s", "concurrency", "requests_per_minute"),
    *("audio_seconds_per_minute", "spend_cap", "prompt_price", "completion_price", "cache"),
    *("canary_every", "canary_stop", "compare", "max_tokens_field", "also_named"),
}


class Header(Line):
    """The first line. ``manifest``, ``judge``: hashes; ``mode``: how the endpoint answers, if any."""

    format: Literal[1] = 1
    manifest: str
    judge: str
    mode: str | None


class Entry(Named):
    """What was found about one item; a line."""

    reward: Scored | Missing
    axes: dict[str, Scored | Missing]
    transcript: str | None
    seconds: float | None = Field(allow_inf_nan=False)
    latency_s: float | None = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _finite(self) -> Self:
        for verdict in (self.reward, *self.axes.values()):
            if isinstance(verdict, Scored) and not (isfinite(verdict.value) and isfinite(verdict.spread)):
                raise ValueError(f"scores must be finite: got {verdict.value} +- {verdict.spread}")
        return self

    @property
    def lasts(self) -> bool:
        """False: a judge failed in a way that another call may mend."""
        verdicts = (self.reward, *self.axes.values())
        return not any(isinstance(verdict, Missing) and verdict.retryable for verdict in verdicts)


def entry(item: Item, judged: Judged) -> Entry:
    """The line of a verdict."""
    return Entry(
        id=item.id,
        reward=judged.reward,
        axes=dict(judged.axes),
        transcript=judged.transcript,
        seconds=judged.figures.get("seconds"),
        latency_s=judged.figures.get("latency_s"),
    )


class Ledger(Journal[Header, Entry]):
    """The file, open and locked.

    ValueError: somebody else has it, it cannot be written, or a line of it is not ours.

    Example:
        with Ledger(path) as ledger:
            ledger.belongs_to(header)
            ledger.add(entry(item, judged))
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, Header, Entry, by="wavgate judge score")

    def belongs_to(self, header: Header) -> None:
        """Start the file, or go on with it. ValueError: it is about something else."""
        held = self.begin(header)
        for name, what in (("manifest", "other replies"), ("judge", "other judge settings")):
            if getattr(held, name) != getattr(header, name):
                raise ValueError(
                    f"{self.path}: holds verdicts on {what}: remove it, or write to another file with --to"
                )
        if held.mode != header.mode:
            rule = f"holds verdicts of a judge that answered by {held.mode}, this one by {header.mode}"
            raise ValueError(f"{self.path}: {rule}: remove it, or write to another file with --to")

    def open_items(self, items: Sequence[Item]) -> list[Item]:
        """Those without a lasting verdict."""
        return [item for item in items if item.id not in self.entries or not self.entries[item.id].lasts]


def settings_hash(config: JudgeConfig, voice: SpeechNorms | None) -> str:
    """One hash over every setting that a verdict depends on; of files that it names, their content.

    ``voice``: the norms that the acoustic rule uses; None: there are none.
    """
    kept = config.model_dump(exclude=dict.fromkeys(HOW, True) | {"api": HOW_OF_API})
    text = json.dumps([_content(kept), repr(voice)], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


def _content(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _content(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_content(one) for one in value]
    return sha256(value.read_bytes()).hexdigest() if isinstance(value, Path) and value.is_file() else value


def rows(items: Sequence[Item], entries: Mapping[str, Entry]) -> list[dict[str, Any]]:
    """One row per item, in order: its reward or why there is none, then axis by axis."""
    found: list[dict[str, Any]] = []
    for item in items:
        one = entries[item.id]
        row: dict[str, Any] = {"id": item.id, "prompt_id": item.prompt, **_reward(one.reward)}
        for axis in AXES:
            row |= _axis(axis, one.axes.get(axis))
        row |= {"transcript": one.transcript, "seconds": one.seconds, "latency_s": one.latency_s}
        found.append(row)
    return found


def _reward(verdict: Scored | Missing) -> dict[str, Any]:
    if isinstance(verdict, Missing):
        return {"reward": None, "missing": verdict.reason, "missing_kind": verdict.kind}
    return {"reward": verdict.value, "missing": None, "missing_kind": None}


def _axis(axis: str, verdict: Scored | Missing | None) -> dict[str, Any]:
    """All columns None: the axis was not judged."""
    row: dict[str, Any] = dict.fromkeys(f"{axis}_{name}" for name in ("value", "spread", "judge", "why", "missing"))
    if isinstance(verdict, Missing):
        row |= {f"{axis}_judge": verdict.judge, f"{axis}_missing": f"{verdict.kind}: {verdict.reason}"}
    elif verdict is not None:
        row |= {f"{axis}_{name}": getattr(verdict, name) for name in ("value", "spread", "judge", "why")}
    return row


def columns() -> dict[str, type]:
    """Name -> type of the table's columns, in order."""
    axes = {f"{axis}_{n}": t for axis in AXES for n, t in _OF_AXIS.items()}
    first = {"id": str, "prompt_id": str, "reward": float, "missing": str, "missing_kind": str}
    return {**first, **axes, "transcript": str, "seconds": float, "latency_s": float}


_OF_AXIS: dict[str, type] = {"value": float, "spread": float, "judge": str, "why": str, "missing": str}


def write_table(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Parquet, whole or not at all. OSError: not writable; ImportError: no pyarrow."""
    import pyarrow
    import pyarrow.parquet

    kinds = {str: pyarrow.string(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns().items()])
    with replacing(path) as unfinished:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table), schema=schema), unfinished)


def missing_kinds(entries: Iterable[Entry]) -> Counter[str]:
    """Kind -> how many items have no reward for it."""
    return Counter(one.reward.kind for one in entries if isinstance(one.reward, Missing))
