"""The API judge: one reply, one axis, k readings of an OpenAI-compatible model -> a verdict.

Invariant: a verdict is the mean of exactly k readings, or it is Missing: a mean over those that happened to
arrive would be noisier than its neighbours, and which ones arrive is not chance.
"""

import asyncio
from dataclasses import replace
from functools import partial
from statistics import fmean, pstdev

from judge.answers import SCORE, Form, Mode, Reading, Sampling, read, rule, settings
from judge.calibration import Calibrations
from judge.caller import Caller, Question, about
from judge.capabilities import Capabilities
from judge.chat import Answer
from judge.rubric import Rubric, clips, messages
from judge.types import CallFailed, Missing, Scale, Scored, Task, Verdict
from rollout.types import Speech

LOWEST, HIGHEST = min(SCORE.numbers.values()), max(SCORE.numbers.values())


class OpenAIJudge:
    """Scores what is heard. ``maps``: from this judge's scores to people's.

    Example:
        judge = OpenAIJudge(caller, await probe(...), scale=Scale(), repeats=2, sampling=Sampling())
        verdict = await judge.score(ACOUSTIC, task, transcript, speech, None)
    """

    def __init__(
        self,
        caller: Caller,
        capabilities: Capabilities,
        *,
        scale: Scale,
        repeats: int,
        sampling: Sampling,
        maps: Calibrations | None = None,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1: got {repeats}")
        self.caller, self.capabilities, self.scale = caller, capabilities, scale
        self.sampling = sampling
        self._repeats, self._maps = repeats, maps

    def _name(self, rubric: str) -> str:
        """Provenance of a verdict."""
        return name_of(self.caller.model, rubric, self.capabilities)

    async def score(
        self,
        rubric: Rubric,
        task: Task,
        transcript: str,
        speech: Speech,
        user_audio: Speech | None,
        *,
        case: str = "",
    ) -> Verdict:
        """Judge one axis of one reply that can be judged (``panel.unjudgeable`` has said so).

        ``case``: the reply's name in the log. ``transcript``: what a recogniser heard in ``speech``.
        ``spread``: population deviation over the repeats, on the scale; one repeat knows none. ValueError:
        audio is asked for and cannot be heard.
        """
        name, able = self._name(rubric.id), self.capabilities
        questions = [
            score_question(
                rubric,
                task,
                transcript,
                speech,
                user_audio,
                mode=able.mode,
                forced=able.forced,
                sampling=self.sampling,
                judge=name,
                case=case,
                repeat=repeat,
            )
            for repeat in range(self._repeats)
        ]
        verdict = combined(await settled(self.caller, questions), name)
        if isinstance(verdict, Missing):
            return verdict
        score = on_scale(verdict, LOWEST, HIGHEST, self.scale)
        found = None if self._maps is None else self._maps.on_axis(rubric.name, name, self.scale)
        return score if found is None else found.apply(score, self.scale)


def name_of(model: str, rubric: str, capabilities: Capabilities) -> str:
    """Provenance of a score: model, rubric and version, way of answering."""
    return f"openai({model} {rubric} {capabilities.mode})"


def score_question(
    rubric: Rubric,
    task: Task,
    transcript: str,
    speech: Speech,
    user_audio: Speech | None,
    *,
    mode: Mode,
    forced: bool,
    sampling: Sampling,
    judge: str = "",
    case: str = "",
    repeat: int = 0,
) -> Question:
    """What is asked about one axis of one reply, as ``OpenAIJudge.score`` is told of it."""
    told = rule(SCORE, mode)
    return Question(
        about=about(speech),
        case=case,
        judge=judge,
        rubric=rubric.id,
        messages=messages(rubric, task, transcript, speech, user_audio, answer_rule=told, repeat=repeat),
        settings=settings(SCORE, mode, sampling, forced=forced),
        clips=clips(rubric, user_audio, speech),
        repeat=repeat,
        read=partial(reading, SCORE, mode),
    )


def reading(form: Form, mode: Mode, answer: Answer) -> list[Reading]:
    """An answer to a question of one number."""
    return [read(form, mode, answer.text, answer.logprobs, answer.thought)]


async def settled(caller: Caller, questions: list[Question]) -> list[list[Scored] | CallFailed]:
    """Each question's scores or failure, in order; all are waited for: what was paid for is cached."""
    asked = await asyncio.gather(*map(caller.call, questions), return_exceptions=True)
    found: list[list[Scored] | CallFailed] = []
    for outcome in asked:
        if isinstance(outcome, BaseException) and not isinstance(outcome, CallFailed):
            raise outcome
        found.append(outcome)
    return found


def combined(outcomes: list[list[Scored] | CallFailed], judge: str) -> Verdict:
    """Mean and spread over the repeats of one question; Missing as soon as one of them is."""
    scores: list[Scored] = []
    for outcome in outcomes:
        if isinstance(outcome, CallFailed):
            return missing(outcome, judge)
        scores += outcome
    values = [score.value for score in scores]
    return Scored(
        value=fmean(values),
        judge=judge,
        spread=pstdev(values),
        why=" | ".join(dict.fromkeys(score.why for score in scores)),
        cached=all(score.cached for score in scores),
    )


def missing(failure: CallFailed, judge: str) -> Missing:
    """The failure as a verdict."""
    return Missing(judge=judge, reason=failure.reason, kind=failure.kind, retryable=failure.retryable)


def on_scale(score: Scored, lowest: float, highest: float, scale: Scale) -> Scored:
    """A score between ``lowest`` and ``highest`` moved linearly onto the scale, its spread with it."""
    fraction = min(1.0, max(0.0, (score.value - lowest) / (highest - lowest)))  # of rounding, a mean is inside
    spread = score.spread * (scale.hi - scale.lo) / (highest - lowest)
    return replace(score, value=scale.at(fraction), spread=spread)
