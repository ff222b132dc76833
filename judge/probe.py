"""What an endpoint can do, found out by asking it before any engine starts; no table of models.

Invariant: a mode is chosen only after real answers in that mode, to every form of question that the run
will ask, were read strictly. What a busy or broken endpoint did not answer is not taken for something it
cannot do.
"""

from collections.abc import Awaitable, Sequence
from random import Random
from typing import Any

from judge.answers import SCORE, Mode, enforced, quoted
from judge.caller import Ask, Question
from judge.capabilities import Capabilities
from judge.trials import Asked, largest_trial, pair_trial, ranking_trial, score_trial
from judge.types import CallFailed

UNREACHED = {"deadline", "network", "rate_limited", "quota", "wrong_model"}
ANSWERED = {"malformed", "refusal", "empty"}  # an answer came, though of no use
MODES: dict[str, Mode] = {  # what worked -> how the judge is asked, best first
    "logprobs": "logprobs",
    "forced": "logprobs",
    "json_schema": "schema",
    "tagged": "tagged",
}
WORDS = "red blue green black white yellow brown grey orange purple".split()


async def probe(ask: Ask, model: str, asked: Asked) -> Capabilities:
    """A dozen small calls at most; audio is tried only when a rubric needs it.

    ValueError: the endpoint does not answer, hears nothing though a rubric needs it, or answers in no mode as
    the run will ask.
    """
    test = _Probe(ask, model, asked)
    hearing = sorted(rubric.name for rubric in asked.rubrics if rubric.hears_reply)
    plain = await test.plain_tokens()
    test.lacks |= await test.audio_lack(plain) if hearing else {"audio": "not needed"}
    if hearing and "audio" in test.lacks:
        raise ValueError(_deaf(model, hearing, largest_trial(asked), test.lacks["audio"]))
    json_schema = await test.works("json_schema", test.answers("schema"))
    logprobs = await test.works("logprobs", test.answers("logprobs"))
    choice = await test.works("choice", test.chooses())
    forced = choice and not logprobs and await test.works("forced", test.answers("logprobs", forced=True))
    if not (logprobs or forced or json_schema):
        await test.works("tagged", test.answers("tagged"))
    best = next((name for name in MODES if name in test.seconds), None)
    if best is None:
        raise ValueError(_useless(model, test.lacks))
    return Capabilities(
        audio=bool(hearing),
        usage=plain != 0,
        json_schema=json_schema,
        logprobs=logprobs or forced,
        choice=choice,
        forced=forced,
        latency_s=test.seconds[best],
        mode=MODES[best],
        ranking=await test.ranking_mode(),
        lacks=test.lacks,
    )


def _deaf(model: str, axes: Sequence[str], question: Question, why: str) -> str:
    count = len(question.clips)
    several = f", {count} recordings in one request" if count > 1 else ""
    return (
        f"judge {model}: {', '.join(axes)} needs a model that takes input_audio{several}, and this one "
        f"did not: {why}. Name another model, or set the weight of the axis to 0."
    )


def _useless(model: str, lacks: dict[str, str]) -> str:
    tried = "; ".join(f"{name}: {why}" for name, why in lacks.items() if why != "not needed")
    return f"judge {model} gave no score in any mode. Name another model, or mend this. Tried {tried}"


