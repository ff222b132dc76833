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
AWAITED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}  # by the supervisor
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
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():  # a kernel without CONFIG_PROC_CHILDREN
        return {child.pid for child in psutil.Process().children()}
    pids = set[int]()
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended
            pids.update(map(int, listed.read_text().split()))
    return pids


def running(pids: set[int]) -> list[psutil.Process]:
    """Those of them that do something, with all that is below them; a zombie or Python's own helper does not count."""
    alive = list[psutil.Process]()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE and not any(
                name in " ".join(process.cmdline()) for name in KEPT
            ):
                alive += [process, *process.children(recursive=True)]
    return alive


def ended(processes: Sequence[psutil.Process], seconds: float = HANG_S) -> bool:
    """Whether all of them come to their end in that time."""
    end = time.monotonic() + seconds
    while any(process.is_running() and _status(process) != psutil.STATUS_ZOMBIE for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def end_all(kept: set[int], grace_s: float = GRACE_S) -> list[str]:
    """End every child but these, with all below it, and name those that did not end by themselves within the grace."""
    if ended(running(children() - kept), grace_s):
        return []
    left = running(children() - kept)
    names = [f"{remaining.pid} {_command(remaining)}" for remaining in left]
    while left:  # what was killed may have started another meanwhile
        for remaining in left:
            with suppress(psutil.NoSuchProcess):
                remaining.kill()
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
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    suite = os.fork()
    if suite == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        return
    code = _exit_code(suite)
    left = end_all(set(), grace_s=GRACE_S if code >= 0 else 0.0)
    for name in left:
        print(f"left running by the tests, and ended: {name}", file=sys.stderr, flush=True)
    os._exit(128 - code if code < 0 else code or bool(left))


def _exit_code(suite: int) -> int:
    """That of this child, once it has ended. Meanwhile it is sent what this process is sent, and the adopted are reaped."""
    while True:
        received = signal.sigwaitinfo(AWAITED)
        if received.si_signo != signal.SIGCHLD:
            if received.si_code <= 0:  # sent by a process; what a terminal sends the child has already
                os.kill(suite, received.si_signo)  # at worst it is a zombie: only here it is reaped
            continue
        with suppress(ChildProcessError):  # none is left
            while (waited := os.waitpid(-1, os.WNOHANG))[0]:
                if waited[0] == suite:
                    return os.waitstatus_to_exitcode(waited[1])


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
