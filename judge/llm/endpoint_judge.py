"""The judge at one endpoint: its verdicts on every axis that it is asked about, reply by reply or a group at once.

Invariant: each axis has a verdict of this endpoint or is Missing; no local rule stands in for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeVar

from judge.llm.canary import CanaryResult, judge_canaries
from judge.llm.pairwise import Candidate, Contest, add_floor_wins, score_unopposed
from judge.llm.reply_judge import OpenAIJudge
from judge.llm.rubric import Rubric
from judge.types import JudgeTask, Verdict
from rollout.types import Speech
from speech.sound import audio

MAX_USER_AUDIO_S = 3600.0  # seconds; the manifest's own bound was checked when it was read

_Result = TypeVar("_Result")
_Sound = TypeVar("_Sound", contravariant=True)
ContestJudge = Callable[[Contest], Awaitable[list[Verdict]]]
AxisVerdicts = dict[str, Verdict]


class AxisJudge(Protocol[_Sound]):
    """``EndpointJudge``, here or in another process; ``_Sound`` is how it is given a reply's sound."""

    async def score(self, transcript: str, speech: _Sound, task: JudgeTask, case: str) -> AxisVerdicts:
        """See ``EndpointJudge.score``."""
        ...

    async def compare(
        self, transcripts: Sequence[str], speeches: Sequence[_Sound], unjudgeable: int, task: JudgeTask, case: str
    ) -> list[AxisVerdicts]:
        """See ``EndpointJudge.compare``."""
        ...


class EndpointJudge:
    """Any number of replies may be judged at once. ``case``: a name of them, for the log of calls.

    ``asked``: axis -> what the endpoint is asked about it; ``fresh``: the judge without its cache;
    ``comparing``: how a group of two and more is held against each other.
    """

    def __init__(
        self, judge: OpenAIJudge, rubrics: Mapping[str, Rubric], *, fresh: OpenAIJudge, comparing: ContestJudge | None
    ) -> None:
        self.judge = judge
        self._asked, self._fresh, self._comparing = rubrics, fresh, comparing

    async def score(self, transcript: str, speech: Speech, task: JudgeTask, case: str) -> AxisVerdicts:
        """Judge one reply by what was heard in it.

        ValueError: the user's audio, a cache or key that cannot be used. OSError: the log is not writable.
        """
        user = self._read_user_speech(task)
        return await _gather_by_name(
            {
                axis: self.judge.score(rubric, task, transcript, speech, user, case=case)
                for axis, rubric in self._asked.items()
            }
        )

    async def compare(
        self, transcripts: Sequence[str], speeches: Sequence[Speech], unjudgeable: int, task: JudgeTask, case: str
    ) -> list[AxisVerdicts]:
        """Judge replies to one prompt against each other, in order. Errors as in ``score``.

        ``unjudgeable``: further replies to it, which cannot be judged and lose every comparison.
        """
        candidates = [
            Candidate(transcript=text, speech=speech) for text, speech in zip(transcripts, speeches, strict=True)
        ]
        by_axis = await _gather_by_name(
            {
                axis: self._compare_on_axis(rubric, candidates, unjudgeable, task, case)
                for axis, rubric in self._asked.items()
            }
        )
        return [{axis: verdicts[place] for axis, verdicts in by_axis.items()} for place in range(len(candidates))]

    async def canaries(self, task: JudgeTask, transcript: str, speech: Speech) -> list[CanaryResult]:
        """Put replies that deserve nothing, made of this one, to the judge, past its cache."""
        rubrics = list(self._asked.values())
        return await judge_canaries(self._fresh, rubrics, task, transcript, speech, self._read_user_speech(task))

    def _read_user_speech(self, task: JudgeTask) -> Speech | None:
        wanted = task.user_audio and any(rubric.hears_user for rubric in self._asked.values())
        return read_user_speech(task.user_audio) if wanted else None

    async def _compare_on_axis(
        self, rubric: Rubric, candidates: Sequence[Candidate], unjudgeable: int, task: JudgeTask, case: str
    ) -> list[Verdict]:
        assert self._comparing is not None, "the settings ask for no comparison"
        if len(candidates) < 2:
            return [score_unopposed(unjudgeable, self.judge.scale) for _ in candidates]
        contest = Contest(
            rubric=rubric, task=task, candidates=candidates, user_audio=self._read_user_speech(task), case=case
        )
        verdicts = await self._comparing(contest)
        return add_floor_wins(verdicts, unjudgeable, self.judge.scale)


@lru_cache(maxsize=64)
def read_user_speech(clips: tuple[Path, ...]) -> Speech:
    """What the user said, at the first clip's rate. ValueError: a clip that cannot be read."""
    rate = audio.read_audio_header(clips[0]).sample_rate
    return Speech(wave=audio.read_clips(clips, rate, MAX_USER_AUDIO_S), sample_rate=rate)


async def _gather_by_name(calls: Mapping[str, Awaitable[_Result]]) -> dict[str, _Result]:
    return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))
