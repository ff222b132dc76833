"""The API judge: one reply, one axis, k readings of an OpenAI-compatible model -> a verdict.

Invariant: a verdict is the mean of exactly k readings, or it is Missing: a mean over those that happened to
arrive would be noisier than its neighbours, and which ones arrive is not chance.
"""

import asyncio
from dataclasses import replace
from functools import partial
from statistics import fmean, pstdev

from judge.answers import SCORE, Form, Reading, read, rule, settings
from judge.calibration import Calibrations
from judge.caller import Caller, Question, about
from judge.chat import Answer
from judge.probe import Capabilities
from judge.rubric import Rubric, clips, messages
from judge.types import CallFailed, Missing, Scale, Scored, Task, Verdict
from rollout.types import Speech

LOWEST, HIGHEST = min(SCORE.numbers.values()), max(SCORE.numbers.values())


class OpenAIJudge:
    """Scores what is heard. ``temperature`` is for schema and tagged answers; token probabilities need none.

    ``maps``: from this judge's scores to people's.

    Example:
        judge = OpenAIJudge(caller, await probe(...), scale=Scale(), repeats=2, temperature=0.7)
        verdict = await judge.score(ACOUSTIC, task, transcript, speech, None)
    """

    def __init__(
        self,
        caller: Caller,
        capabilities: Capabilities,
        *,
        scale: Scale,
        repeats: int,
        temperature: float,
        maps: Calibrations | None = None,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1: got {repeats}")
        if not 0 <= temperature <= 2:
            raise ValueError(f"temperature must lie in [0, 2]: got {temperature}")
        self.caller, self.capabilities, self.scale = caller, capabilities, scale
        self.temperature = temperature
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
        name, mode = self._name(rubric.id), self.capabilities.mode

        def question(repeat: int) -> Question:
            return Question(
                about=about(speech),
                case=case,
                judge=name,
                rubric=rubric.id,
                messages=messages(
                    rubric, task, transcript, speech, user_audio, answer_rule=rule(SCORE, mode), repeat=repeat
                ),
                settings=settings(SCORE, mode, self.temperature, forced=self.capabilities.forced),
                clips=clips(rubric, user_audio, speech),
                repeat=repeat,
                read=partial(reading, SCORE, self.capabilities),
            )

        questions = [question(repeat) for repeat in range(self._repeats)]
        verdict = combined(await settled(self.caller, questions), name)
        if isinstance(verdict, Missing):
            return verdict
        score = on_scale(verdict, LOWEST, HIGHEST, self.scale)
        found = None if self._maps is None else self._maps.on_axis(rubric.name, name, self.scale)
        return score if found is None else found.apply(score, self.scale)


def name_of(model: str, rubric: str, capabilities: Capabilities) -> str:
    """Provenance of a score: model, rubric and version, way of answering."""
    return f"openai({model} {rubric} {capabilities.mode})"


def reading(form: Form, capabilities: Capabilities, answer: Answer) -> list[Reading]:
    """An answer to a question of one number."""
    return [read(form, capabilities.mode, answer.text, answer.logprobs)]


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
    fraction = min(
        1.0, max(0.0, (score.value - lowest) / (highest - lowest))
    )  # of rounding, a mean is inside
    spread = score.spread * (scale.hi - scale.lo) / (highest - lowest)
    return replace(score, value=scale.at(fraction), spread=spread)
