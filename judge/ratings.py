"""Human ratings of finished replies: a CSV file with a line per rater, reply and axis.

    id,prompt_id,question,audio,axis,human
    a1,a,What is two plus two?,wav/a1.wav,semantic,5
    a1,a,What is two plus two?,wav/a1.wav,semantic,4
    a1,a,What is two plus two?,wav/a1.wav,acoustic,3.5

Several lines of one id and axis are several raters: their mean counts. Without ``axis`` a rating holds for
every axis that is judged. Optional: text, transcript, style, user_audio (clips between ``;``), and for the
local semantic rule match and answer.

Invariant: as for a manifest (``judge.replies``); mistakes are listed as file:line:column: message.
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

from conf.judging import Axis
from judge.replies import Clips, Item, Replies, checked, contents, unusable
from judge.types import Scale
from speech.manifest import ManifestError, Problem

MAX_BYTES = 1 << 26
NEEDED = ("id", "prompt_id", "question", "audio", "human")
OPTIONAL = ("axis", "text", "transcript", "style", "user_audio", "match", "answer")
NUMBER = re.compile(r"[+-]?\d{1,6}(\.\d{1,12})?")

Found = list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """``of``: axis -> id -> what its raters gave. ``left_out``: axis that is not judged -> its lines."""

    replies: Replies
    of: Mapping[str, Mapping[str, tuple[float, ...]]]
    left_out: Mapping[str, int]


def read(path: Path, scale: Scale, judged: Sequence[str], max_seconds: float) -> Ratings:
    """The ratings of the axes ``judged``. ManifestError: every problem."""
    data = contents(path, MAX_BYTES)
    reading = _Reading(path, scale, judged, Clips(path.parent, max_seconds))
    try:
        table = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        for line, cells in _records(table):
            reading.take(line, cells)
    except UnicodeDecodeError as error:
        raise unusable(path, f"must be UTF-8: {error.reason}") from error
    except csv.Error as error:
        reading.problems.append(Problem(path, table.line_num, "", f"must be CSV: {error}"))
    return reading.ratings(sha256(data).digest())


def _records(table: Any) -> Iterator[tuple[int, list[str]]]:
    """Records with the line that each begins on; a quoted cell may hold line breaks."""
    line = 1
    for cells in table:
        if cells:
            yield line, cells
        line = table.line_num + 1


class _Reading:
    def __init__(self, path: Path, scale: Scale, judged: Sequence[str], clips: Clips) -> None:
        self._path, self._scale, self._judged, self._clips = path, scale, judged, clips
        self._columns: list[str] = []
        self._items: dict[str, tuple[int, Item]] = {}
        self._given: dict[str, dict[str, tuple[float, ...]]] = {axis: {} for axis in judged}
        self._left_out: Counter[str] = Counter()
        self.problems: list[Problem] = []

    def take(self, line: int, cells: list[str]) -> None:
        """One record; the first one names the columns."""
        found: Found = []
        if not self._columns:
            self._columns = cells
            found += _of_columns(cells)
            if found:
                self.problems += [Problem(self._path, line, field, message) for field, message in found]
                raise ManifestError(self.problems)
            return
        if len(cells) != len(self._columns):
            found.append(("", f"must have {len(self._columns)} cells: got {len(cells)}"))
        else:
            self._rating(line, dict(zip(self._columns, cells, strict=True)), found)
        self.problems += [Problem(self._path, line, field, message) for field, message in found]

    def _rating(self, line: int, row: Mapping[str, str], found: Found) -> None:
        content = _content(row)
        item = checked(content, found)
        found += self._clips.problems(content)
        axes, human = self._axes(row.get("axis", ""), found), self._number(row["human"], found)
        if item is None or human is None:
            return
        first, known = self._items.setdefault(item.id, (line, item))
        found += (
            (name, f"must be as on line {first}, which has the same id: {getattr(known, name)!r}")
            for name in Item.model_fields
            if getattr(known, name) != getattr(item, name)
        )
        for axis in axes:
            given = self._given[axis]
            given[item.id] = (*given.get(item.id, ()), human)

    def _axes(self, name: str, found: Found) -> Sequence[str]:
        if not name or name in self._judged:
            return [name] if name else self._judged
        if name in get_args(Axis):
            self._left_out[name] += 1
        else:
            found.append(("axis", f"must be one of {', '.join(get_args(Axis))}: got {name!r}"))
        return []

    def _number(self, text: str, found: Found) -> float | None:
        lo, hi = self._scale.lo, self._scale.hi
        number = float(text) if NUMBER.fullmatch(text.strip()) else None
        if number is None or not lo <= number <= hi:
            found.append(("human", f"must be a number from {lo:g} to {hi:g}: got {text[:40]!r}"))
            return None
        return number

    def ratings(self, data: bytes) -> Ratings:
        """Everything taken. ManifestError: its problems."""
        given = {axis: ratings for axis, ratings in self._given.items() if ratings}
        if not self.problems and not given:
            rule = f"has no rating of an axis that is judged ({', '.join(self._judged)})"
            self.problems.append(Problem(self._path, 0, "", rule))
        if self.problems:
            raise ManifestError(self.problems)
        rated = {name for ratings in given.values() for name in ratings}
        replies = Replies(
            items=tuple(item for name, (_, item) in self._items.items() if name in rated),
            folder=self._path.parent,
            max_seconds=self._clips.max_seconds,
            sha256=self._clips.sealed(data),
        )
        return Ratings(replies=replies, of=given, left_out=self._left_out)


def _of_columns(cells: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with the first line."""
    for name, times in Counter(cells).items():
        if name not in (*NEEDED, *OPTIONAL):
            near = get_close_matches(name, (*NEEDED, *OPTIONAL), n=1, cutoff=0.5)
            yield repr(name[:40]), "unknown column" + (f", did you mean {near[0]}?" if near else "")
        elif times > 1:
            yield name, "column must not appear twice"
    yield from ((name, "column is missing") for name in NEEDED if name not in cells)


def _content(row: Mapping[str, str]) -> dict[str, Any]:
    """A record as a line of a manifest would have it; an empty cell is one that is not there."""
    names = ("id", "prompt_id", "question", "audio", "text", "transcript", "style")
    content: dict[str, Any] = {name: row[name] for name in names if row.get(name)}
    if row.get("user_audio"):
        content["user_audio"] = [clip.strip() for clip in row["user_audio"].split(";")]
    if row.get("answer") or row.get("match"):
        cells = {"match": row.get("match"), "value": row.get("answer")}
        content["answer"] = {name: cell for name, cell in cells.items() if cell}
    return content
