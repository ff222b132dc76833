"""What a test starts ends with it, and what the suite starts ends with the suite, however it ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).parent.parent
LOST = [  # prints the process that loses its parent at once, in a session of its own; by then it is `sleep`
    sys.executable,
    "-c",
    "import subprocess as s; print(s.Popen(['sleep', '3600'], stdout=s.DEVNULL, start_new_session=True).pid)",
]
SUITE = f"""
import os, signal, subprocess, sys
from tests import processes
processes.GRACE_S = 0.5
processes.supervise()
print(subprocess.run({LOST}, stdout=subprocess.PIPE, text=True).stdout, flush=True)
"""


def test_a_process_that_lost_its_parent_is_found_ended_and_named() -> None:
    before = processes.children()
    pid = int(subprocess.run(LOST, stdout=subprocess.PIPE, check=True).stdout)
    (name,) = processes.end_all(kept=before, grace_s=0.0)
    assert name == f"{pid} sleep 3600"
    assert not processes.running(processes.children() - before)


def test_what_ends_by_itself_is_no_failure_and_what_was_there_before_stays() -> None:
    with subprocess.Popen(["sleep", "3600"]) as there:
        before = processes.children()
        subprocess.Popen([sys.executable, "-c", "pass"])
        assert processes.end_all(kept=before) == [] and there.poll() is None
        there.kill()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(0)", 1),
        ("sys.exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
        ("os.kill(os.getppid(), signal.SIGTERM); signal.pause()", 128 + signal.SIGTERM),
    ],
    ids=["well", "failed", "killed", "told to"],
)
def test_nothing_of_a_suite_outlives_it_and_what_was_left_is_named(end: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUITE + end], cwd=ROOT, capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    assert done.returncode == code
    assert done.stderr == f"left running by the tests, and ended: {pid} sleep 3600\n"
    assert processes.running({pid}) == []


def test_what_a_private_ray_left_that_did_not_come_up_is_ended_and_nothing_else(tmp_path: Path) -> None:
    from actors.reach import end_processes_of

    before = processes.children()
    command = ["sh", "-c", "sleep 3600", "--session-dir"]
    left, other = (
        subprocess.Popen([*command, str(tmp_path / name)], start_new_session=True) for name in "ab"
    )
    end_processes_of(tmp_path / "a")
    assert left.wait(processes.HANG_S) == -signal.SIGKILL and other.poll() is None
    processes.end_all(kept=before, grace_s=0.0)
