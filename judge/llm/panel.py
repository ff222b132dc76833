"""A panel that leaves some axes to judges behind an endpoint: reply by reply, or a group at once.

Invariant: the axes that the endpoint is asked about are scored by it or are Missing; no local rule stands in
for it. What the local panel says of a reply that cannot be judged holds on every axis, and such a reply loses
every comparison by that rule. A second opinion is noted and changes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TypeVar

from judge.llm.canary import CanaryResult, judge_canaries
from judge.llm.pairwise import Candidate, Contest, add_floor_wins, score_unopposed
from judge.llm.reply_judge import OpenAIJudge
from judge.llm.rubric import Rubric
from judge.panel import Panel
from judge.types import JudgeTask, ReplyJudgement, ScoredVerdict, Verdict
from rollout.types import Reply, Speech
from speech.sound import audio

MAX_USER_AUDIO_S = 3600.0  # seconds; the manifest's own bound was checked when it was read

_Result = TypeVar("_Result")
ContestJudge = Callable[[Contest], Awaitable[list[Verdict]]]


def format_case(reply: Reply) -> str:
    """A reply's name in the log of calls, as the rollout records have its parts."""
    return f"{reply.prompt_id}/{reply.index} v{reply.policy_version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondJudge:
    """Another judge, and the share of the replies that it is asked about."""

    judge: OpenAIJudge
    share: float

    def is_asked_about(self, reply: Reply) -> bool:
        """Whether it is asked about this one: by chance, but always the same."""
        name = f"{reply.prompt_id} {reply.index} {reply.policy_version}"
        return int.from_bytes(sha256(name.encode()).digest()[:6]) < self.share * 2**48


