"""Output that outlives its reader: ``| head``, a tee that died, a terminal that was closed, ``>&-``.

What nobody can read any more is dropped, and the command goes on; who wants to know is told once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from errno import EBADF, EIO, EPIPE
from typing import Any, TextIO

READER_GONE_ERRORS = (EPIPE, EIO, EBADF)  # pipe without a reader, terminal that was closed, descriptor that was closed


class LastingStream:
    """A text stream whose writes do not fail when its reader goes away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lost = stream, False
        self._on_lost: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """All of the text, or nothing where nobody reads it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._redirect_to_null(error)
            return len(text)

    def flush(self) -> None:
        """What is buffered goes the same way."""
        try:
            self._stream.flush()
        except OSError as error:
            self._redirect_to_null(error)

    def when_lost(self, call: Callable[[], object]) -> None:
        """Call this once, when the reader goes away, or now where it is gone."""
        self._on_lost = call
        if self._lost:
            self._tell()

    def _redirect_to_null(self, error: OSError) -> None:
        """From now on everything goes nowhere: what libraries write to the same file, and what is buffered, which
        the interpreter would write at its end. Raises what is not a reader that is gone, a full disk for one.
        """
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if error.errno not in READER_GONE_ERRORS:
            raise error
        if not self._lost:
            self._lost = True
            self._tell()

    def _tell(self) -> None:
        with suppress(OSError):  # of a full disk: whoever prints has nothing to do with it
            self._on_lost()


@contextmanager
def keep_output_open() -> Iterator[None]:
    """Inside, stdout and stderr outlive their readers."""
    _reopen_closed_descriptors()
    out, errors = LastingStream(sys.stdout), LastingStream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            yield
        finally:
            out.flush()
            errors.flush()


def call_when_output_lost(call: Callable[[], object]) -> None:
    """Call this once nobody reads stdout any more."""
    if isinstance(sys.stdout, LastingStream):
        sys.stdout.when_lost(call)


def _reopen_closed_descriptors() -> None:
    """Descriptors 0 to 2 that were closed would be taken by the next files to be opened: they go nowhere."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  Python has none for a closed one
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
