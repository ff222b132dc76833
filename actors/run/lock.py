"""One process at a time works in a folder, on any number of hosts; a kill of any kind frees it.

    FOLDER/.lock   who is at work: host, process and since when; touched every ten seconds, empty afterwards

flock ends with its process, also by SIGKILL, and network file systems pass it on to their server. Where one
does not, or knows no locks at all, what the file says holds as long as it is touched. Whoever is refused is
told for how long to wait, or which file to remove.
"""

import errno
import fcntl
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, ValidationError

from actors.errors import UserError

LOCK_TOUCH_INTERVAL_S = 10.0
HOLDER_DEAD_AFTER_S = 120.0  # untouched for so long, who is on another host is gone (attributes are cached for 60 s)
LOCKS_UNSUPPORTED_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockHolder(BaseModel):
    """Who is at work."""

    host: str
    pid: int
    since: float  # seconds since 1970, UTC

    def __str__(self) -> str:
        begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on {self.host}, since {begun}"


@contextmanager
def lock_folder(folder: Path, who: str) -> Iterator[int]:
    """The folder's lock, as a file that a child may inherit, which then holds it too.

    ``who``: what works there, for the message. UserError: somebody does already, or we may not write there.
    """
    with _opened(folder) as file:
        _check_free(folder, who, file)
        _overwrite_file(
            file, LockHolder(host=socket.gethostname(), pid=os.getpid(), since=time.time()).model_dump_json()
        )
        ended = threading.Event()
        beats = threading.Thread(target=_keep_touching, args=(file, ended), daemon=True, name="lock")
        beats.start()
        try:
            yield file.fileno()
        finally:
            ended.set()
            beats.join()
            with suppress(OSError):  # of a full disk or a server that is gone: the lock ends with the file
                _overwrite_file(file, "")


def _opened(folder: Path) -> TextIO:
    try:
        return (folder / ".lock").open("a+")
    except OSError as error:
        rule = "must be a folder that this user can write to"
        raise UserError(f"{folder}: {rule}: {error.strerror}: {folder / '.lock'}") from error


def _check_free(folder: Path, who: str, file: TextIO) -> None:
    locked = _try_lock(file)
    holder = _read_holder(file)
    at_work = f"{folder}: {who} is at work there: {holder or 'it does not say who'}"
    if locked is False:
        raise UserError(at_work)
    if holder is None:
        return
    if holder.host == socket.gethostname():
        alive = locked is None and holder.pid != os.getpid() and Path(f"/proc/{holder.pid}").exists()
        if alive:
            raise UserError(at_work)
    elif (wait := HOLDER_DEAD_AFTER_S - _untouched_s(folder, file)) > 0:
        rule = f"if that process has ended, start again in {ceil(wait)} s, or remove {folder / '.lock'}"
        raise UserError(f"{at_work}; {rule}")


def _try_lock(file: TextIO) -> bool | None:
    """Whether the lock is ours now; None where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LOCKS_UNSUPPORTED_ERRORS:
            raise
        return None
    return True


def _read_holder(file: TextIO) -> LockHolder | None:
    file.seek(0)
    try:
        return LockHolder.model_validate_json(file.read())
    except ValidationError:
        return None


def _untouched_s(folder: Path, file: TextIO) -> float:
    """Seconds since the file was touched, by the clock of its server, which a new file shows."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.stat(now.fileno()).st_mtime - os.stat(file.fileno()).st_mtime


def _overwrite_file(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _keep_touching(file: TextIO, ended: threading.Event) -> None:
    while not ended.wait(LOCK_TOUCH_INTERVAL_S):
        with suppress(OSError):  # a server that is away for a while: the next beat may reach it
            os.utime(file.fileno())
