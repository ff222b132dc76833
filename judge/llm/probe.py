"""What an endpoint can do, found out by asking it before any engine starts; no table of models.

Invariant: a mode is chosen only after real answers in that mode, to every form of question that the run
will ask, were read strictly. What a busy or broken endpoint did not answer is not taken for something it
cannot do.
"""

from collections.abc import Awaitable, Sequence
from random import Random
from typing import Any

from judge.llm.answers import SCORE_FORM, AnswerMode, constrain_to_labels, quote_answer
from judge.llm.caller import EndpointAsker, JudgeQuestion
from judge.llm.capabilities import Capabilities
from judge.llm.probe_questions import (
    TrialPlan,
    build_largest_trial,
    build_pair_trial,
    build_ranking_trial,
    build_score_trial,
)
from judge.types import CallFailed

UNREACHED_KINDS = {"deadline", "network", "rate_limited", "quota", "wrong_model"}
ANSWERED_KINDS = {"malformed", "refusal", "empty"}  # an answer came, though of no use
MODES_BY_TRIAL: dict[str, AnswerMode] = {  # what worked -> how the judge is asked, best first
    "logprobs": "logprobs",
    "forced": "logprobs",
    "json_schema": "schema",
    "tagged": "tagged",
}
FILLER_WORDS = "red blue green black white yellow brown grey orange purple".split()


async def probe_capabilities(ask: EndpointAsker, model: str, plan: TrialPlan) -> Capabilities:
    """A dozen small calls at most; audio is tried only when a rubric needs it.

    ValueError: the endpoint does not answer, hears nothing though a rubric needs it, or answers in no mode as
    the run will ask.
    """
    probe = _EndpointProbe(ask, model, plan)
    hearing = sorted(rubric.name for rubric in plan.rubrics if rubric.hears_reply)
    plain = await probe.count_plain_tokens()
    probe.lacks |= await probe.explain_audio_lack(plain) if hearing else {"audio": "not needed"}
    if hearing and "audio" in probe.lacks:
        raise ValueError(_format_audio_problem(model, hearing, build_largest_trial(plan), probe.lacks["audio"]))
    json_schema = await probe.try_trial("json_schema", probe.time_answers("schema"))
    logprobs = await probe.try_trial("logprobs", probe.time_answers("logprobs"))
    choice = await probe.try_trial("choice", probe.time_forced_choice())
    forced = choice and not logprobs and await probe.try_trial("forced", probe.time_answers("logprobs", forced=True))
    if not (logprobs or forced or json_schema):
        await probe.try_trial("tagged", probe.time_answers("tagged"))
    best = next((name for name in MODES_BY_TRIAL if name in probe.seconds), None)
    if best is None:
        raise ValueError(_format_mode_problem(model, probe.lacks))
    return Capabilities(
        audio=bool(hearing),
        usage=plain != 0,
        json_schema=json_schema,
        logprobs=logprobs or forced,
        choice=choice,
        forced=forced,
        latency_s=probe.seconds[best],
        mode=MODES_BY_TRIAL[best],
        ranking=await probe.find_ranking_mode(),
        lacks=probe.lacks,
    )


def _format_audio_problem(model: str, axes: Sequence[str], question: JudgeQuestion, why: str) -> str:
    count = len(question.clips)
    several = f", {count} recordings in one request" if count > 1 else ""
    return (
        f"judge {model}: {', '.join(axes)} needs a model that takes input_audio{several}, and this one "
        f"did not: {why}. Name another model, or set the weight of the axis to 0."
    )


def _format_mode_problem(model: str, lacks: dict[str, str]) -> str:
    tried = "; ".join(f"{name}: {why}" for name, why in lacks.items() if why != "not needed")
    return f"judge {model} gave no score in any mode. Name another model, or mend this. Tried {tried}"


