"""The local panel together with the judges behind endpoints: reply by reply, or a group at once.

Invariant: what the local panel says of a reply that cannot be judged holds on every axis, and such a reply
loses every comparison by that rule. A second opinion is noted and changes nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from time import perf_counter
from typing import Generic, TypeVar

from conf.judging import Axis
from judge.llm.endpoint_judge import AxisJudge, AxisVerdicts, EndpointJudge
from judge.panel import Panel, combine_reward
from judge.types import JudgeTask, ReplyJudgement, ScoredVerdict
from rollout.types import Reply, Speech

_Sound = TypeVar("_Sound")


def format_case(reply: Reply) -> str:
    """A reply's name in the log of calls, as the rollout records have its parts."""
    return f"{reply.prompt_id}/{reply.index} v{reply.policy_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondJudge(Generic[_Sound]):
    """Another judge, and the share of the replies that it is asked about."""

    judge: AxisJudge[_Sound]
    share: float

    def is_asked_about(self, reply: Reply) -> bool:
        """Whether it is asked about this one: by chance, but always the same."""
        name = f"{reply.prompt_id} {reply.index} {reply.policy_version}"
        return int.from_bytes(sha256(name.encode()).digest()[:6]) < self.share * 2**48


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointAxes(Generic[_Sound]):
    """Puts the axes of endpoints onto what the local panel said; holds no sound, only hands it on.

    Example:
        judged = await axes.score(panel.score(reply, speech, task), reply, speech, task)
    """

    judge: AxisJudge[_Sound]
    second: SecondJudge[_Sound] | None
    weights: Mapping[Axis, float]

    async def score(self, local: ReplyJudgement, reply: Reply, speech: _Sound, task: JudgeTask) -> ReplyJudgement:
        """Judge one reply. Errors: those of the judges."""
        if local.transcript is None:  # floor, cut off or not recognised: the same on every axis
            return local
        start = perf_counter()
        verdicts, second = await asyncio.gather(
            self.judge.score(local.transcript, speech, task, format_case(reply)),
            self._ask_second_judge(local.transcript, reply, speech, task),
        )
        return self._add_verdicts(local, verdicts, second, perf_counter() - start)

    async def compare(
        self, local: Sequence[ReplyJudgement], replies: Sequence[Reply], speeches: Sequence[_Sound], task: JudgeTask
    ) -> list[ReplyJudgement]:
        """Judge all replies to one prompt against each other, in order. Errors: those of the judges."""
        transcripts = {
            i: judgement.transcript for i, judgement in enumerate(local) if judgement.transcript is not None
        }
        if not transcripts:
            return list(local)
        start = perf_counter()
        unjudgeable = sum(
            judgement.transcript is None and isinstance(judgement.reward, ScoredVerdict) for judgement in local
        )
        verdicts, seconds = await asyncio.gather(
            self.judge.compare(
                list(transcripts.values()), [speeches[i] for i in transcripts], unjudgeable, task, replies[0].prompt_id
            ),
            asyncio.gather(
                *(self._ask_second_judge(text, replies[i], speeches[i], task) for i, text in transcripts.items())
            ),
        )
        judged = list(local)
        for i, axis_verdicts, second in zip(transcripts, verdicts, seconds, strict=True):
            judged[i] = self._add_verdicts(local[i], axis_verdicts, second, perf_counter() - start)
        return judged

    async def _ask_second_judge(self, transcript: str, reply: Reply, speech: _Sound, task: JudgeTask) -> AxisVerdicts:
        if self.second is None or not self.second.is_asked_about(reply):
            return {}
        return await self.second.judge.score(transcript, speech, task, format_case(reply))

    def _add_verdicts(
        self, local: ReplyJudgement, verdicts: AxisVerdicts, second: AxisVerdicts, seconds: float
    ) -> ReplyJudgement:
        axes = {**local.axes, **verdicts}
        figures = {**local.figures, "latency_s": local.figures["latency_s"] + seconds}
        return replace(
            local, axes=axes, reward=combine_reward(axes, local, self.weights), figures=figures, second=second
        )


class ApiPanel:
    """Both in one process. Any number of replies may be scored at once; the recogniser hears them one by one.

    Example:
        panel = build_api_panel(config.judge, folder, model, await probe_endpoints(config.judge), log=None)
        judged = await panel.score(reply, speech, task)
    """

    def __init__(self, panel: Panel, endpoint: EndpointJudge, second: SecondJudge[Speech] | None) -> None:
        self.endpoint = endpoint
        self._panel = panel
        self._axes = EndpointAxes(judge=endpoint, second=second, weights=panel.weights)
        self._recogniser_lock = asyncio.Lock()

    async def score(
        self, reply: Reply, speech: Speech, task: JudgeTask, known_transcript: str | None = None
    ) -> ReplyJudgement:
        """Judge one reply: the local panel in a thread, then the endpoint with what was heard.

        ``known_transcript``: its transcript where one is known.

        ValueError: an unknown style; the user's audio, a cache or key that cannot be used.
        OSError: the log is not writable.
        """
        local = await self._judge_locally(reply, speech, task, known_transcript)
        return await self._axes.score(local, reply, speech, task)

    async def compare(
        self, replies: Sequence[Reply], speeches: Sequence[Speech], task: JudgeTask
    ) -> list[ReplyJudgement]:
        """Judge all replies to one prompt against each other, in order. Errors as in ``score``."""
        local = [await self._judge_locally(*pair, task) for pair in zip(replies, speeches, strict=True)]
        return await self._axes.compare(local, replies, speeches, task)

    async def _judge_locally(
        self, reply: Reply, speech: Speech, task: JudgeTask, known_transcript: str | None = None
    ) -> ReplyJudgement:
        async with self._recogniser_lock:
            return await asyncio.to_thread(self._panel.score, reply, speech, task, known_transcript)
