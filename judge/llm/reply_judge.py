"""The API judge: one reply, one axis, k readings of an OpenAI-compatible model -> a verdict.

Invariant: a verdict is the mean of exactly k readings, or it is missing: a mean over those that happened to
arrive would be noisier than that of other replies, and which ones arrive is not chance.
"""

import asyncio
from dataclasses import replace
from functools import partial
from statistics import fmean, pstdev

from judge.endpoint.chat import ChatAnswer
from judge.llm.answers import (
    SCORE_FORM,
    AnswerForm,
    AnswerMode,
    AnswerSampling,
    Reading,
    build_answer_settings,
    read_judge_answer,
    write_answer_instructions,
)
from judge.llm.calibration import Calibrations
from judge.llm.caller import JudgeCaller, JudgeQuestion, hash_speeches
from judge.llm.capabilities import Capabilities
from judge.llm.rubric import Rubric, build_score_messages, select_rubric_clips
from judge.types import CallFailed, JudgeTask, MissingVerdict, Scale, ScoredVerdict, Verdict
from rollout.types import Speech

MIN_LABEL_SCORE, MAX_LABEL_SCORE = min(SCORE_FORM.numbers.values()), max(SCORE_FORM.numbers.values())


class OpenAIJudge:
    """Scores what is heard. ``maps``: from this judge's scores to people's.

    Example:
        judge = OpenAIJudge(caller, capabilities, scale=Scale(), repeats=2, sampling=AnswerSampling())
        verdict = await judge.score(ACOUSTIC_RUBRIC, task, transcript, speech, None)
    """

    def __init__(
        self,
        caller: JudgeCaller,
        capabilities: Capabilities,
        *,
        scale: Scale,
        repeats: int,
        sampling: AnswerSampling,
        maps: Calibrations | None = None,
    ) -> None:
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1: got {repeats}")
        self.caller, self.capabilities, self.scale = caller, capabilities, scale
        self.sampling = sampling
        self._repeats, self._maps = repeats, maps

    def _name(self, rubric: str) -> str:
        """Provenance of a verdict."""
        return format_judge_name(self.caller.model, rubric, self.capabilities)

    async def score(
        self,
        rubric: Rubric,
        task: JudgeTask,
        transcript: str,
        speech: Speech,
        user_audio: Speech | None,
        *,
        case: str = "",
    ) -> Verdict:
        """Judge one axis of one reply that can be judged (``judge.panel.find_policy_fault`` found nothing).

        ``case``: the reply's name in the log. ``transcript``: what a recogniser heard in ``speech``.
        ``spread``: population deviation over the repeats, on the scale; one repeat knows none. ValueError:
        audio is asked for and cannot be heard.
        """
        name, able = self._name(rubric.id), self.capabilities
        questions = [
            build_score_question(
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
        verdict = combine_repeats(await ask_questions(self.caller, questions), name)
        if isinstance(verdict, MissingVerdict):
            return verdict
        score = rescale_score(verdict, MIN_LABEL_SCORE, MAX_LABEL_SCORE, self.scale)
        axis_map = None if self._maps is None else self._maps.map_for_axis(rubric.name, name, self.scale)
        return score if axis_map is None else axis_map.apply(score, self.scale)


def format_judge_name(model: str, rubric: str, capabilities: Capabilities) -> str:
    """Provenance of a score: model, rubric and version, way of answering."""
    return f"openai({model} {rubric} {capabilities.mode})"


def build_score_question(
    rubric: Rubric,
    task: JudgeTask,
    transcript: str,
    speech: Speech,
    user_audio: Speech | None,
    *,
    mode: AnswerMode,
    forced: bool,
    sampling: AnswerSampling,
    judge: str = "",
    case: str = "",
    repeat: int = 0,
) -> JudgeQuestion:
    """What is asked about one axis of one reply, as ``OpenAIJudge.score`` is told of it."""
    instructions = write_answer_instructions(SCORE_FORM, mode)
    return JudgeQuestion(
        about=hash_speeches(speech),
        case=case,
        judge=judge,
        rubric=rubric.id,
        messages=build_score_messages(
            rubric, task, transcript, speech, user_audio, answer_rule=instructions, repeat=repeat
        ),
        settings=build_answer_settings(SCORE_FORM, mode, sampling, forced=forced),
        clips=select_rubric_clips(rubric, user_audio, speech),
        repeat=repeat,
        read=partial(read_single_answer, SCORE_FORM, mode),
    )


def read_single_answer(form: AnswerForm, mode: AnswerMode, answer: ChatAnswer) -> list[Reading]:
    """An answer to a question of one number."""
    return [read_judge_answer(form, mode, answer.text, answer.logprobs, answer.thought)]


async def ask_questions(caller: JudgeCaller, questions: list[JudgeQuestion]) -> list[list[ScoredVerdict] | CallFailed]:
    """Each question's scores or failure, in order; all are waited for: what was paid for is cached."""
    results = await asyncio.gather(*map(caller.call, questions), return_exceptions=True)
    outcomes: list[list[ScoredVerdict] | CallFailed] = []
    for outcome in results:
        if isinstance(outcome, BaseException) and not isinstance(outcome, CallFailed):
            raise outcome
        outcomes.append(outcome)
    return outcomes


def combine_repeats(outcomes: list[list[ScoredVerdict] | CallFailed], judge: str) -> Verdict:
    """Mean and spread over the repeats of one question; Missing as soon as one of them is."""
    scores: list[ScoredVerdict] = []
    for outcome in outcomes:
        if isinstance(outcome, CallFailed):
            return failure_to_missing(outcome, judge)
        scores += outcome
    values = [score.value for score in scores]
    return ScoredVerdict(
        value=fmean(values),
        judge=judge,
        spread=pstdev(values),
        why=" | ".join(dict.fromkeys(score.why for score in scores)),
        cached=all(score.cached for score in scores),
    )


def failure_to_missing(failure: CallFailed, judge: str) -> MissingVerdict:
    """The failure as a verdict."""
    return MissingVerdict(judge=judge, reason=failure.reason, kind=failure.kind, retryable=failure.retryable)


def rescale_score(score: ScoredVerdict, lowest: float, highest: float, scale: Scale) -> ScoredVerdict:
    """A score between ``lowest`` and ``highest`` moved linearly onto the scale, its spread with it."""
    fraction = min(1.0, max(0.0, (score.value - lowest) / (highest - lowest)))  # of rounding, a mean is inside
    spread = score.spread * (scale.hi - scale.lo) / (highest - lowest)
    return replace(score, value=scale.at(fraction), spread=spread)