class _EndpointProbe:
    """The calls, and what came of them: ``seconds`` of what worked, ``lacks``: why the rest did not."""

    def __init__(self, ask: EndpointAsker, model: str, plan: TrialPlan) -> None:
        self._ask, self._model, self._plan = ask, model, plan
        self.seconds: dict[str, float] = {}
        self.lacks: dict[str, str] = {}

    async def try_trial(self, name: str, call: Awaitable[float]) -> bool:
        """Whether a call gives what it should. ValueError: the endpoint did not answer at all."""
        try:
            self.seconds[name] = await call
        except CallFailed as failure:
            self._must_be_reached(failure)
            self.lacks[name] = str(failure)
            return False
        return True

    async def count_plain_tokens(self) -> int | None:
        """Prompt tokens of a case without its audio; None: not known. ValueError: no answer at all."""
        try:
            return (await self._ask(_build_text_body(build_largest_trial(self._plan)))).prompt_tokens
        except CallFailed as failure:
            if failure.kind in ANSWERED_KINDS:  # what is left is for the modes to find
                return None
            raise self._unreached_error(failure) from failure

    async def explain_audio_lack(self, plain: int | None) -> dict[str, str]:
        """Why the recordings are not heard; those that cost no token were dropped on the way."""
        try:
            with_audio = await self._ask(_build_body(build_largest_trial(self._plan)))
            suspect = plain is not None and 0 < with_audio.prompt_tokens <= plain and not with_audio.audio_tokens
            tokens = await self._count_if_audio_dropped() if suspect else None
        except CallFailed as failure:
            self._must_be_reached(failure)
            return {} if failure.kind in ANSWERED_KINDS else {"audio": str(failure)}
        why = f"a request with audio has no more tokens than without ({tokens})"
        return {} if tokens is None else {"audio": why}

    async def _count_if_audio_dropped(self) -> int | None:
        """The prompt tokens of a case with audio when they are no more than without; None: they are more.

        Some servers leave out what they had in their cache. So both begin with words that were never asked
        before, the same number of them.
        """
        question = build_largest_trial(self._plan)
        plain = (await self._ask(_prefix_random_words(_build_text_body(question)))).prompt_tokens
        with_audio = (await self._ask(_prefix_random_words(_build_body(question)))).prompt_tokens
        return with_audio if 0 < with_audio <= plain else None

    async def time_answers(self, mode: AnswerMode, *, forced: bool = False) -> float:
        """Seconds of an answer that was read as a score; so are the comparisons. CallFailed: one was not."""
        seconds = await self._time_answer(build_score_trial(self._plan, mode, forced=forced))
        if self._plan.compares and self._plan.compare == "pairwise":
            await self._time_answer(build_pair_trial(self._plan, mode, forced=forced))
        return seconds

    async def find_ranking_mode(self) -> AnswerMode:
        """How a group is ranked, where it is. ValueError: in no way."""
        modes: list[AnswerMode] = ["schema", "tagged"] if "json_schema" in self.seconds else ["tagged"]
        if not self._plan.compares or self._plan.compare != "ranking":
            return modes[0]
        for mode in modes:
            if await self.try_trial(f"ranking by {mode}", self._time_answer(build_ranking_trial(self._plan, mode))):
                return mode
        tried = "; ".join(f"{name}: {why}" for name, why in self.lacks.items() if name.startswith("ranking"))
        raise ValueError(f"judge {self._model} gave no ranking: set judge.api.compare. Tried {tried}")

    async def time_forced_choice(self) -> float:
        """Seconds of an answer that is a bare label where sentences were asked for. CallFailed: another."""
        answer = await self._ask(
            _build_body(build_score_trial(self._plan, "tagged")) | constrain_to_labels(SCORE_FORM)
        )
        if answer.text.strip() not in SCORE_FORM.numbers:
            raise CallFailed("malformed", f"the choice was not enforced: got {quote_answer(answer.text)}")
        return answer.seconds

    async def _time_answer(self, question: JudgeQuestion) -> float:
        answer = await self._ask(_build_body(question))
        question.read(answer)
        return answer.seconds

    def _must_be_reached(self, failure: CallFailed) -> None:
        """ValueError when the failure says nothing about what the endpoint can do."""
        if failure.kind in UNREACHED_KINDS:
            raise self._unreached_error(failure) from failure

    def _unreached_error(self, failure: CallFailed) -> ValueError:
        settings = "max_tokens_field, temperature and reasoning_effort"
        settings_advice = f", and {settings}, which not every model takes" if failure.kind == "rejected" else ""
        return ValueError(
            f"judge {self._model} does not answer: {failure}. Check address, key and model name{settings_advice}."
        )


def _build_body(question: JudgeQuestion) -> dict[str, Any]:
    return question.settings | {"messages": question.messages}


def _build_text_body(question: JudgeQuestion) -> dict[str, Any]:
    """The question without its recordings."""
    system, user = question.messages
    texts = [part for part in user["content"] if part["type"] == "text"]
    return question.settings | {"messages": [system, user | {"content": texts}]}


def _prefix_random_words(body: dict[str, Any]) -> dict[str, Any]:
    """The question behind a row of words in an order of its own."""
    system, user = body["messages"]
    words = " ".join(Random().sample(FILLER_WORDS, len(FILLER_WORDS)))
    return body | {"messages": [system | {"content": f"{words}\n\n{system['content']}"}, user]}
