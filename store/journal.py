"""Work that is done item by item and can be stopped: a file of JSON lines, written as items are done.

Invariant: the first line says what the work is, and every other line belongs to it; the last line of an item
counts. A last line that was torn by a kill is cut off; a line of somebody else is refused and left alone.
One process at a time has the file.
"""

import fcntl
import os
from pathlib import Path
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from store.lines import cut_torn_end, write_json_line

MAX_JOURNAL_LINE = 1 << 24


class JournalLine(BaseModel):
    """What a line holds; nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class JournalEntry(JournalLine):
    """A line but the first: what became of the item ``id``."""

    id: str


H = TypeVar("H", bound=JournalLine)
E = TypeVar("E", bound=JournalEntry)


class Journal(Generic[H, E]):
    """The file, open and locked.

    ValueError: somebody else has it, it cannot be written, or a line of it is not ours.

    Example:
        with Journal(path, Header, Entry, by="wavgate judge score") as journal:
            journal.begin(header)
            journal.add(entry)
    """

    def __init__(self, path: Path, header: type[H], entry: type[E], by: str) -> None:
        """``by``: the command that writes such files."""
        self.path, self._by = path, by
        self._kinds = header, entry
        self.header: H | None = None
        self.entries: dict[str, E] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise ValueError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read_lines()
        except BlockingIOError as error:
            os.close(self._file)
            raise ValueError(f"{path}: another process is writing it") from error
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.header is None:  # nothing was done: nothing is left behind
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def ensure_header(self, header: H) -> H:
        """The first line, written where there is none yet. OSError: the disk is full."""
        if self.header is None:
            write_json_line(self._file, header)
            self.header = header
        return self.header

    def append_entry(self, entry: E) -> None:
        """Append one line. OSError: the disk is full."""
        write_json_line(self._file, entry)
        self.entries[entry.id] = entry

    def _read_lines(self) -> None:
        size = os.fstat(self._file).st_size
        header, entry = self._kinds
        with open(self._file, "rb", closefd=False) as file:
            for number in range(1, size + 1):
                line = file.readline(MAX_JOURNAL_LINE)
                if not line.endswith(b"\n") and len(line) < MAX_JOURNAL_LINE:
                    break
                try:
                    if self.header is None:
                        self.header = header.model_validate_json(line)
                    else:
                        item = entry.model_validate_json(line)
                        self.entries[item.id] = item
                except ValidationError as error:
                    raise ValueError(f"{self.path}:{number}: not a line that `{self._by}` wrote") from error
        if self.header is None and size:
            raise ValueError(f"{self.path}: not begun by `{self._by}`: remove it, or choose another --to")
        cut_torn_end(self._file)
