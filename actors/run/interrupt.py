"""SIGTERM, which schedulers send, and SIGHUP, which a closed terminal sends, do what Ctrl-C does: around an
event loop, and around plain code. Where SIGHUP is ignored (nohup), it stays so and the run goes on.
"""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def _select_heeded_signals(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


async def run_until_terminated(work: Awaitable[None]) -> None:
    """Await ``work``; SIGTERM or SIGHUP cancels it, also where a shell has SIGINT ignored.

    Only the first of them counts: a terminal and its shell both send SIGHUP, a service manager sends both
    signals, and the checkpoint must not be cut short.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        if not stopped and not task.cancelling():  # not after a Ctrl-C either
            stopped = True
            task.cancel()

    earlier = {number: signal.getsignal(number) for number in _select_heeded_signals(STOP_SIGNALS)}
    for number in earlier:
        loop.add_signal_handler(number, stop)  # in place of Ray's own
    try:
        await work
    finally:
        for number, handler in earlier.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Signals that end a run wait until the end, and are then raised as ever: nothing is torn in two."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    earlier = {
        number: signal.signal(number, lambda *signal_arguments: came.append(signal_arguments))
        for number in _select_heeded_signals((signal.SIGINT, *STOP_SIGNALS))
    }
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0][0])


@contextmanager
def interrupt_on_termination() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt inside, once; nothing is changed in a thread, which gets no
    signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = True
            raise KeyboardInterrupt

    earlier = {number: signal.signal(number, interrupt) for number in _select_heeded_signals(STOP_SIGNALS)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def shield_children_from_hangup() -> Iterator[None]:
    """Processes that are started inside are not ended by a terminal that is closed: whoever started them ends
    them, after the checkpoint. Handlers that somebody sets inside are taken back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, also through exec
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