class ApiPanel:
    """Scores replies. Any number may be scored at once; the recogniser hears them one by one.

    ``rubrics``: axis -> what the endpoint is asked about it; ``fresh``: the judge without its cache;
    ``comparing``: how a group of two and more is held against each other.

    Example:
        panel = build_api_panel(config.judge, folder, voice, probed_endpoints, access, log=None)
        judged = await panel.score(reply, speech, task)
    """

    def __init__(
        self,
        panel: Panel,
        judge: OpenAIJudge,
        rubrics: Mapping[str, Rubric],
        *,
        fresh: OpenAIJudge,
        comparing: ContestJudge | None,
        second: SecondJudge | None,
    ) -> None:
        self.judge = judge
        self._panel, self._rubrics = panel, rubrics
        self._fresh, self._comparing, self._second = fresh, comparing, second
        self._recogniser_lock = asyncio.Lock()

    async def score(
        self, reply: Reply, speech: Speech, task: JudgeTask, known_transcript: str | None = None
    ) -> ReplyJudgement:
        """Judge one reply: the local panel in a thread, then the endpoint with what was heard.

        ``known_transcript``: its transcript where one is known.

        ValueError: an unknown style; the user's audio, a cache or key that cannot be used.
        OSError: the log is not writable.
        """
        start = perf_counter()
        local = await self._judge_locally(reply, speech, task, known_transcript)
        if local.transcript is None:  # floor, cut off or not recognised: the same on every axis
            return local
        verdicts, second = await asyncio.gather(
            self._score_axes(self.judge, local.transcript, speech, task, format_case(reply)),
            self._ask_second_judge(reply, local.transcript, speech, task),
        )
        return self._add_api_verdicts(local, verdicts, second, perf_counter() - start)

    async def compare(
        self, replies: Sequence[Reply], speeches: Sequence[Speech], task: JudgeTask
    ) -> list[ReplyJudgement]:
        """Judge all replies to one prompt against each other, in order. Errors as in ``score``."""
        start = perf_counter()
        local = [await self._judge_locally(*pair, task) for pair in zip(replies, speeches, strict=True)]
        with_words = [i for i, judged_locally in enumerate(local) if judged_locally.transcript is not None]
        floors = sum(
            judged_locally.transcript is None and isinstance(judged_locally.reward, ScoredVerdict)
            for judged_locally in local
        )
        candidates = [Candidate(transcript=str(local[i].transcript), speech=speeches[i]) for i in with_words]
        seconds = asyncio.gather(
            *(self._ask_second_judge(replies[i], str(local[i].transcript), speeches[i], task) for i in with_words)
        )
        by_axis = await _gather_by_name(
            {
                axis: self._compare_on_axis(rubric, candidates, floors, task, replies[0].prompt_id)
                for axis, rubric in self._rubrics.items()
            }
        )
        judged = list(local)
        for place, (i, second) in enumerate(zip(with_words, await seconds, strict=True)):
            own_verdicts = {axis: verdicts[place] for axis, verdicts in by_axis.items()}
            judged[i] = self._add_api_verdicts(local[i], own_verdicts, second, perf_counter() - start)
        return judged

    async def canaries(self, task: JudgeTask, transcript: str, speech: Speech) -> list[CanaryResult]:
        """Put replies that deserve nothing, made of this one, to the judge, past its cache."""
        rubrics = list(self._rubrics.values())
        return await judge_canaries(self._fresh, rubrics, task, transcript, speech, self._read_user_speech(task))

    async def _judge_locally(
        self, reply: Reply, speech: Speech, task: JudgeTask, known_transcript: str | None = None
    ) -> ReplyJudgement:
        async with self._recogniser_lock:
            return await asyncio.to_thread(self._panel.score, reply, speech, task, known_transcript)

    def _read_user_speech(self, task: JudgeTask) -> Speech | None:
        wanted = task.user_audio and any(rubric.hears_user for rubric in self._rubrics.values())
        return read_user_speech(task.user_audio) if wanted else None

    async def _score_axes(
        self, judge: OpenAIJudge, transcript: str, speech: Speech, task: JudgeTask, case: str
    ) -> dict[str, Verdict]:
        user = self._read_user_speech(task)
        return await _gather_by_name(
            {
                axis: judge.score(rubric, task, transcript, speech, user, case=case)
                for axis, rubric in self._rubrics.items()
            }
        )

    async def _ask_second_judge(
        self, reply: Reply, transcript: str, speech: Speech, task: JudgeTask
    ) -> dict[str, Verdict]:
        if self._second is None or not self._second.is_asked_about(reply):
            return {}
        return await self._score_axes(self._second.judge, transcript, speech, task, format_case(reply))

    async def _compare_on_axis(
        self, rubric: Rubric, candidates: Sequence[Candidate], floors: int, task: JudgeTask, case: str
    ) -> list[Verdict]:
        assert self._comparing is not None, "the settings ask for no comparison"
        if len(candidates) < 2:
            return [score_unopposed(floors, self.judge.scale) for _ in candidates]
        contest = Contest(
            rubric=rubric, task=task, candidates=candidates, user_audio=self._read_user_speech(task), case=case
        )
        verdicts = await self._comparing(contest)
        return add_floor_wins(verdicts, floors, self.judge.scale)

    def _add_api_verdicts(
        self, local: ReplyJudgement, api_verdicts: Mapping[str, Verdict], second: Mapping[str, Verdict], seconds: float
    ) -> ReplyJudgement:
        axes = {**local.axes, **api_verdicts}
        figures = {**local.figures, "latency_s": seconds}
        return replace(local, axes=axes, reward=self.reward(axes, local), figures=figures, second=second)

    def reward(self, axes: Mapping[str, Verdict], local: ReplyJudgement) -> Verdict:
        """See ``Panel.reward``."""
        return self._panel.reward(axes, local)


@lru_cache(maxsize=64)
def read_user_speech(clips: tuple[Path, ...]) -> Speech:
    """What the user said, at the first clip's rate. ValueError: a clip that cannot be read."""
    rate = audio.read_audio_header(clips[0]).sample_rate
    return Speech(wave=audio.read_clips(clips, rate, MAX_USER_AUDIO_S), sample_rate=rate)


async def _gather_by_name(awaitables: Mapping[str, Awaitable[_Result]]) -> dict[str, _Result]:
    return dict(zip(awaitables, await asyncio.gather(*awaitables.values()), strict=True))
