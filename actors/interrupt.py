"""SIGTERM, which schedulers send, does what Ctrl-C does."""

import asyncio
import signal
from collections.abc import Awaitable


async def until_terminated(work: Awaitable[None]) -> None:
    """Await ``work``; SIGTERM cancels it, also where a shell has SIGINT ignored."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # in place of Ray's own
    await work
