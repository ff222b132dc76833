"""One judge call, from the cache or paid for: cache, leases, question, strict reading, cache, log.

Invariant: every attempt is on its way under a lease of its own, which is given back whatever happens under
it; only what was read is cached; nothing here retries but for an outage: while the breaker is open a call
waits for a lease and asks again, so a run pauses and resumes (judge/endpoint/leases.py). The log has the audio's hash
and no audio, and no header.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from judge.endpoint.cache import VerdictCache, hash_pcm, make_verdict_key
from judge.endpoint.chat import ChatAnswer
from judge.endpoint.completion import Completion
from judge.endpoint.http import AttemptRunner, run_at_once
from judge.endpoint.leases import AttemptLeases, EndpointPing, Outage, TokenPrice
from judge.endpoint.limits import Limiter
from judge.llm.answers import Reading
from judge.types import CallFailed, ScoredVerdict
from rollout.types import Speech
from store.lines import append_json_line


def hash_speeches(*waves: Speech) -> str:
    """One hash of the replies that a question is about: equal for equal sound only."""
    return " ".join(hash_pcm(speech.wave, speech.sample_rate) for speech in waves)


class EndpointAsker(Protocol):
    """``judge.endpoint.chat.ask_endpoint`` with client and endpoint given."""

    def __call__(self, body: dict[str, Any], under: AttemptRunner[Completion] = run_at_once) -> Awaitable[ChatAnswer]:
        """One question."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeQuestion:
    """One call. ``clips``: the recordings of ``messages``, in order; ``read`` gives ``readings`` numbers.

    ``about``: ``hash_speeches`` of what is judged, the same on every axis and repeat; ``case``: its name, for the log.
    """

    about: str
    case: str
    judge: str  # provenance of what is read
    rubric: str  # name and version
    messages: list[dict[str, Any]]
    settings: dict[str, Any]  # every other field of the request
    clips: tuple[Speech, ...]
    repeat: int
    read: Callable[[ChatAnswer], Sequence[Reading]]
    readings: int = 1


class JudgeCaller:
    """Asks one endpoint. Any number of calls may run at once.

    ``cache`` None: every call is paid for (canaries, test-retest). ``log``: a line of JSON per call is added.
    ``endpoint``: its address, for the log. ``ping``: a small question that it answers when it is up.

    Example:
        caller = JudgeCaller(ask, endpoint.model, limiter, outage_s=600.0)
        (score,) = await caller.call(question)
    """

    def __init__(
        self,
        ask: EndpointAsker,
        model: str,
        limiter: Limiter,
        *,
        outage_s: float,
        price: TokenPrice | None = None,
        cache: VerdictCache | None = None,
        log: Path | None = None,
        endpoint: str = "",
        ping: EndpointPing | None = None,
    ) -> None:
        if not 0 < outage_s < float("inf"):
            raise ValueError(f"outage_s must be positive and finite: got {outage_s}")
        self.model = model
        self._ask, self._limiter, self._outage_s = ask, limiter, outage_s
        self._price, self._cache, self._log = price or TokenPrice(), cache, log
        self._endpoint, self._ping = endpoint, ping

    async def call(self, question: JudgeQuestion) -> list[ScoredVerdict]:
        """What the judge read, on the scale of the question's form. CallFailed: why there is nothing.

        ValueError: the cache or the key cannot be used. OSError: the log cannot be written.
        """
        hashes = [hash_pcm(clip.wave, clip.sample_rate) for clip in question.clips]
        names = self._cache_keys(question, hashes)
        looked_up = [self._cache.get(name) for name in names] if self._cache else []
        cached_scores = [verdict for verdict in looked_up if verdict is not None]
        if len(cached_scores) == len(names):
            return cached_scores
        readings = await self._ask_through_outages(question, hashes)
        scores = [ScoredVerdict(value=r.number, judge=question.judge, why=r.reason) for r in readings]
        if self._cache:
            for name, score in zip(names, scores, strict=True):
                self._cache.put(name, score)
        return scores

    async def _ask_through_outages(self, question: JudgeQuestion, hashes: list[str]) -> Sequence[Reading]:
        outage = Outage(self._limiter, self._outage_s, self._ping, self._price)
        while True:
            try:
                return await self._ask_once(question, hashes, outage)
            except CallFailed as failure:
                if not failure.retryable or not outage.should_wait(failure):
                    raise

    async def _ask_once(self, question: JudgeQuestion, hashes: list[str], outage: Outage) -> Sequence[Reading]:
        seconds = sum(clip.seconds for clip in question.clips)
        turns = AttemptLeases(self._limiter, outage, question.about, seconds, self._price)
        answer: ChatAnswer | None = None
        try:
            answer = await self._ask(question.settings | {"messages": question.messages}, turns.run_leased)
            readings = await asyncio.to_thread(question.read, answer)  # other calls need the loop
        except CallFailed as failure:
            self._log_call(question, hashes, turns, answer, failure)
            raise
        assert len(readings) == question.readings
        self._log_call(question, hashes, turns, answer, None)
        return readings

    def _cache_keys(self, question: JudgeQuestion, hashes: list[str]) -> list[str]:
        """Keys of the cache, one per reading, over everything that is sent."""
        return [
            make_verdict_key(
                model=self.model,
                rubric=question.rubric,
                sampling=question.settings | {"reading": reading},
                audio=hashes,
                texts=[text for message in question.messages for text in _message_texts(message["content"])],
                repeat=question.repeat,
            )
            for reading in range(question.readings)
        ]

    def _log_call(
        self,
        question: JudgeQuestion,
        hashes: list[str],
        turns: AttemptLeases,
        answer: ChatAnswer | None,
        failure: CallFailed | None,
    ) -> None:
        if self._log is None:
            return
        line = {
            "time": time.time(),
            "case": question.case,
            "judge": question.judge,
            "endpoint": self._endpoint,
            "model": self.model,
            "repeat": question.repeat,
            "seconds": round(turns.seconds, 4),
            "attempts": turns.count,
            "spent": turns.spent,
            "kind": failure.kind if failure else None,
            "reason": failure.reason if failure else None,
            "text": answer.text if answer else None,
            "logprobs": answer.logprobs if answer else None,
            "tokens": [answer.prompt_tokens, answer.completion_tokens] if answer else None,
            "settings": question.settings,
            "texts": [text for message in question.messages for text in _message_texts(message["content"])],
            "audio": [
                {"sha256": clip_hash, "seconds": clip.seconds, "sample_rate": clip.sample_rate}
                for clip_hash, clip in zip(hashes, question.clips, strict=True)
            ],
        }
        append_json_line(self._log, line)


def _message_texts(content: str | list[dict[str, Any]]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]
