"""The judges of a run as the driver asks them: local workers, then the endpoints for the axes that are theirs.

Invariant: a verdict that does not come is Missing, never a number.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from actors.answer_pool import AnswerLate, AnswerPool, SpeechLost, build_late_verdict
from actors.errors import RunError, describe_error
from actors.pool import WORKER_CALL_TIMEOUT_S
from conf.schema import Config
from judge.llm.build import compares_replies
from judge.llm.endpoint_judge import AxisJudge
from judge.llm.panel import EndpointAxes, SecondJudge
from judge.rules.voice import SpeechNorms, VoiceSample
from judge.types import JudgeTask, ReplyJudgement
from rollout.types import Reply


class JudgePool(AnswerPool):
    """Workers that hear a reply and apply the local rules, one at a time.

    ``endpoints``: who is asked about the other axes. ``together``: it compares the replies to a prompt.
    """

    voice: SpeechNorms | None = None  # that every judge knows, a fresh one too

    def __init__(
        self,
        role: str,
        count: int,
        *,
        axes: Sequence[str],
        endpoints: EndpointAxes[list[Any]] | None = None,
        together: bool = False,
        **pool_arguments: Any,
    ) -> None:
        super().__init__(role, count, **pool_arguments)
        self._axes, self._endpoints = axes, endpoints
        self.together = together

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
            await asyncio.wait_for(handle.know_voice.remote(self.voice), WORKER_CALL_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            raise RunError(f"judge worker did not take the voice: {describe_error(error)}") from error

    async def score(self, reply: Reply, speech: list[Any], task: JudgeTask, audio: Path | None) -> ReplyJudgement:
        """The verdicts, or Missing("deadline"); the sound is kept at ``audio`` when given.

        SpeechLost: sample the reply again. RestartBudgetSpent: judges keep dying.
        """
        local = await self._score_locally(reply, speech, task, audio)
        return local if self._endpoints is None else await self._endpoints.score(local, reply, speech, task)

    async def compare(
        self,
        replies: Sequence[Reply],
        speeches: Sequence[list[Any]],
        task: JudgeTask,
        audio: Sequence[Path | None],
    ) -> list[ReplyJudgement]:
        """The verdicts on all replies to a prompt, held against each other, in order. As in ``score``."""
        assert self._endpoints is not None, "only an endpoint compares"
        local = await asyncio.gather(*map(self._score_locally, replies, speeches, [task] * len(replies), audio))
        return await self._endpoints.compare(local, replies, speeches, task)

    async def _score_locally(
        self, reply: Reply, speech: list[Any], task: JudgeTask, audio: Path | None
    ) -> ReplyJudgement:
        try:
            judged: ReplyJudgement = await self.ask(
                lambda judge: judge.score.remote(reply, speech[0], task, audio), reply.prompt_id
            )
        except AnswerLate as late:
            return build_missing_verdict(reply, self._axes, late)
        return judged

    async def sample_voice(self, reply: Reply, speech: list[Any]) -> VoiceSample | None:
        """What a reply shows of its voice; None: nothing, no answer in time, or its sound was lost."""
        try:
            voice_sample: VoiceSample | None = await self.ask(
                lambda judge: judge.sample_voice.remote(reply.text, speech[0]), reply.prompt_id
            )
        except (AnswerLate, SpeechLost):
            return None
        return voice_sample


def build_judge_pool(
    config: Config, create: Callable[[int], Any], endpoints: Sequence[AxisJudge[list[Any]]], **common: Any
) -> JudgePool:
    """The local judges of these settings. ``endpoints``: of ``judge.api`` and ``judge.second``, where there are."""
    axes = None
    if endpoints:
        judge, *others = endpoints
        second = SecondJudge(judge=others[0], share=config.judge.second.share) if others else None
        axes = EndpointAxes(judge=judge, second=second, weights=config.judge.weights)
    return JudgePool(
        "judge",
        config.judge.workers,
        create=create,
        axes=config.judge.axes,
        endpoints=axes,
        together=compares_replies(config.judge, config.rollout.group_size),
        deadline=config.judge.deadline_s,
        **common,
    )


def build_missing_verdict(reply: Reply, axes: Sequence[str], late: AnswerLate) -> ReplyJudgement:
    """No verdict on any axis, and why."""
    verdict = build_late_verdict(late)
    return ReplyJudgement(
        prompt_id=reply.prompt_id,
        index=reply.index,
        axes=dict.fromkeys(axes, verdict),
        reward=verdict,
        transcript=None,
    )