class _Probe:
    """The calls, and what came of them: ``seconds`` of what worked, ``lacks``: why the rest did not."""

    def __init__(self, ask: Ask, model: str, asked: Asked) -> None:
        self._ask, self._model, self._asked = ask, model, asked
        self.seconds: dict[str, float] = {}
        self.lacks: dict[str, str] = {}

    async def works(self, name: str, call: Awaitable[float]) -> bool:
        """Whether a call gives what it should. ValueError: the endpoint did not answer at all."""
        try:
            self.seconds[name] = await call
        except CallFailed as failure:
            self._must_be_reached(failure)
            self.lacks[name] = str(failure)
            return False
        return True

    async def plain_tokens(self) -> int | None:
        """Prompt tokens of a case without its audio; None: not known. ValueError: no answer at all."""
        try:
            return (await self._ask(_wordy(largest_trial(self._asked)))).prompt_tokens
        except CallFailed as failure:
            if failure.kind in ANSWERED:  # what is left is for the modes to find
                return None
            raise self._unreached(failure) from failure

    async def audio_lack(self, plain: int | None) -> dict[str, str]:
        """Why the recordings are not heard; those that cost no token were dropped on the way."""
        try:
            heard = await self._ask(_body(largest_trial(self._asked)))
            suspect = plain is not None and 0 < heard.prompt_tokens <= plain and not heard.audio_tokens
            tokens = await self._dropped() if suspect else None
        except CallFailed as failure:
            self._must_be_reached(failure)
            return {} if failure.kind in ANSWERED else {"audio": str(failure)}
        why = f"a request with audio has no more tokens than without ({tokens})"
        return {} if tokens is None else {"audio": why}

    async def _dropped(self) -> int | None:
        """The prompt tokens of a case with audio when they are no more than without; None: they are more.

        Some servers leave out what they had in their cache. So both begin with words that were never asked
        before, the same number of them.
        """
        question = largest_trial(self._asked)
        plain = (await self._ask(_new(_wordy(question)))).prompt_tokens
        heard = (await self._ask(_new(_body(question)))).prompt_tokens
        return heard if 0 < heard <= plain else None

    async def answers(self, mode: Mode, *, forced: bool = False) -> float:
        """Seconds of an answer that was read as a score; so are the comparisons. CallFailed: one was not."""
        seconds = await self._read(score_trial(self._asked, mode, forced=forced))
        if self._asked.compares and self._asked.compare == "pairwise":
            await self._read(pair_trial(self._asked, mode, forced=forced))
        return seconds

    async def ranking_mode(self) -> Mode:
        """How a group is ranked, where it is. ValueError: in no way."""
        modes: list[Mode] = ["schema", "tagged"] if "json_schema" in self.seconds else ["tagged"]
        if not self._asked.compares or self._asked.compare != "ranking":
            return modes[0]
        for mode in modes:
            if await self.works(f"ranking by {mode}", self._read(ranking_trial(self._asked, mode))):
                return mode
        tried = "; ".join(f"{name}: {why}" for name, why in self.lacks.items() if name.startswith("ranking"))
        raise ValueError(f"judge {self._model} gave no ranking: set judge.api.compare. Tried {tried}")

    async def chooses(self) -> float:
        """Seconds of an answer that is a bare label where sentences were asked for. CallFailed: another."""
        answer = await self._ask(_body(score_trial(self._asked, "tagged")) | enforced(SCORE))
        if answer.text.strip() not in SCORE.numbers:
            raise CallFailed("malformed", f"the choice was not enforced: got {quoted(answer.text)}")
        return answer.seconds

    async def _read(self, question: Question) -> float:
        answer = await self._ask(_body(question))
        question.read(answer)
        return answer.seconds

    def _must_be_reached(self, failure: CallFailed) -> None:
        """ValueError when the failure says nothing about what the endpoint can do."""
        if failure.kind in UNREACHED:
            raise self._unreached(failure) from failure

    def _unreached(self, failure: CallFailed) -> ValueError:
        settings = "max_tokens_field, temperature and reasoning_effort"
        more = f", and {settings}, which not every model takes" if failure.kind == "rejected" else ""
        return ValueError(f"judge {self._model} does not answer: {failure}. Check address, key and model name{more}.")


def _body(question: Question) -> dict[str, Any]:
    return question.settings | {"messages": question.messages}


def _wordy(question: Question) -> dict[str, Any]:
    """The question without its recordings."""
    system, user = question.messages
    texts = [part for part in user["content"] if part["type"] == "text"]
    return question.settings | {"messages": [system, user | {"content": texts}]}


def _new(body: dict[str, Any]) -> dict[str, Any]:
    """The question behind a row of words in an order of its own."""
    system, user = body["messages"]
    words = " ".join(Random().sample(WORDS, len(WORDS)))
    return body | {"messages": [system | {"content": f"{words}\n\n{system['content']}"}, user]}
