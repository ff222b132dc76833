"""One process at a time works in a folder: on this host, after a kill, and as far as another host tells."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors import lock
from actors.errors import UserError
from actors.lock import DEAD_S, alone
from tests.processes import HANG_S

HOLDS = (
    "import sys; from pathlib import Path; from actors.lock import alone\n"
    "with alone(Path(sys.argv[1]), 'a run'):\n    print('held', flush=True); sys.stdin.read()"
)


@contextmanager
def holder(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that is at work there."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def write(folder: Path, host: str, pid: int, age: float) -> None:
    file = folder / ".lock"
    file.write_text(json.dumps({"host": host, "pid": pid, "since": time.time() - 999}))
    os.utime(file, (time.time() - age, time.time() - age))


def test_the_second_is_told_who_is_at_work(tmp_path: Path) -> None:
    with (
        holder(tmp_path) as process,
        pytest.raises(UserError, match=f"a run is at work there: process {process.pid} on"),
        alone(tmp_path, "a run"),
    ):
        raise AssertionError("two at once")


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(HANG_S)
        with alone(tmp_path, "a run"):
            pass


def test_who_has_ended_holds_nothing(tmp_path: Path) -> None:
    with alone(tmp_path, "a run"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""
    with alone(tmp_path, "a run"):
        pass


def test_a_child_that_inherits_it_holds_it_too(tmp_path: Path) -> None:
    with alone(tmp_path, "a study") as handle:
        child = subprocess.Popen(["sleep", "600"], pass_fds=[handle])
    try:
        with pytest.raises(UserError, match="a study is at work there"), alone(tmp_path, "a study"):
            pass
    finally:
        child.kill()
        child.wait(HANG_S)
    with alone(tmp_path, "a study"):
        pass


@pytest.mark.parametrize(("age", "free"), [(DEAD_S / 2, False), (DEAD_S * 2, True)])
def test_a_lock_that_does_not_reach_us_counts_as_long_as_it_is_touched(
    age: float, free: bool, tmp_path: Path
) -> None:
    write(tmp_path, "another-host", 4321, age)
    if free:
        with alone(tmp_path, "a run"):
            pass
    else:
        with pytest.raises(UserError, match="process 4321 on another-host"), alone(tmp_path, "a run"):
            pass
        with pytest.raises(UserError), alone(tmp_path, "a run"):  # to look at it is no touch
            pass


def test_without_locks_a_process_of_this_host_counts_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_lock", lambda file: None)
    write(tmp_path, socket.gethostname(), os.getppid(), 0.0)
    with pytest.raises(UserError, match=f"process {os.getppid()} "), alone(tmp_path, "a run"):
        pass
    write(tmp_path, socket.gethostname(), 2**22 + 1, 0.0)  # no such process
    with alone(tmp_path, "a run"):
        pass
