"""``wavgate data convert``: a data set of others as a manifest, told while it goes on and at the end."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

from actors.errors import UserError
from actors.exits import OK
from speech.data.convert import convert_source
from speech.data.problems import escape_unprintable
from speech.data.sources.folder import ConversionProgress
from speech.data.sources.forms import SOURCE_FORMS

MAX_LISTED_ENTRIES = 20  # reasons and keys on the screen; convert.json has more of them


def convert_data_set(
    sources: Sequence[Path], to: Path, limit: int | None, audio: Path | None, max_seconds: float
) -> int:
    """Convert, or go on. UserError: not a source, no place for it, or not one row of it can be used."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1: got {limit}")
    line = ProgressLine()
    try:
        progress = convert_source(sources, to, max_seconds, limit=limit, audio=audio, tell=line.tell)
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"--to {to}: {error}") from error
    finally:
        line.end()
    if not progress.rows:
        first = max(progress.reasons, key=lambda reason: progress.reasons[reason], default="the source is empty")
        raise UserError(
            f"{to}: none of {progress.done} rows can be used, for the most part: {first}; "
            f"all problems: {to / 'problems.txt'}"
        )
    print("\n".join(_format_report(progress, to)))
    return OK


class ProgressLine:
    """How far it is: one line that is written over on a terminal, else a line now and then; on stderr."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 10.0
        self._last, self._open = monotonic(), False

    def tell(self, progress: ConversionProgress) -> None:
        """Show it, if the last time was long enough ago."""
        if monotonic() - self._last >= self._every:
            counts = f"{progress.rows} rows, {progress.dropped} dropped, of {progress.done} read"
            print(
                f"\r{counts}\x1b[K" if self._terminal else counts,
                end="" if self._terminal else "\n",
                file=sys.stderr,
            )
            self._last, self._open = monotonic(), self._terminal
            sys.stderr.flush()

    def end(self) -> None:
        """What follows begins on a line of its own."""
        if self._open:
            print(file=sys.stderr)


def _format_report(progress: ConversionProgress, to: Path) -> Iterator[str]:
    yield f"{to / 'manifest.jsonl'}: {progress.rows} rows of {progress.done}"
    several = len(progress.forms) > 1
    for form, count in progress.forms.items():
        yield f"read as {SOURCE_FORMS[form]}" + f": {count}" * several
    if progress.renamed:
        yield f"{progress.renamed} rows have an id that an earlier file has: their file's name precedes it"
    if progress.dropped:
        yield f"dropped {progress.dropped}, each problem in {to / 'problems.txt'}:"
        often = sorted(progress.reasons.items(), key=lambda item: -item[1])
        yield from (f"{count:>9}  {escape_unprintable(reason)}" for reason, count in often[:MAX_LISTED_ENTRIES])
    if progress.unread:
        keys = (
            f"{escape_unprintable(key)} ({count})" for key, count in list(progress.unread.items())[:MAX_LISTED_ENTRIES]
        )
        yield "not read: " + ", ".join(keys)
