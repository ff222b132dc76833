"""One process at a time works in a folder: on this host, after a kill, and as far as another host tells."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.errors import UserError
from actors.run import lock
from actors.run.lock import HOLDER_DEAD_AFTER_S, lock_folder
from tests.helpers.processes import HANG_S

HOLDS = (
    "import sys; from pathlib import Path; from actors.run.lock import lock_folder\n"
    "with lock_folder(Path(sys.argv[1]), 'a run'):\n    print('held', flush=True); sys.stdin.read()"
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
        lock_folder(tmp_path, "a run"),
    ):
        raise AssertionError("two at once")


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(HANG_S)
        with lock_folder(tmp_path, "a run"):
            pass


def test_who_has_ended_holds_nothing(tmp_path: Path) -> None:
    with lock_folder(tmp_path, "a run"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / ".lock").read_text() == ""
    with lock_folder(tmp_path, "a run"):
        pass


def test_a_child_that_inherits_it_holds_it_too(tmp_path: Path) -> None:
    with lock_folder(tmp_path, "a study") as handle:
        child = subprocess.Popen(["sleep", "600"], pass_fds=[handle])
    try:
        with pytest.raises(UserError, match="a study is at work there"), lock_folder(tmp_path, "a study"):
            pass
    finally:
        child.kill()
        child.wait(HANG_S)
    with lock_folder(tmp_path, "a study"):
        pass


@pytest.mark.parametrize(("age", "free"), [(HOLDER_DEAD_AFTER_S / 2, False), (HOLDER_DEAD_AFTER_S * 2, True)])
def test_a_lock_that_does_not_reach_us_counts_as_long_as_it_is_touched(age: float, free: bool, tmp_path: Path) -> None:
    write(tmp_path, "another-host", 4321, age)
    if free:
        with lock_folder(tmp_path, "a run"):
            pass
    else:
        with pytest.raises(UserError, match="process 4321 on another-host"), lock_folder(tmp_path, "a run"):
            pass
        with pytest.raises(UserError) as caught, lock_folder(tmp_path, "a run"):  # to look at it is no touch
            pass
        rule = re.search(r"if that process has ended, start again in (\d+) s, or remove (.*)$", str(caught.value))
        assert rule and 0 < int(rule[1]) <= HOLDER_DEAD_AFTER_S - age + 1 and rule[2] == str(tmp_path / ".lock")
        Path(rule[2]).unlink()
        with lock_folder(tmp_path, "a run"):
            pass


def test_without_locks_a_process_of_this_host_counts_as_long_as_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_try_lock", lambda file: None)
    write(tmp_path, socket.gethostname(), os.getppid(), 0.0)
    with pytest.raises(UserError, match=f"process {os.getppid()} "), lock_folder(tmp_path, "a run"):
        pass
    write(tmp_path, socket.gethostname(), 2**22 + 1, 0.0)  # no such process
    with lock_folder(tmp_path, "a run"):
        pass


def test_a_beat_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touches: list[int] = []
    again = threading.Event()

    def touch(*_: object) -> None:
        touches.append(1)
        if len(touches) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        again.set()

    monkeypatch.setattr(lock, "LOCK_TOUCH_INTERVAL_S", 0.01)
    monkeypatch.setattr("actors.run.lock.os.utime", touch)
    with lock_folder(tmp_path, "a run"):
        assert again.wait(HANG_S)


@pytest.mark.parametrize("place", ["nothing", "file"])
def test_a_folder_that_cannot_hold_the_lock_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rule = r"must be a folder that this user can write to: \w.*\.lock$"
    with pytest.raises(UserError, match=rule), lock_folder(tmp_path / place, "a run"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_of_another_user_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match="to: Permission denied"), lock_folder(tmp_path, "a run"):
            pass
    finally:
        tmp_path.chmod(0o755)
