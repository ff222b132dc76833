"""One row of a source as it stands there, and where that is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speech.data.problems import Problem, RowProblems

MAX_CLIP_BYTES = 1 << 28  # bytes of one clip as it is stored; a minute of stereo at 48 kHz in 24 bit is 17 MB
MAX_SAMPLE_BYTES = 1 << 29  # bytes of all clips of one row


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """A row. ``content`` is None where it could not be read: ``problems`` says why.

    ``line`` counts rows of ``file`` from 1; 0 where rows have a ``key`` instead (tar shards).
    """

    file: Path
    line: int = 0
    key: str = ""
    content: dict[str, Any] | None
    problems: RowProblems = field(default_factory=list)
    members: Mapping[str, bytes] | None = None
    """Clips by name, in a shard, where names mean these alone; None: names are files."""
    files: tuple[str, ...] = ()
    """Of the sample, beside its row: what follows its key and a dot."""

    def locate_problem(self, field: str, message: str) -> Problem:
        """``message`` about the ``field`` of this row, as file:line:field or shard:key:field."""
        return Problem(self.file, self.line, ":".join(part for part in (self.key, field) if part), message)
