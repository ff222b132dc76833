"""Judge replicas: each reply to whoever is free, and a verdict within its time.

Invariant: a verdict that does not come is Missing, never a number; a judge that stays away is replaced.
"""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from ray.exceptions import ObjectLostError, RayError

from actors.errors import RunError, reason_of
from actors.pool import Pool
from judge.types import Judged, Missing, Task
from rollout.types import Reply


class SpeechLost(RunError):
    """A reply's speech went with the worker that made it: sample the reply again."""


class JudgePool(Pool):
    """Judges, ``slots`` replies at a time each.

    A verdict has ``deadline`` seconds from the moment a judge takes it.
    """

    def __init__(self, role: str, count: int, *, deadline: float, slots: int = 1, **more: Any) -> None:
        super().__init__(role, count, **more)
        self._deadline = deadline
        self._slots = slots
        self._renewing = [asyncio.Lock() for _ in range(count)]
        self._idle: asyncio.Queue[int] = asyncio.Queue()
        self._late: set[asyncio.Task[None]] = set()
        self._broken: RunError | None = None
        self.busy_s = 0.0
        for index in list(range(count)) * slots:
            self._idle.put_nowait(index)

    @property
    def places(self) -> int:
        """Replies that all judges together have in hand when they are busy."""
        return self._slots * len(self.handles)

    async def score(self, reply: Reply, speech: list[Any], task: Task, audio: Path | None) -> Judged:
        """The verdicts, or Missing("deadline").

        SpeechLost: its maker died. BudgetSpent: judges keep dying.
        """
        while True:
            try:
                index = await asyncio.wait_for(self._idle.get(), 20 * self._deadline)
            except TimeoutError:
                return missing(reply, f"no judge free within {20 * self._deadline:g} s")
            if self._broken is not None:
                raise self._broken
            start = asyncio.get_running_loop().time()
            handle = self.handles[index]
            call = asyncio.ensure_future(_answer(handle.score.remote(reply, speech[0], task, audio)))
            done, _ = await asyncio.wait({call}, timeout=self._deadline)
            self.busy_s += asyncio.get_running_loop().time() - start
            if not done:
                self._later(index, handle, call)
                return missing(reply, "deadline")
            error = call.exception()
            if isinstance(error, RayError) and not isinstance(error, ObjectLostError):
                await self._renew(index, handle, reason_of(error))
                self._idle.put_nowait(index)
                continue
            self._idle.put_nowait(index)
            if isinstance(error, ObjectLostError):
                raise SpeechLost(f"speech of {reply.prompt_id}/{reply.index}") from error
            return call.result()

    def _later(self, index: int, handle: Any, call: "asyncio.Future[Judged]") -> None:
        """A judge past its deadline gets the same time again to come back, then it is replaced."""

        async def wait() -> None:
            done, _ = await asyncio.wait({call}, timeout=self._deadline)
            if not done or call.exception() is not None:
                try:
                    await self._renew(index, handle, f"no answer within {2 * self._deadline:g} s")
                except RunError as error:
                    self._broken = error  # the next ``score`` raises it
            self._idle.put_nowait(index)

        task = asyncio.create_task(wait())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _renew(self, index: int, handle: Any, reason: str) -> None:
        """Replace the judge that ``handle`` is, once, however many of its replies were lost with it."""
        async with self._renewing[index]:
            if self.handles[index] is handle:
                await self.replace(index, reason)


def missing(reply: Reply, reason: str) -> Judged:
    """No verdict on any axis, and why."""
    verdict = Missing(judge="pool", reason=reason, kind="deadline", retryable=True)
    axes = {"semantic": verdict, "acoustic": verdict}
    return Judged(prompt_id=reply.prompt_id, index=reply.index, axes=axes, reward=verdict, transcript=None)


async def _answer(reference: Awaitable[Judged]) -> Judged:
    return await reference
