"""Judge replicas: each reply, or group, to whoever is free, and a verdict within its time.

Invariant: a verdict that does not come is Missing, never a number; a judge that stays away is replaced.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from ray.exceptions import ObjectLostError, RayError, RayTaskError

from actors.errors import RunError, reason_of
from actors.pool import CALL_S, Pool
from conf.schema import Config
from judge.api import compares, slots, verdict_deadline
from judge.canary import CanaryResult
from judge.types import Judged, Missing, Task
from judge.voice import SpeechNorms, VoiceSample
from rollout.types import Reply


class SpeechLost(RunError):
    """A reply's speech went with the worker that made it: sample the reply again."""


class _Late(Exception):
    """No answer in time, and why."""


class JudgePool(Pool):
    """Judges with ``slots`` things in hand each: replies or, when they are judged ``together``, groups.

    An answer has ``deadline`` seconds from the moment a judge takes it. Judges that can talk while they work
    are asked for a sign of life every ``alive_s`` seconds.
    """

    voice: SpeechNorms | None = None  # that every judge knows, a fresh one too

    def __init__(
        self,
        role: str,
        count: int,
        *,
        axes: Sequence[str],
        deadline: float,
        slots: int = 1,
        together: bool = False,
        alive_s: float = inf,
        **more: Any,
    ) -> None:
        super().__init__(role, count, **more)
        self._axes, self._deadline = axes, deadline
        self._slots, self._alive_s = slots, alive_s
        self.together = together
        self._renewing = [asyncio.Lock() for _ in range(count)]
        self._idle: asyncio.Queue[int] = asyncio.Queue()
        self._late: set[asyncio.Task[None]] = set()
        self._broken: RunError | None = None
        self.busy_s = 0.0
        for index in list(range(count)) * slots:
            self._idle.put_nowait(index)

    @property
    def places(self) -> int:
        """What all judges together have in hand when they are busy."""
        return self._slots * len(self.handles)

    async def know_voice(self, norms: SpeechNorms) -> None:
        """Tell every judge how the policy speaks. RunError: one does not take it."""
        self.voice = norms
        await asyncio.gather(*(self._tell_voice(handle) for handle in self.handles))

    async def ready(self, handle: Any) -> None:
        """A fresh judge knows what the others do before it is given work."""
        await super().ready(handle)
        if self.voice is not None:
            await self._tell_voice(handle)

    async def _tell_voice(self, handle: Any) -> None:
        try:
            await asyncio.wait_for(_answer(handle.know_voice.remote(self.voice)), CALL_S)
        except (RayError, TimeoutError) as error:
            raise RunError(f"judge worker did not take the voice: {reason_of(error)}") from error

    async def score(self, reply: Reply, speech: list[Any], task: Task, audio: Path | None) -> Judged:
        """The verdicts, or Missing("deadline").

        SpeechLost: its maker died. BudgetSpent: judges keep dying.
        """
        try:
            judged: Judged = await self._served(
                lambda judge: judge.score.remote(reply, speech[0], task, audio), reply.prompt_id
            )
        except _Late as late:
            return missing(reply, self._axes, str(late))
        return judged

    async def compare(
        self,
        replies: Sequence[Reply],
        speeches: Sequence[list[Any]],
        task: Task,
        audio: Sequence[Path | None],
    ) -> list[Judged]:
        """The verdicts on all replies to a prompt, in order. As in ``score``; a group is late as a whole."""
        try:
            judged: list[Judged] = await self._served(
                lambda judge: judge.compare.remote(replies, task, audio, *(speech[0] for speech in speeches)),
                replies[0].prompt_id,
            )
        except _Late as late:
            return [missing(reply, self._axes, str(late)) for reply in replies]
        return judged

    async def sample(self, reply: Reply, speech: list[Any]) -> VoiceSample | None:
        """What a reply shows of its voice; None: nothing, or nobody could say in time, or its maker died."""
        try:
            found: VoiceSample | None = await self._served(
                lambda judge: judge.sample.remote(reply.text, speech[0]), reply.prompt_id
            )
        except (_Late, SpeechLost):
            return None
        return found

    async def canaries(self, task: Task, transcript: str, clips: Sequence[Path]) -> list[CanaryResult]:
        """What the API judge makes of replies that deserve nothing. RunError: no answer in time."""
        try:
            found: list[CanaryResult] = await self._served(
                lambda judge: judge.canaries.remote(task, transcript, clips), "the canaries"
            )
        except _Late as late:
            raise RunError(f"the judge's canaries were not judged: {late}") from None
        return found

    async def _served(self, ask: Callable[[Any], Any], what: str) -> Any:
        """The answer of the next judge that is free, or of its replacement."""
        while True:
            try:
                index = await asyncio.wait_for(self._idle.get(), 20 * self._deadline)
            except TimeoutError:
                raise _Late(f"no judge free within {20 * self._deadline:g} s") from None
            if self._broken is not None:
                raise self._broken
            start = asyncio.get_running_loop().time()
            handle = self.handles[index]
            call = asyncio.ensure_future(_answer(ask(handle)))
            hung = not await self._watched(handle, call)
            self.busy_s += asyncio.get_running_loop().time() - start
            if hung:
                await self._renew(index, handle, f"no sign of life within {self._alive_s:g} s")
                self._idle.put_nowait(index)
                continue
            if not call.done():
                self._later(index, handle, call)
                raise _Late("deadline")
            error = call.exception()
            if isinstance(error, RayError) and not isinstance(error, ObjectLostError):
                if isinstance(error, RayTaskError) and isinstance(error.cause, RunError):
                    raise error.cause  # no judge could do better
                if isinstance(error, RayTaskError) and isinstance(error.cause, ValueError):
                    raise RunError(f"judging {what}: {error.cause}")
                await self._renew(index, handle, reason_of(error))
                self._idle.put_nowait(index)
                continue
            self._idle.put_nowait(index)
            if isinstance(error, ObjectLostError):
                raise SpeechLost(f"speech of replies to {what}") from error
            return call.result()

    async def _watched(self, handle: Any, call: "asyncio.Future[Any]") -> bool:
        """Wait for the call, at most until its deadline. False: its judge hangs."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._deadline
        while not call.done() and (left := until - loop.time()) > 0:
            await asyncio.wait({call}, timeout=min(left, self._alive_s))
            if left > self._alive_s and not call.done():
                sign = asyncio.ensure_future(_answer(handle.hello.remote()))
                await asyncio.wait({call, sign}, timeout=self._alive_s, return_when=asyncio.FIRST_COMPLETED)
                if not call.done() and (not sign.done() or sign.exception() is not None):
                    return False
        return True

    def _later(self, index: int, handle: Any, call: "asyncio.Future[Any]") -> None:
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


def judge_pool(config: Config, create: Callable[[int], Any], **common: Any) -> JudgePool:
    """The judges of these settings: as many, as busy and as patient as they say."""
    judge, size = config.judge, config.rollout.group_size
    return JudgePool(
        "judge",
        judge.workers,
        create=create,
        axes=judge.axes,
        deadline=verdict_deadline(judge, size),
        slots=slots(judge),
        together=compares(judge, size),
        alive_s=CALL_S if judge.api_axes else inf,  # a local judge cannot talk while it works
        **common,
    )


def missing(reply: Reply, axes: Sequence[str], reason: str) -> Judged:
    """No verdict on any axis, and why."""
    verdict = Missing(judge="pool", reason=reason, kind="deadline", retryable=True)
    return Judged(
        prompt_id=reply.prompt_id,
        index=reply.index,
        axes=dict.fromkeys(axes, verdict),
        reward=verdict,
        transcript=None,
    )


async def _answer(reference: Awaitable[Any]) -> Any:
    return await reference
