"""Judge replicas: each reply, or group, to whoever is free, and a verdict within its time.

Invariant: a verdict that does not come is Missing, never a number; a judge that stays away is replaced.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

from ray.exceptions import ObjectLostError, RayError, RayTaskError

from actors.errors import RunError, describe_error
from actors.pool import WORKER_CALL_TIMEOUT_S, ActorPool
from conf.schema import Config
from judge.llm.build import compares_replies, count_worker_slots, verdict_deadline
from judge.llm.canary import CanaryResult
from judge.rules.voice import SpeechNorms, VoiceSample
from judge.types import JudgeTask, MissingVerdict, ReplyJudgement
from rollout.types import Reply


class SpeechLost(RunError):
    """A reply's speech went with the worker that made it: sample the reply again."""


class _JudgeLate(Exception):
    """No answer in time, and why."""


class JudgePool(ActorPool):
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
        **pool_arguments: Any,
    ) -> None:
        super().__init__(role, count, **pool_arguments)
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

    async def wait_until_ready(self, handle: Any) -> None:
        """A fresh judge knows what the others do before it is given work."""
        await super().wait_until_ready(handle)
        if self.voice is not None:
            await self._tell_voice(handle)

    async def _tell_voice(self, handle: Any) -> None:
        try:
            await asyncio.wait_for(_await_answer(handle.know_voice.remote(self.voice)), WORKER_CALL_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            raise RunError(f"judge worker did not take the voice: {describe_error(error)}") from error

    async def score(self, reply: Reply, speech: list[Any], task: JudgeTask, audio: Path | None) -> ReplyJudgement:
        """The verdicts, or Missing("deadline").

        SpeechLost: its maker died. BudgetSpent: judges keep dying.
        """
        try:
            judged: ReplyJudgement = await self._ask_free_judge(
                lambda judge: judge.score.remote(reply, speech[0], task, audio), reply.prompt_id
            )
        except _JudgeLate as late:
            return build_missing_verdict(reply, self._axes, str(late))
        return judged

    async def compare(
        self,
        replies: Sequence[Reply],
        speeches: Sequence[list[Any]],
        task: JudgeTask,
        audio: Sequence[Path | None],
    ) -> list[ReplyJudgement]:
        """The verdicts on all replies to a prompt, in order. As in ``score``; a group is late as a whole."""
        try:
            judged: list[ReplyJudgement] = await self._ask_free_judge(
                lambda judge: judge.compare.remote(replies, task, audio, *(speech[0] for speech in speeches)),
                replies[0].prompt_id,
            )
        except _JudgeLate as late:
            return [build_missing_verdict(reply, self._axes, str(late)) for reply in replies]
        return judged

    async def sample_voice(self, reply: Reply, speech: list[Any]) -> VoiceSample | None:
        """What a reply shows of its voice; None: nothing, or nobody could say in time, or its maker died."""
        try:
            voice_sample: VoiceSample | None = await self._ask_free_judge(
                lambda judge: judge.sample_voice.remote(reply.text, speech[0]), reply.prompt_id
            )
        except (_JudgeLate, SpeechLost):
            return None
        return voice_sample

    async def canaries(self, task: JudgeTask, transcript: str, clips: Sequence[Path]) -> list[CanaryResult]:
        """What the API judge makes of replies that deserve nothing. RunError: no answer in time."""
        try:
            results: list[CanaryResult] = await self._ask_free_judge(
                lambda judge: judge.canaries.remote(task, transcript, clips), "the canaries"
            )
        except _JudgeLate as late:
            raise RunError(f"the judge's canaries were not judged: {late}") from None
        return results

    async def _ask_free_judge(self, ask: Callable[[Any], Any], what: str) -> Any:
        """The answer of the next judge that is free, or of its replacement."""
        while True:
            try:
                index = await asyncio.wait_for(self._idle.get(), 20 * self._deadline)
            except TimeoutError:
                raise _JudgeLate(f"no judge free within {20 * self._deadline:g} s") from None
            if self._broken is not None:
                raise self._broken
            start = asyncio.get_running_loop().time()
            handle = self.handles[index]
            call = asyncio.ensure_future(_await_answer(ask(handle)))
            hung = not await self._wait_while_alive(handle, call)
            self.busy_s += asyncio.get_running_loop().time() - start
            if hung:
                await self._replace_once(index, handle, f"no sign of life within {self._alive_s:g} s")
                self._idle.put_nowait(index)
                continue
            if not call.done():
                self._await_late_judge(index, handle, call)
                raise _JudgeLate("deadline")
            error = call.exception()
            if isinstance(error, RayError) and not isinstance(error, ObjectLostError):
                if isinstance(error, RayTaskError) and isinstance(error.cause, RunError):
                    raise error.cause  # no judge could do better
                if isinstance(error, RayTaskError) and isinstance(error.cause, ValueError):
                    raise RunError(f"judging {what}: {error.cause}")
                await self._replace_once(index, handle, describe_error(error))
                self._idle.put_nowait(index)
                continue
            self._idle.put_nowait(index)
            if isinstance(error, ObjectLostError):
                raise SpeechLost(f"speech of replies to {what}") from error
            return call.result()

    async def _wait_while_alive(self, handle: Any, call: "asyncio.Future[Any]") -> bool:
        """Wait for the call, at most until its deadline. False: its judge hangs."""
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

    def _await_late_judge(self, index: int, handle: Any, call: "asyncio.Future[Any]") -> None:
        """A judge past its deadline gets the same time again to come back, then it is replaced."""

        async def wait() -> None:
            done, _ = await asyncio.wait({call}, timeout=self._deadline)
            if not done or call.exception() is not None:
                try:
                    await self._replace_once(index, handle, f"no answer within {2 * self._deadline:g} s")
                except RunError as error:
                    self._broken = error  # the next ``score`` raises it
            self._idle.put_nowait(index)

        task = asyncio.create_task(wait())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _replace_once(self, index: int, handle: Any, reason: str) -> None:
        """Replace the judge that ``handle`` is, once, however many of its replies were lost with it."""
        async with self._renewing[index]:
            if self.handles[index] is handle:
                await self.replace_worker(index, reason)


def build_judge_pool(config: Config, create: Callable[[int], Any], **common: Any) -> JudgePool:
    """The judges of these settings: as many, as busy and as patient as they say."""
    judge, size = config.judge, config.rollout.group_size
    return JudgePool(
        "judge",
        judge.workers,
        create=create,
        axes=judge.axes,
        deadline=verdict_deadline(judge, size),
        slots=count_worker_slots(judge),
        together=compares_replies(judge, size),
        alive_s=WORKER_CALL_TIMEOUT_S if judge.api_axes else inf,  # a local judge cannot talk while it works
        **common,
    )


def build_missing_verdict(reply: Reply, axes: Sequence[str], reason: str) -> ReplyJudgement:
    """No verdict on any axis, and why."""
    verdict = MissingVerdict(judge="pool", reason=reason, kind="deadline", retryable=True)
    return ReplyJudgement(
        prompt_id=reply.prompt_id,
        index=reply.index,
        axes=dict.fromkeys(axes, verdict),
        reward=verdict,
        transcript=None,
    )


async def _await_answer(reference: Awaitable[Any]) -> Any:
    return await reference
