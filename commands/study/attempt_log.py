"""cells.jsonl of a study: every attempt at a cell, or at a file that cells need, and how it ended.

Only what the run directories cannot tell: time on the clock, and why something is not finished.
"""

import time
from collections.abc import Sequence
from math import fsum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from actors.errors import UserError
from commands.study.attempt import AttemptResult
from report.records import FrozenRecord
from store.files import write_atomically
from store.lines import append_json_line, read_json_lines


class AttemptRecord(FrozenRecord):
    """One attempt."""

    name: str
    ended: float  # seconds since 1970, UTC
    seconds: float  # on the clock
    code: int
    error: str | None
    interrupted: bool
    fresh: bool  # from the beginning; else from a checkpoint
    arguments: tuple[str, ...]


class RunningAttempt(FrozenRecord):
    """An attempt that has begun: of a study that was killed, what is left of it."""

    name: str
    started: float  # seconds since 1970, UTC
    fresh: bool
    arguments: tuple[str, ...]


class AttemptLog:
    """Appends to the file and reads it again: what is told is what is on disk.

    Example:
        log.begin("gated-seed0", fresh=True, arguments=["algo=gated"])
        log.touch_running()                                     # now and then
        log.record_end("gated-seed0", ended, fresh=True, arguments=["algo=gated"])
        log.wall_s("gated-seed0")
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._running = file.with_name("running.json")

    def record_end(self, name: str, ended: AttemptResult, *, fresh: bool, arguments: Sequence[str]) -> None:
        """One attempt, now."""
        self._add(name, time.time(), ended, fresh=fresh, arguments=arguments)
        self._running.unlink(missing_ok=True)

    def begin(self, name: str, *, fresh: bool, arguments: Sequence[str]) -> None:
        """An attempt begins, now."""
        begun = RunningAttempt(name=name, started=time.time(), fresh=fresh, arguments=tuple(arguments))
        write_atomically(self._running, begun.model_dump_json() + "\n")

    def touch_running(self) -> None:
        """It still runs."""
        self._running.touch()

    def recover(self) -> None:
        """Note the attempt that ran when the study itself was killed, up to its last beat.

        Only for who holds the study's lock: else it may be running. UserError: not the file of a study.
        """
        if not self._running.exists():
            return
        try:
            left = RunningAttempt.model_validate_json(self._running.read_bytes())
        except ValidationError:
            raise UserError(f"{self._running}: must be what a study wrote: remove it") from None
        modified = self._running.stat().st_mtime
        killed = AttemptResult(code=-9, seconds=max(0.0, modified - left.started), error="the study was killed")
        self._add(left.name, modified, killed, fresh=left.fresh, arguments=left.arguments)
        self._running.unlink()

    def _add(self, name: str, when: float, ended: AttemptResult, *, fresh: bool, arguments: Sequence[str]) -> None:
        attempt = AttemptRecord(
            name=name,
            ended=when,
            seconds=ended.seconds,
            code=ended.code,
            error=ended.error,
            interrupted=ended.interrupted,
            fresh=fresh,
            arguments=tuple(arguments),
        )
        append_json_line(self._file, attempt)

    def read_attempts(self, name: str) -> list[AttemptRecord]:
        """All attempts at one thing. UserError: a malformed line, as file:line."""
        try:
            attempts = read_json_lines(self._file, TypeAdapter(AttemptRecord)).rows
        except ValueError as error:
            raise UserError(str(error)) from error
        return [attempt for attempt in attempts if attempt.name == name]

    def last(self, name: str) -> AttemptRecord | None:
        """The latest attempt."""
        return next(reversed(self.read_attempts(name)), None)

    def wall_s(self, name: str) -> float | None:
        """Seconds of the attempts since the last fresh one, with it; None: nobody looked."""
        tries = self.read_attempts(name)
        begun = max((place for place, attempt in enumerate(tries) if attempt.fresh), default=None)
        return None if begun is None else fsum(attempt.seconds for attempt in tries[begun:])
