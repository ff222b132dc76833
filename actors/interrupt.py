"""SIGTERM, which schedulers send, does what Ctrl-C does: around an event loop, and around plain code."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from types import FrameType


async def until_terminated(work: Awaitable[None]) -> None:
    """Await ``work``; SIGTERM cancels it, also where a shell has SIGINT ignored."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # in place of Ray's own
    await work


@contextmanager
def undisturbed() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end, and are then raised as ever: nothing inside is torn in two."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    earlier = {
        number: signal.signal(number, lambda *told: came.append(told))
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0][0])


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt inside; nothing is changed in a thread, which gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
