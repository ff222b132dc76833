"""Verdicts on finished replies, a line of JSON each, written as they come; and the table made of them.

Invariant: what is in the file (store/journal.py) was judged by the judge and from the manifest that its
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

from commands.judge.replies import FinishedReply
from conf.judging import Axis, JudgeConfig
from judge.rules.voice import SpeechNorms
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict
from store.files import replace_atomically
from store.journal import Journal, JournalEntry, JournalLine

ALL_AXES: tuple[Axis, ...] = get_args(Axis)
RUNTIME_SETTINGS = {"workers", "deadline_s", "max_missing", "second"}  # settings that change no verdict
RUNTIME_API_SETTINGS = {
    *("base_url", "key_env", "deadline_s", "outage_s", "concurrency", "requests_per_minute"),
    *("audio_seconds_per_minute", "spend_cap", "prompt_price", "completion_price", "cache"),
    *("canary_every", "canary_stop", "compare", "max_tokens_field", "also_named"),
}


class LedgerHeader(JournalLine):
    """The first line. ``manifest``, ``judge``: hashes; ``mode``: how the endpoint answers, if any."""

    format: Literal[1] = 1
    manifest: str
    judge: str
    mode: str | None


class LedgerEntry(JournalEntry):
    """What was found about one item; a line."""

    reward: ScoredVerdict | MissingVerdict
    axes: dict[str, ScoredVerdict | MissingVerdict]
    transcript: str | None
    seconds: float | None = Field(allow_inf_nan=False)
    latency_s: float | None = Field(allow_inf_nan=False)

    @model_validator(mode="after")
    def _scores_are_finite(self) -> Self:
        for verdict in (self.reward, *self.axes.values()):
            if isinstance(verdict, ScoredVerdict) and not (isfinite(verdict.value) and isfinite(verdict.spread)):
                raise ValueError(f"scores must be finite: got {verdict.value} +- {verdict.spread}")
        return self

    @property
    def lasts(self) -> bool:
        """False: a judge failed in a way that another call may mend."""
        verdicts = (self.reward, *self.axes.values())
        return not any(isinstance(verdict, MissingVerdict) and verdict.retryable for verdict in verdicts)


def make_ledger_entry(item: FinishedReply, judged: ReplyJudgement) -> LedgerEntry:
    """The line of a verdict."""
    return LedgerEntry(
        id=item.id,
        reward=judged.reward,
        axes=dict(judged.axes),
        transcript=judged.transcript,
        seconds=judged.figures.get("seconds"),
        latency_s=judged.figures.get("latency_s"),
    )


class VerdictLedger(Journal[LedgerHeader, LedgerEntry]):
    """The file, open and locked.

    ValueError: somebody else has it, it cannot be written, or a line of it is not ours.

    Example:
        with VerdictLedger(path) as ledger:
            ledger.start_or_resume(header)
            ledger.append_entry(make_ledger_entry(item, judged))
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, LedgerHeader, LedgerEntry, by="wavgate judge score")

    def start_or_resume(self, header: LedgerHeader) -> None:
        """Start the file, or go on with it. ValueError: it is about something else."""
        existing = self.ensure_header(header)
        for name, what in (("manifest", "other replies"), ("judge", "other judge settings")):
            if getattr(existing, name) != getattr(header, name):
                raise ValueError(
                    f"{self.path}: holds verdicts on {what}: remove it, or write to another file with --to"
                )
        if existing.mode != header.mode:
            rule = f"holds verdicts of a judge that answered by {existing.mode}, this one by {header.mode}"
            raise ValueError(f"{self.path}: {rule}: remove it, or write to another file with --to")

    def open_items(self, items: Sequence[FinishedReply]) -> list[FinishedReply]:
        """Those without a lasting verdict."""
        return [item for item in items if item.id not in self.entries or not self.entries[item.id].lasts]


def hash_judge_settings(config: JudgeConfig, voice: SpeechNorms | None) -> str:
    """One hash over every setting that a verdict depends on; of files that it names, their content.

    ``voice``: the norms that the acoustic rule uses; None: there are none.
    """
    settings = config.model_dump(exclude=dict.fromkeys(RUNTIME_SETTINGS, True) | {"api": RUNTIME_API_SETTINGS})
    text = json.dumps([_hash_named_files(settings), repr(voice)], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


def _hash_named_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _hash_named_files(nested) for name, nested in value.items()}
    if isinstance(value, list | tuple):
        return [_hash_named_files(nested) for nested in value]
    return sha256(value.read_bytes()).hexdigest() if isinstance(value, Path) and value.is_file() else value


def build_table_rows(items: Sequence[FinishedReply], entries: Mapping[str, LedgerEntry]) -> list[dict[str, Any]]:
    """One row per item, in order: its reward or why there is none, then axis by axis."""
    table: list[dict[str, Any]] = []
    for item in items:
        item_entry = entries[item.id]
        row: dict[str, Any] = {"id": item.id, "prompt_id": item.prompt, **_reward_columns(item_entry.reward)}
        for axis in ALL_AXES:
            row |= _axis_columns(axis, item_entry.axes.get(axis))
        row |= {"transcript": item_entry.transcript, "seconds": item_entry.seconds, "latency_s": item_entry.latency_s}
        table.append(row)
    return table


def _reward_columns(verdict: ScoredVerdict | MissingVerdict) -> dict[str, Any]:
    if isinstance(verdict, MissingVerdict):
        return {"reward": None, "missing": verdict.reason, "missing_kind": verdict.kind}
    return {"reward": verdict.value, "missing": None, "missing_kind": None}


def _axis_columns(axis: str, verdict: ScoredVerdict | MissingVerdict | None) -> dict[str, Any]:
    """All columns None: the axis was not judged."""
    row: dict[str, Any] = dict.fromkeys(f"{axis}_{name}" for name in ("value", "spread", "judge", "why", "missing"))
    if isinstance(verdict, MissingVerdict):
        row |= {f"{axis}_judge": verdict.judge, f"{axis}_missing": f"{verdict.kind}: {verdict.reason}"}
    elif verdict is not None:
        row |= {f"{axis}_{name}": getattr(verdict, name) for name in ("value", "spread", "judge", "why")}
    return row


def list_table_columns() -> dict[str, type]:
    """Name -> type of the table's columns, in order."""
    axes = {f"{axis}_{n}": t for axis in ALL_AXES for n, t in _AXIS_COLUMN_TYPES.items()}
    first = {"id": str, "prompt_id": str, "reward": float, "missing": str, "missing_kind": str}
    return {**first, **axes, "transcript": str, "seconds": float, "latency_s": float}


_AXIS_COLUMN_TYPES: dict[str, type] = {"value": float, "spread": float, "judge": str, "why": str, "missing": str}


def write_verdict_table(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Parquet, whole or not at all. OSError: not writable; ImportError: no pyarrow."""
    import pyarrow
    import pyarrow.parquet

    kinds = {str: pyarrow.string(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in list_table_columns().items()])
    with replace_atomically(path) as unfinished:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(table), schema=schema), unfinished)


def count_missing_kinds(entries: Iterable[LedgerEntry]) -> Counter[str]:
    """Kind -> how many items have no reward for it."""
    return Counter(item_entry.reward.kind for item_entry in entries if isinstance(item_entry.reward, MissingVerdict))
