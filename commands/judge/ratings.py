"""Human ratings of finished replies: a CSV file with a line per rater, reply and axis.

    id,prompt_id,question,audio,axis,human
    a1,a,What is two plus two?,wav/a1.wav,semantic,5
    a1,a,What is two plus two?,wav/a1.wav,semantic,4
    a1,a,What is two plus two?,wav/a1.wav,acoustic,3.5

Several lines of one id and axis are several raters: their mean counts. Without ``axis`` a rating holds for
every axis that is judged. Optional: text, transcript, style, user_audio (clips between ``;``), and for the
local semantic rule match and answer.

Invariant: as for a manifest (``commands.judge.replies``); mistakes are listed as file:line:column: message.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from commands.judge.replies import (
    ClipChecker,
    FinishedReply,
    ReplyManifest,
    make_file_error,
    read_bounded_file,
    validate_reply,
)
from conf.judging import Axis
from judge.types import Scale
from speech.data.manifest import ManifestError, Problem

MAX_RATINGS_BYTES = 1 << 26
REQUIRED_COLUMNS = ("id", "prompt_id", "question", "audio", "human")
OPTIONAL_COLUMNS = ("axis", "text", "transcript", "style", "user_audio", "match", "answer")
RATING_PATTERN = re.compile(r"[+-]?\d{1,6}(\.\d{1,12})?")

FieldProblems = list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanRatings:
    """``of``: axis -> id -> what its raters gave. ``left_out``: axis that is not judged -> its lines."""

    replies: ReplyManifest
    of: Mapping[str, Mapping[str, tuple[float, ...]]]
    left_out: Mapping[str, int]


def read_ratings(path: Path, scale: Scale, judged: Sequence[str], max_seconds: float) -> HumanRatings:
    """The ratings of the axes ``judged``. ManifestError: every problem."""
    data = read_bounded_file(path, MAX_RATINGS_BYTES)
    reading = _RatingsReader(path, scale, judged, ClipChecker(path.parent, max_seconds))
    try:
        table = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        for line, cells in _number_records(table):
            reading.add_record(line, cells)
    except UnicodeDecodeError as error:
        raise make_file_error(path, f"must be UTF-8: {error.reason}") from error
    except csv.Error as error:
        reading.problems.append(Problem(path, table.line_num, "", f"must be CSV: {error}"))
    return reading.build_ratings(sha256(data).digest())


def _number_records(table: Any) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each begins on; a quoted cell may hold line breaks."""
    line = 1
    for cells in table:
        if cells:
            yield line, cells
        line = table.line_num + 1


class _RatingsReader:
    def __init__(self, path: Path, scale: Scale, judged: Sequence[str], clips: ClipChecker) -> None:
        self._path, self._scale, self._judged, self._clips = path, scale, judged, clips
        self._columns: list[str] = []
        self._items: dict[str, tuple[int, FinishedReply]] = {}
        self._given: dict[str, dict[str, tuple[float, ...]]] = {axis: {} for axis in judged}
        self._left_out: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def add_record(self, line: int, cells: list[str]) -> None:
        """One record; the first one names the columns."""
        field_problems: FieldProblems = []
        if not self._columns:
            self._columns = cells
            field_problems += _find_column_problems(cells)
            if field_problems:
                self.problems += [Problem(self._path, line, field, message) for field, message in field_problems]
                raise ManifestError(self.problems)
            return
        if len(cells) != len(self._columns):
            field_problems.append(("", f"must have {len(self._columns)} cells: got {len(cells)}"))
        else:
            self._add_rating(line, dict(zip(self._columns, cells, strict=True)), field_problems)
        self.problems += [Problem(self._path, line, field, message) for field, message in field_problems]

    def _add_rating(self, line: int, row: Mapping[str, str], field_problems: FieldProblems) -> None:
        content = _row_to_content(row)
        item = validate_reply(content, field_problems)
        field_problems += self._clips.problems(content)
        axes, human = self._axes(row.get("axis", ""), field_problems), self._number(row["human"], field_problems)
        if item is None or human is None:
            return
        first, known = self._items.setdefault(item.id, (line, item))
        field_problems += (
            (name, f"must be as on line {first}, which has the same id: {getattr(known, name)!r}")
            for name in FinishedReply.model_fields
            if getattr(known, name) != getattr(item, name)
        )
        for axis in axes:
            given = self._given[axis]
            given[item.id] = (*given.get(item.id, ()), human)

    def _axes(self, name: str, field_problems: FieldProblems) -> Sequence[str]:
        if not name or name in self._judged:
            return [name] if name else self._judged
        if name in get_args(Axis):
            self._left_out[name] += 1
        else:
            field_problems.append(("axis", f"must be one of {', '.join(get_args(Axis))}: got {name!r}"))
        return []

    def _number(self, text: str, field_problems: FieldProblems) -> float | None:
        lo, hi = self._scale.lo, self._scale.hi
        number = float(text) if RATING_PATTERN.fullmatch(text.strip()) else None
        if number is None or not lo <= number <= hi:
            field_problems.append(("human", f"must be a number from {lo:g} to {hi:g}: got {text[:40]!r}"))
            return None
        return number

    def build_ratings(self, data: bytes) -> HumanRatings:
        """Everything taken. ManifestError: its problems."""
        given = {axis: ratings for axis, ratings in self._given.items() if ratings}
        if not self.problems and not given:
            rule = f"has no rating of an axis that is judged ({', '.join(self._judged)})"
            self.problems.append(Problem(self._path, 0, "", rule))
        if self.problems:
            raise ManifestError(self.problems)
        rated = {name for ratings in given.values() for name in ratings}
        replies = ReplyManifest(
            items=tuple(item for name, (_, item) in self._items.items() if name in rated),
            folder=self._path.parent,
            max_seconds=self._clips.max_seconds,
            sha256=self._clips.hash_with_clips(data),
        )
        return HumanRatings(replies=replies, of=given, left_out=self._left_out)


def _find_column_problems(cells: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the first line."""
    for name, times in Counter(cells).items():
        if name not in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
            near = get_close_matches(name, (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS), n=1, cutoff=0.5)
            yield repr(name[:40]), "unknown column" + (f", did you mean {near[0]}?" if near else "")
        elif times > 1:
            yield name, "column must not appear twice"
    yield from ((name, "column is missing") for name in REQUIRED_COLUMNS if name not in cells)


def _row_to_content(row: Mapping[str, str]) -> dict[str, Any]:
    """A record as a line of a manifest would have it; an empty cell is one that is not there."""
    names = ("id", "prompt_id", "question", "audio", "text", "transcript", "style")
    content: dict[str, Any] = {name: row[name] for name in names if row.get(name)}
    if row.get("user_audio"):
        content["user_audio"] = [clip.strip() for clip in row["user_audio"].split(";")]
    if row.get("answer") or row.get("match"):
        cells = {"match": row.get("match"), "value": row.get("answer")}
        content["answer"] = {name: cell for name, cell in cells.items() if cell}
    return content
