"""One command in a process of its own: its output in files, its end told, never left running.

The process has a session of its own, so that Ctrl-C reaches it once, through here: as SIGTERM, at which a run
writes a checkpoint. A second Ctrl-C, or too long a goodbye, kills it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from actors.interrupt import undisturbed
from conf.load import ROOT

GOODBYE_S = 300.0  # longest wait for the checkpoint of a process that was told to stop
BEAT_S = 10.0
LONGEST = 400  # characters of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How it went. ``error``: None when all is well."""

    code: int
    seconds: float
    error: str | None
    interrupted: bool = False  # by whoever started this


def attempt(
    command: Sequence[str],
    logs: Path,
    limit_s: float | None = None,
    hold: Sequence[int] = (),
    beat: Callable[[], None] = lambda: None,
) -> Ended:
    """Run ``command`` to its end, or stop it after ``limit_s`` or at Ctrl-C.

    Output is added to ``logs``.log, errors to ``logs``.err. ``hold``: open files that it inherits.
    ``beat`` is called now and then as long as it runs.
    """
    logs.parent.mkdir(parents=True, exist_ok=True)
    out, err = logs.with_name(f"{logs.name}.log"), logs.with_name(f"{logs.name}.err")
    start, process, why = time.monotonic(), None, None
    with out.open("ab") as output, err.open("ab") as errors:
        before = errors.tell()
        try:
            with undisturbed():  # else an interrupt between fork and assignment leaves a process to nobody
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=_environment(),
                    start_new_session=True, pass_fds=tuple(hold),
                )  # fmt: skip
            _wait(process, start, limit_s, beat)
        except subprocess.TimeoutExpired:
            why = f"took longer than {limit_s:g} s and was stopped"
        except KeyboardInterrupt:
            why = "interrupted"
        if process is not None and why is not None:
            _stop(process)
    code = 0 if process is None else process.returncode
    error = why or (None if code == 0 else _last_line(err, before) or _fate(code))
    return Ended(code=code, seconds=time.monotonic() - start, error=error, interrupted=why == "interrupted")


def _wait(process: "subprocess.Popen[bytes]", start: float, limit_s: float | None, beat: Callable[[], None]) -> None:
    """Until its end. TimeoutExpired: after ``limit_s`` since ``start``."""
    while True:
        beat()
        left = inf if limit_s is None else max(0.0, start + limit_s - time.monotonic())
        try:
            process.wait(min(left, BEAT_S))
        except subprocess.TimeoutExpired:
            if left <= BEAT_S:
                raise
        else:
            return


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask, wait, then insist."""
    process.terminate()
    try:
        process.wait(GOODBYE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _environment() -> dict[str, str]:
    """Ours, where the project's packages are found from any folder."""
    known = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known)}


def _last_line(file: Path, start: int) -> str | None:
    """The last line with anything on it since ``start``; whoever fails says why last."""
    with file.open("rb") as content:
        content.seek(start)
        lines = content.read().decode(errors="replace").split("\n")
    told = [line.strip() for line in lines if line.strip()]
    return told[-1][:LONGEST] if told else None


def _fate(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
