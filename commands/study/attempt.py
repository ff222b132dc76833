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

from actors.run.interrupt import defer_signals
from conf.load import PROJECT_ROOT

CHECKPOINT_GRACE_S = 300.0  # longest wait for the checkpoint of a process that was told to stop
CHILD_POLL_INTERVAL_S = 10.0
MAX_ERROR_LENGTH = 400  # characters of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """How it went. ``error``: None when all is well."""

    code: int
    seconds: float
    error: str | None
    interrupted: bool = False  # by whoever started this


def run_command(
    command: Sequence[str],
    logs: Path,
    limit_s: float | None = None,
    hold: Sequence[int] = (),
    beat: Callable[[], None] = lambda: None,
) -> AttemptResult:
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
            with defer_signals():  # else an interrupt between fork and assignment leaves a process to nobody
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=_build_environment(),
                    start_new_session=True, pass_fds=tuple(hold),
                )  # fmt: skip
            _wait_for_end(process, start, limit_s, beat)
        except subprocess.TimeoutExpired:
            why = f"took longer than {limit_s:g} s and was stopped"
        except KeyboardInterrupt:
            why = "interrupted"
        if process is not None and why is not None:
            _stop_process(process)
    code = 0 if process is None else process.returncode
    error = why or (None if code == 0 else _read_last_line(err, before) or _describe_exit_code(code))
    return AttemptResult(code=code, seconds=time.monotonic() - start, error=error, interrupted=why == "interrupted")


def _wait_for_end(
    process: "subprocess.Popen[bytes]", start: float, limit_s: float | None, beat: Callable[[], None]
) -> None:
    """Until its end. TimeoutExpired: after ``limit_s`` since ``start``."""
    while True:
        beat()
        left = inf if limit_s is None else max(0.0, start + limit_s - time.monotonic())
        try:
            process.wait(min(left, CHILD_POLL_INTERVAL_S))
        except subprocess.TimeoutExpired:
            if left <= CHILD_POLL_INTERVAL_S:
                raise
        else:
            return


def _stop_process(process: "subprocess.Popen[bytes]") -> None:
    """Ask, wait, then insist."""
    process.terminate()
    try:
        process.wait(CHECKPOINT_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _build_environment() -> dict[str, str]:
    """Ours, where the project's packages are found from any folder."""
    known = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known)}


def _read_last_line(file: Path, start: int) -> str | None:
    """The last line with anything on it since ``start``; whoever fails says why last."""
    with file.open("rb") as content:
        content.seek(start)
        lines = content.read().decode(errors="replace").split("\n")
    nonempty_lines = [line.strip() for line in lines if line.strip()]
    return nonempty_lines[-1][:MAX_ERROR_LENGTH] if nonempty_lines else None


def _describe_exit_code(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
