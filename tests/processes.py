"""Every process that a test starts ends with the test, however it ends; what it left running is its failure.

    supervisor           adopts what loses its parent, and ends what outlives pytest (killed, crashed, interrupted)
     └─ pytest           the same process when there are no workers
         └─ worker       adopts too: whatever a test started stays below it, and is found there
             └─ whatever a test starts

Linux only (PR_SET_CHILD_SUBREAPER); elsewhere nothing is adopted.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ADOPT, DIE_WITH_PARENT = 36, 1  # prctl(2)
HANG_S = 900.0  # longer than anything takes on the busiest machine: what has not come by then does not come
GRACE_S = 120.0  # for what is about to end by itself
KEPT = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # Python's own, one for all tests


def wait_for(
    condition: Callable[[], object], process: "subprocess.Popen[str] | subprocess.Popen[bytes] | None" = None
) -> None:
    """Until it holds; AssertionError when it never does, or this process has ended meanwhile."""
    end = time.monotonic() + HANG_S
    while not condition():
        ended = process is not None and process.poll() is not None
        assert not ended or condition(), f"ended with {process and process.returncode}"
        assert time.monotonic() < end, f"not within {HANG_S:g} s"
        time.sleep(0.02)


def adopt() -> None:
    """From now on whatever loses its parent below this process becomes its child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)


def children() -> set[int]:
    """The direct children of this process, the adopted among them; cheap enough to ask after every test."""
    found = set[int]()
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found.update(map(int, listed.read_text().split()))
    return found


def running(pids: set[int]) -> list[psutil.Process]:
    """Those of them that do something, with all that is below them; a zombie or Python's own helper does not count."""
    found = list[psutil.Process]()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and not any(
                name in " ".join(process.cmdline()) for name in KEPT
            ):
                found += [process, *process.children(recursive=True)]
    return found


def ended(processes: Sequence[psutil.Process], seconds: float = HANG_S) -> bool:
    """Whether all of them come to their end in that time."""
    end = time.monotonic() + seconds
    while left := [one for one in processes if one.is_running() and _status(one) != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return not left


def end_all(kept: set[int], grace_s: float = GRACE_S) -> list[str]:
    """End every child but these, with all below it, and name those that did not end by themselves within the grace."""
    if ended(running(children() - kept), grace_s):
        return []
    left = running(children() - kept)
    names = [f"{one.pid} {_command(one)}" for one in left]
    while left:  # what was killed may have started another meanwhile
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        ended(left)
        left = running(children() - kept)
    return names


def supervise() -> None:
    """Go on in a child of this process, which itself only waits, ends what the child leaves, and never returns."""
    if sys.platform != "linux":
        return
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    adopt()
    wait = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    suite = os.fork()
    if suite == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, wait)
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child, too
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: _pass_on(suite, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, wait)
    while (waited := os.wait())[0] != suite:  # reaps what it adopted
        pass
    code = os.waitstatus_to_exitcode(waited[1])
    left = end_all(set(), grace_s=GRACE_S if code >= 0 else 0.0)
    for name in left:
        print(f"left running by the tests, and ended: {name}", file=sys.stderr, flush=True)
    os._exit(128 - code if code < 0 else code or bool(left))


def _pass_on(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended meanwhile
        os.kill(pid, number)


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return str(psutil.STATUS_ZOMBIE)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(" ".join(process.cmdline()).split())[:200] or str(process.name())
    except psutil.NoSuchProcess:
        return "(gone)"
