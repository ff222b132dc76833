"""cells.jsonl of a study: every attempt at a cell, or at a file that cells need, and how it ended.

Only what the run directories cannot tell: time on the clock, and why something is not finished.
"""

import time
from collections.abc import Sequence
from math import fsum
from pathlib import Path

from pydantic import TypeAdapter

from actors.attempt import Ended
from actors.errors import UserError
from report.read import lines
from report.records import Line


class Attempt(Line):
    """One attempt."""

    name: str
    ended: float  # seconds since 1970, UTC
    seconds: float  # on the clock
    code: int
    error: str | None
    interrupted: bool
    fresh: bool  # from the beginning; else from a checkpoint
    arguments: tuple[str, ...]


class AttemptLog:
    """Appends to the file and reads it again: what is told is what is on disk.

    Example:
        log.note("gated-seed0", ended, fresh=True, arguments=["algo=gated"])
        log.wall_s("gated-seed0")
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def note(self, name: str, ended: Ended, *, fresh: bool, arguments: Sequence[str]) -> None:
        """One attempt, now."""
        attempt = Attempt(
            name=name,
            ended=time.time(),
            seconds=ended.seconds,
            code=ended.code,
            error=ended.error,
            interrupted=ended.interrupted,
            fresh=fresh,
            arguments=tuple(arguments),
        )
        known = self._file.read_bytes() if self._file.exists() else b""
        with self._file.open("ab") as out:
            out.truncate(known.rfind(b"\n") + 1)  # a line that a kill tore says nothing
            out.write(attempt.model_dump_json().encode() + b"\n")

    def of(self, name: str) -> list[Attempt]:
        """All attempts at one thing. UserError: a malformed line, as file:line."""
        try:
            found = lines(self._file, TypeAdapter(Attempt)).rows
        except ValueError as error:
            raise UserError(str(error)) from error
        return [one for one in found if one.name == name]

    def last(self, name: str) -> Attempt | None:
        """The latest attempt."""
        return next(reversed(self.of(name)), None)

    def wall_s(self, name: str) -> float | None:
        """Seconds of the attempts since the last fresh one, with it; None: nobody looked."""
        tries = self.of(name)
        begun = max((place for place, one in enumerate(tries) if one.fresh), default=None)
        return None if begun is None else fsum(one.seconds for one in tries[begun:])
