"""What an endpoint can do, found out by asking it before any engine starts; no table of models.

Invariant: a mode is chosen only after a real answer in that mode was read strictly. What a busy or broken
endpoint did not answer is not taken for something it cannot do.
"""

from collections.abc import Awaitable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from judge.answers import SCORE, Mode, enforced, quoted, read, rule, settings
from judge.caller import Ask
from judge.rubric import ACOUSTIC, SEMANTIC, Rubric, messages
from judge.types import CallFailed, Task
from rollout.types import Speech

UNREACHED = {"deadline", "network", "rate_limited", "quota"}
LABELS = {"logprobs": "expected score", "schema": "JSON", "tagged": "tagged text"}
MODES: dict[str, Mode] = {  # what worked -> how the judge is asked, best first
    "logprobs": "logprobs",
    "forced": "logprobs",
    "json_schema": "schema",
    "tagged": "tagged",
}
TASK = Task(task_type="probe", question="What is two plus two?", match=None, answer=None, style=None)
HEARD = "two plus two is four"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What worked. ``forced``: token probabilities only came with the choice of labels enforced."""

    audio: bool
    json_schema: bool
    logprobs: bool
    choice: bool
    forced: bool
    latency_s: float  # of one answer in the chosen mode
    mode: Mode
    usage: bool = True  # it says how many tokens a call took
    lacks: dict[str, str] = field(default_factory=dict)  # what did not work -> why

    def describe(self) -> str:
        """One line for people."""
        works = {
            "audio": self.audio,
            "logprobs": self.logprobs,
            "json_schema": self.json_schema,
            "choice": self.choice,
        }
        shown = [name if ok else f"no {name} ({self.lacks.get(name)})" for name, ok in works.items()]
        return f"judge answers by {LABELS[self.mode]}, {self.latency_s:.2f} s a call: {', '.join(shown)}"


async def probe(ask: Ask, model: str, rubrics: Collection[Rubric]) -> Capabilities:
    """Seven small calls at most. ``rubrics``: what will be asked; audio is tried only when one needs it.

    ValueError: the endpoint does not answer, hears nothing though a rubric needs it, or answers in no mode.
    """
    hearing = sorted(rubric.name for rubric in rubrics if rubric.hears_reply)
    test = _Probe(ask, model, ACOUSTIC if hearing else SEMANTIC)
    plain = await test.plain_tokens()
    lacks: dict[str, str] = {} if hearing else {"audio": "not needed"}
    seconds: dict[str, float] = {}

    async def works(name: str, call: Awaitable[float]) -> bool:
        try:
            seconds[name] = await call
        except CallFailed as failure:
            test.must_be_reached(failure)
            lacks[name] = str(failure)
            return False
        return True

    if hearing:
        lacks |= await test.audio_lack(plain)
        if "audio" in lacks:
            raise ValueError(
                f"judge {model}: {', '.join(hearing)} needs a model that takes input_audio, and this one "
                f"did not: {lacks['audio']}. Name another model, or set the weight of the axis to 0."
            )
    json_schema = await works("json_schema", test.answers("schema"))
    logprobs = await works("logprobs", test.answers("logprobs"))
    choice = await works("choice", test.chooses())
    forced = choice and not logprobs and await works("forced", test.answers("logprobs", forced=True))
    if not (logprobs or forced or json_schema):
        await works("tagged", test.answers("tagged"))
    best = next((name for name in MODES if name in seconds), None)
    if best is None:
        tried = "; ".join(f"{name}: {why}" for name, why in lacks.items())
        raise ValueError(f"judge {model} gave no score in any mode. Name another model. Tried {tried}")
    return Capabilities(
        audio=bool(hearing),
        usage=plain != 0,
        json_schema=json_schema,
        logprobs=logprobs or forced,
        choice=choice,
        forced=forced,
        latency_s=seconds[best],
        mode=MODES[best],
        lacks=lacks,
    )


class _Probe:
    def __init__(self, ask: Ask, model: str, rubric: Rubric) -> None:
        self._ask, self._model, self._rubric = ask, model, rubric

    async def plain_tokens(self) -> int | None:
        """Prompt tokens of a case without its audio; None: not known. ValueError: no answer at all."""
        try:
            return (await self._ask(self._body("tagged", audio=False))).prompt_tokens
        except CallFailed as failure:
            if failure.kind in ("malformed", "refusal"):  # it answers; what is left is for the modes to find
                return None
            raise self._unreached(failure) from failure

    async def audio_lack(self, plain: int | None) -> dict[str, str]:
        """Why audio is not heard; a part that cost no token was dropped on the way."""
        try:
            heard = (await self._ask(self._body("tagged"))).prompt_tokens
        except CallFailed as failure:
            self.must_be_reached(failure)
            return {"audio": str(failure)} if failure.kind not in ("malformed", "refusal") else {}
        dropped = plain is not None and 0 < heard <= plain
        return {"audio": f"a request with audio has no more tokens than without ({heard})"} if dropped else {}

    async def answers(self, mode: Mode, *, forced: bool = False) -> float:
        """Seconds of one answer that was read as a score. CallFailed: it was not."""
        answer = await self._ask(self._body(mode, forced=forced))
        read(SCORE, mode, answer.text, answer.logprobs)
        return answer.seconds

    async def chooses(self) -> float:
        """Seconds of an answer that is a bare label where sentences were asked for. CallFailed: another."""
        answer = await self._ask(self._body("tagged") | enforced(SCORE))
        if answer.text.strip() not in SCORE.numbers:
            raise CallFailed("malformed", f"the choice was not enforced: got {quoted(answer.text)}")
        return answer.seconds

    def must_be_reached(self, failure: CallFailed) -> None:
        """ValueError when the failure says nothing about what the endpoint can do."""
        if failure.kind in UNREACHED:
            raise self._unreached(failure) from failure

    def _unreached(self, failure: CallFailed) -> ValueError:
        return ValueError(
            f"judge {self._model} does not answer: {failure}. Check address, key and model name."
        )

    def _body(self, mode: Mode, *, audio: bool = True, forced: bool = False) -> dict[str, Any]:
        chat = messages(self._rubric, TASK, HEARD, clip(), None, answer_rule=rule(SCORE, mode))
        if not audio:
            chat[1]["content"] = [part for part in chat[1]["content"] if part["type"] == "text"]
        return settings(SCORE, mode, 0.0, forced=forced) | {"messages": chat}


def smallest() -> dict[str, Any]:
    """A question that any endpoint which is up answers, one way or another: a few words, no audio."""
    chat = messages(SEMANTIC, TASK, HEARD, clip(), None, answer_rule=rule(SCORE, "tagged"))
    return settings(SCORE, "tagged", 0.0) | {"messages": chat}


def clip() -> Speech:
    """A second of a gliding hum at 16 kHz, always the same: small, and not silence."""
    time = np.arange(16_000) / 16_000
    phase = 2 * np.pi * (140 * time + 20 * time**2)
    wave = sum(np.sin(k * phase) / k for k in range(1, 9)) * np.hanning(16_000) * 0.2
    return Speech(wave=np.asarray(wave, np.float32), sample_rate=16_000)
