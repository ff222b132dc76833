"""A file of one JSON object per line as a sequence that holds none of them: a row is read when it is used.

Invariant: a row that is read is the row that was examined. Of each line its place and a hash are kept, 16
bytes a row, and about as much of what it may share with other files (``traces``); a line that has become
another is a ManifestError, never another row. So a run draws from a file that is larger than its memory, and
``digest`` says whether a resumed one draws from the same.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np

from speech.data.clips import ClipInspector
from speech.data.problems import MAX_LINE, ManifestError, Problem, RowProblems, iterate_numbered_lines, parse_object
from speech.data.traces import RowTraces


class _Named(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Named)
RowReader = Callable[[int, dict[str, Any], RowProblems], R | None]


class LazyRows(Sequence[R], Generic[R]):
    """Rows of a file without a problem; ``examine_rows`` makes them.

    Example:
        rows = read_manifest(path, max_seconds=60.0)
        batch = [rows[i] for i in cursor.draw_indices(16)]
    """

    def __init__(self, path: Path, row_of: RowReader[R]) -> None:
        self._path, self._row_of = path, row_of
        self._starts, self._hashes = array("Q"), array("Q")
        self.traces = RowTraces()

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        """ManifestError: the line is another now, or the file is gone."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        try:
            with self._path.open("rb") as file:
                file.seek(self._starts[at])
                text = file.readline(MAX_LINE + 1)
        except OSError as error:
            raise self._lost_row_error(at, f"cannot be read any more: {error.strerror}") from error
        row = self._row_at(at, text) if _hash_line(text) == self._hashes[at] else None
        if row is None:
            raise self._lost_row_error(at, "must not change while it is in use: the line is another now")
        return row

    @property
    def digest(self) -> str:
        """Tells the contents of files apart."""
        return hashlib.sha256(self._hashes.tobytes()).hexdigest()[:16]

    def add_line(self, start: int, text: bytes) -> None:
        """The next line of the file, whatever it holds, and where it starts."""
        self._starts.append(start)
        self._hashes.append(_hash_line(text))

    def _row_at(self, at: int, text: bytes) -> R | None:
        content = parse_object(text, [])
        return None if content is None else self._row_of(at + 1, content, [])

    def _lost_row_error(self, at: int, message: str) -> ManifestError:
        return ManifestError([Problem(self._path, at + 1, "", message)])


def examine_rows(
    path: Path,
    row_of: RowReader[R],
    fields: Callable[[dict[str, Any]], Iterable[tuple[str, Any]]],
    clips: ClipInspector,
) -> tuple[LazyRows[R], list[Problem]]:
    """Every line of a file through ``row_of``, which is given its number and object and says what is wrong.

    ``fields``: those of an object that name ``clips``. What cannot be parsed is a problem, and so is an id
    that an earlier line has. The rows are those of a file without any.
    """
    rows = LazyRows(path, row_of)
    if not path.is_file():
        there = "must be a file that can be read twice, no folder and no pipe" if path.exists() else "does not exist"
        return rows, [Problem(path, 0, "", f"manifest {there}")]
    problems: list[Problem] = []
    named, ids = array("Q"), array("Q")  # lines that have an id, and its hash
    for line, start, text in iterate_numbered_lines(path):
        rows.add_line(start, text)
        line_problems: RowProblems = []
        content = parse_object(text, line_problems)
        row = row_of(line, content, line_problems) if content is not None else None
        if content is not None:
            line_problems += clips.find_problems(fields(content))
            rows.traces.add_row(content, clips)
        if row is not None:
            named.append(line)
            ids.append(_hash_line(row.id.encode()))
        problems += [Problem(path, line, field, message) for field, message in line_problems]
    problems += _find_repeated_ids(path, rows, named, ids)
    return rows, sorted(problems, key=lambda problem: problem.line)


def _find_repeated_ids(path: Path, rows: LazyRows[R], named: "array[int]", ids: "array[int]") -> Iterator[Problem]:
    """Lines with the id of an earlier one; where hashes are equal, the ids are looked up."""
    hashes = np.frombuffer(ids, np.uint64)
    order = np.argsort(hashes, kind="stable")  # of equal ones the first line stays first
    hashes = hashes[order]
    group, first = -1, dict[str, int]()  # of lines with one hash: where they start, and the first of each id
    for at in np.flatnonzero(hashes[1:] == hashes[:-1]) + 1:
        start = int(np.searchsorted(hashes, hashes[at]))
        if start != group:
            line = named[order[start]]
            group, first = start, {rows[line - 1].id: line}
        line = named[order[at]]
        own = rows[line - 1].id
        if first.setdefault(own, line) != line:
            yield Problem(path, line, "id", f"must be unique: {own} is also on line {first[own]}")


def _hash_line(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
