"""What a test starts ends with it, and what the suite starts ends with the suite, however it ends."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes

ROOT = Path(__file__).parents[2]
LOST = [  # prints the process that loses its parent at once, in a session of its own; by then it is `sleep`
    sys.executable,
    "-c",
    "import subprocess as s; print(s.Popen(['sleep', '3600'], stdout=s.DEVNULL, start_new_session=True).pid)",
]
SUITE = f"""
import os, signal, subprocess, sys
from tests.helpers import processes
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


def test_children_are_found_on_a_kernel_that_does_not_list_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "3600"]) as there:
        listed = processes.children()
        monkeypatch.setattr(Path, "exists", lambda self: False)
        assert there.pid in processes.children() <= listed
        there.kill()


def test_whether_all_have_ended_is_said_and_not_assumed() -> None:
    with subprocess.Popen(["sleep", "3600"]) as there:
        process = processes.psutil.Process(there.pid)
        assert not processes.ended([process], seconds=0.0)
        there.kill()
        assert processes.ended([process])


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
        (
            "signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getppid(), signal.SIGINT); signal.pause()",
            128 + signal.SIGINT,
        ),
    ],
    ids=["well", "failed", "killed", "told to", "interrupted"],
)
def test_nothing_of_a_suite_outlives_it_and_what_was_left_is_named(end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SUITE + end], cwd=ROOT, capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    assert done.returncode == code
    assert done.stderr == f"left running by the tests, and ended: {pid} sleep 3600\n"
    assert processes.running({pid}) == []


def test_what_a_private_ray_left_that_did_not_come_up_is_ended_and_nothing_else(tmp_path: Path) -> None:
    from actors.reach import kill_session_processes

    before = processes.children()
    command = ["sh", "-c", "sleep 3600", "--session-dir"]
    left, other = (subprocess.Popen([*command, str(tmp_path / name)], start_new_session=True) for name in "ab")
    kill_session_processes(tmp_path / "a")
    assert left.wait(processes.HANG_S) == -signal.SIGKILL and other.poll() is None
    processes.end_all(kept=before, grace_s=0.0)


def test_what_fails_at_its_end_fails_the_file_that_left_it(tmp_path: Path) -> None:
    body = """
import gc
class Left:
    def __init__(self): self.me = self
    def __del__(self): 1 / 0
def test_it(): gc.disable(); Left()
"""
    (tmp_path / "test_leaves.py").write_text(body)
    (tmp_path / "test_next.py").write_text("import gc\ndef test_it(): gc.collect()")
    settings = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "-p", "tests.conftest"]
    command = [sys.executable, "-m", "pytest", *settings, "-p", "no:cacheprovider", "-rA", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    matches = re.findall(r"^(PASSED|ERROR|FAILED) .*?(test_\w+)\.py::", done.stdout, re.MULTILINE)
    assert matches == [("PASSED", "test_leaves"), ("PASSED", "test_next"), ("ERROR", "test_leaves")]
