"""One process at a time works in a folder, on any number of hosts; a kill of any kind frees it.

    FOLDER/.lock   who is at work: host, process and since when; touched every ten seconds, empty afterwards

flock ends with its process, also by SIGKILL, and network file systems pass it on to their server. Where one
does not, or knows no locks at all, what the file says holds as long as it is touched.
"""

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, ValidationError

from actors.errors import UserError

BEAT_S = 10.0
DEAD_S = 120.0  # untouched for so long, who is on another host is gone (attributes are cached for 60 s)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Holder(BaseModel):
    """Who is at work."""

    host: str
    pid: int
    since: float  # seconds since 1970, UTC

    def __str__(self) -> str:
        begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on {self.host}, since {begun}"


@contextmanager
def alone(folder: Path, who: str) -> Iterator[int]:
    """The folder's lock, as a file that a child may inherit, which then holds it too.

    ``who``: what works there, for the message. UserError: somebody does already.
    """
    with (folder / ".lock").open("a+") as file:
        free = _lock(file)
        holder = _holder(file)
        if free is False or (holder is not None and _is_alive(holder, file, locks=free is True)):
            raise UserError(f"{folder}: {who} is at work there: {holder or 'it does not say who'}")
        _write(file, Holder(host=socket.gethostname(), pid=os.getpid(), since=time.time()).model_dump_json())
        ended = threading.Event()
        beats = threading.Thread(target=_beat, args=(file, ended), daemon=True, name="lock")
        beats.start()
        try:
            yield file.fileno()
        finally:
            ended.set()
            beats.join()
            _write(file, "")


def _lock(file: TextIO) -> bool | None:
    """Whether the lock is ours now; None where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def _holder(file: TextIO) -> Holder | None:
    file.seek(0)
    try:
        return Holder.model_validate_json(file.read())
    except ValidationError:
        return None


def _is_alive(holder: Holder, file: TextIO, *, locks: bool) -> bool:
    """Whether who is written there may be at work though the lock was given to us."""
    if holder.host == socket.gethostname():
        return not locks and holder.pid != os.getpid() and Path(f"/proc/{holder.pid}").exists()
    seen = os.stat(file.fileno()).st_mtime
    os.utime(file.fileno())  # the file server's clock
    now = os.stat(file.fileno()).st_mtime
    os.utime(file.fileno(), (seen, seen))
    return now - seen < DEAD_S


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _beat(file: TextIO, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        os.utime(file.fileno())
