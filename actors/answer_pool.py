"""Workers that answer questions about replies: each goes to whoever is free and is answered within its time.

Invariant: no answer is made up for one that does not come; a worker that stays away is replaced.
"""

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

from ray.exceptions import ObjectLostError, RayError, RayTaskError

from actors.errors import RunError, describe_error
from actors.pool import ActorPool
from judge.types import MissingVerdict


class SpeechLost(RunError):
    """A reply's speech went with the worker that made it: sample the reply again."""


class AnswerLate(Exception):
    """No answer in time, and why."""


class AnswerPool(ActorPool):
    """Workers with ``slots`` questions in hand each.

    An answer has ``deadline`` seconds from the moment a worker takes it. Workers that can talk while they work
    are asked for a sign of life every ``alive_s`` seconds.
    """

    def __init__(
        self, role: str, count: int, *, deadline: float, slots: int = 1, alive_s: float = inf, **pool_arguments: Any
    ) -> None:
        super().__init__(role, count, **pool_arguments)
        self._deadline, self._slots, self._alive_s = deadline, slots, alive_s
        self._renewing = [asyncio.Lock() for _ in range(count)]
        self._idle: asyncio.Queue[int] = asyncio.Queue()
        self._late: set[asyncio.Task[None]] = set()
        self._broken: RunError | None = None
        self._busy_s = 0.0
        for index in list(range(count)) * slots:
            self._idle.put_nowait(index)

    @property
    def busy_s(self) -> float:
        """Seconds so far that a place was taken, on average over all places."""
        return self._busy_s / (self._slots * len(self.handles))

    async def ask(self, ask: Callable[[Any], Any], what: str) -> Any:
        """The answer of the next worker that is free, or of its replacement.

        AnswerLate. SpeechLost: the speech in question is gone. RestartBudgetSpent: workers keep dying.
        """
        while True:
            try:
                index = await asyncio.wait_for(self._idle.get(), 20 * self._deadline)
            except TimeoutError:
                raise AnswerLate(f"no worker free within {20 * self._deadline:g} s") from None
            if self._broken is not None:
                raise self._broken
            start = asyncio.get_running_loop().time()
            handle = self.handles[index]
            call = asyncio.ensure_future(_await_answer(ask(handle)))
            hung = not await self._wait_while_alive(handle, call)
            self._busy_s += asyncio.get_running_loop().time() - start
            if hung:
                await self.replace_once(index, handle, f"no sign of life within {self._alive_s:g} s")
                self._idle.put_nowait(index)
                continue
            if not call.done():
                self._await_late_worker(index, handle, call)
                raise AnswerLate("deadline")
            error = call.exception()
            if isinstance(error, RayError) and not isinstance(error, ObjectLostError):
                if isinstance(error, RayTaskError) and isinstance(error.cause, RunError):
                    raise error.cause  # no worker could do better
                if isinstance(error, RayTaskError) and isinstance(error.cause, ValueError):
                    raise RunError(f"judging {what}: {error.cause}")
                await self.replace_once(index, handle, describe_error(error))
                self._idle.put_nowait(index)
                continue
            self._idle.put_nowait(index)
            if isinstance(error, ObjectLostError):
                raise SpeechLost(f"speech of replies to {what}") from error
            return call.result()

    async def _wait_while_alive(self, handle: Any, call: "asyncio.Future[Any]") -> bool:
        """Wait for the call, at most until its deadline. False: its worker hangs."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._deadline
        while not call.done() and (left := until - loop.time()) > 0:
            await asyncio.wait({call}, timeout=min(left, self._alive_s))
            if left > self._alive_s and not call.done():
                sign = asyncio.ensure_future(_await_answer(handle.hello.remote()))
                await asyncio.wait({call, sign}, timeout=self._alive_s, return_when=asyncio.FIRST_COMPLETED)
                if not call.done() and (not sign.done() or sign.exception() is not None):
                    return False
        return True

    def _await_late_worker(self, index: int, handle: Any, call: "asyncio.Future[Any]") -> None:
        """A worker past its deadline gets the same time again to come back, then it is replaced."""

        async def wait() -> None:
            finished, _ = await asyncio.wait({call}, timeout=self._deadline)
            if not finished or call.exception() is not None:
                try:
                    await self.replace_once(index, handle, f"no answer within {2 * self._deadline:g} s")
                except RunError as error:
                    self._broken = error  # the next question raises it
            self._idle.put_nowait(index)

        task = asyncio.create_task(wait())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def replace_once(self, index: int, handle: Any, reason: str) -> None:
        """Replace the worker that ``handle`` is, once, however many questions were lost with it."""
        async with self._renewing[index]:
            if self.handles[index] is handle:
                await self.replace_worker(index, reason)


def build_late_verdict(late: AnswerLate) -> MissingVerdict:
    """In place of the verdict that did not come."""
    return MissingVerdict(judge="pool", reason=str(late), kind="deadline", retryable=True)


async def _await_answer(reference: Awaitable[Any]) -> Any:
    return await reference
