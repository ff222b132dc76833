"""One reading of a judge, from the cache or paid for: cache, leases, question, strict reading, cache, log.

Invariant: every attempt is on its way under a lease of its own, which is given back whatever happens under
it; only what was read is cached; nothing here retries but for an outage: while the breaker is open a call
waits for its turn and asks again, so a run pauses and resumes. After ``outage_s`` of that it fails. The log
has the audio's hash and no audio, and no header.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from judge.answers import Reading
from judge.cache import VerdictCache, key, pcm_hash
from judge.chat import Answer
from judge.completion import Completion
from judge.http import Attempt, Under, at_once
from judge.limits import Permits
from judge.types import CallFailed, Scored
from rollout.types import Speech

LOOKS = 4  # times per ``outage_s``, at least, that a waiting call looks whether the endpoint is still down
LOOK_S = 5.0  # seconds, at most, between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Per million tokens, in any one currency. An endpoint of one's own costs nothing."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What an answer cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


def about(*waves: Speech) -> str:
    """A name for the replies in hand: equal for equal sound only."""
    return " ".join(pcm_hash(one.wave, one.sample_rate) for one in waves)


class Ask(Protocol):
    """``judge.chat.ask`` with client and endpoint given."""

    def __call__(self, body: dict[str, Any], under: Under[Completion] = at_once) -> Awaitable[Answer]:
        """One question."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call. ``clips``: the recordings of ``messages``, in order; ``read`` gives ``readings`` numbers.

    ``about``: the reply or group that is judged, the same on every axis and repeat.
    """

    about: str
    judge: str  # provenance of what is read
    rubric: str  # name and version
    messages: list[dict[str, Any]]
    settings: dict[str, Any]  # every other field of the request
    clips: tuple[Speech, ...]
    repeat: int
    read: Callable[[Answer], Sequence[Reading]]
    readings: int = 1


class Caller:
    """Asks one endpoint. Any number of calls may run at once.

    ``cache`` None: every call is paid for (canaries, test-retest). ``log``: a line of JSON per call is added.
    ``endpoint``: its address, for the log.

    Example:
        caller = Caller(partial(ask, client, endpoint), endpoint.model, limiter, outage_s=600.0)
        (score,) = await caller.call(question)
    """

    def __init__(
        self,
        ask: Ask,
        model: str,
        permits: Permits,
        *,
        outage_s: float,
        price: Price | None = None,
        cache: VerdictCache | None = None,
        log: Path | None = None,
        endpoint: str = "",
    ) -> None:
        if not 0 < outage_s < float("inf"):
            raise ValueError(f"outage_s must be positive and finite: got {outage_s}")
        self.model = model
        self._ask, self._permits, self._outage_s = ask, permits, outage_s
        self._price, self._cache, self._log = price or Price(), cache, log
        self._endpoint = endpoint

    async def call(self, question: Question) -> list[Scored]:
        """What the judge read, on the scale of the question's form. CallFailed: why there is nothing.

        ValueError: the cache or the key cannot be used. OSError: the log cannot be written.
        """
        hashes = [pcm_hash(clip.wave, clip.sample_rate) for clip in question.clips]
        names = self._names(question, hashes)
        known = [self._cache.get(name) for name in names] if self._cache else []
        found = [verdict for verdict in known if verdict is not None]
        if len(found) == len(names):
            return found
        readings = await self._through_outages(question, hashes)
        scores = [Scored(value=r.number, judge=question.judge, why=r.reason) for r in readings]
        if self._cache:
            for name, score in zip(names, scores, strict=True):
                self._cache.put(name, score)
        return scores

    async def _through_outages(self, question: Question, hashes: list[str]) -> Sequence[Reading]:
        outage = _Outage(self._permits, self._outage_s)
        while True:
            try:
                return await self._once(question, hashes, outage)
            except CallFailed as failure:
                if not failure.retryable or not await outage.goes_on(failure):
                    raise

    async def _once(self, question: Question, hashes: list[str], outage: "_Outage") -> Sequence[Reading]:
        seconds = sum(clip.seconds for clip in question.clips)
        turns = _Turns(self._permits, outage, question.about, seconds, self._price)
        answer: Answer | None = None
        try:
            answer = await self._ask(question.settings | {"messages": question.messages}, turns.take)
            readings = question.read(answer)
        except CallFailed as failure:
            self._write(question, hashes, turns, answer, failure)
            raise
        assert len(readings) == question.readings
        self._write(question, hashes, turns, answer, None)
        return readings

    def _names(self, question: Question, hashes: list[str]) -> list[str]:
        """Keys of the cache, one per reading, over everything that is sent."""
        return [
            key(
                model=self.model,
                rubric=question.rubric,
                sampling=question.settings | {"reading": reading},
                audio=hashes,
                texts=[text for message in question.messages for text in _texts(message["content"])],
                repeat=question.repeat,
            )
            for reading in range(question.readings)
        ]

    def _write(
        self,
        question: Question,
        hashes: list[str],
        turns: "_Turns",
        answer: Answer | None,
        failure: CallFailed | None,
    ) -> None:
        if self._log is None:
            return
        line = {
            "time": time.time(),
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
            "texts": [text for message in question.messages for text in _texts(message["content"])],
            "audio": [
                {"sha256": found, "seconds": clip.seconds, "sample_rate": clip.sample_rate}
                for found, clip in zip(hashes, question.clips, strict=True)
            ],
        }
        with self._log.open("ab", buffering=0) as file:  # one write: lines of many workers do not mix
            file.write(json.dumps(line).encode() + b"\n")


class _Turns:
    """The leases of one call, one per attempt, and what the attempts took."""

    def __init__(
        self, permits: Permits, outage: "_Outage", about: str, audio_seconds: float, price: Price
    ) -> None:
        self._permits, self._outage = permits, outage
        self._about, self._audio_seconds, self._price = about, audio_seconds, price
        self.count = 0
        self.seconds = 0.0  # on their way
        self.spent = 0.0

    async def take(self, attempt: Attempt[Completion]) -> Completion:
        """Run an attempt under a lease. CallFailed: its own, or there is no lease to be had."""
        lease = await self._outage.lease(self._audio_seconds, self._about)
        ok: bool | None = None  # of a call that was cancelled or refused nothing is learnt about the endpoint
        spent, start = 0.0, time.monotonic()
        self.count += 1
        try:
            found = await attempt()
            ok, spent = True, self._price.of(found.prompt_tokens, found.completion_tokens)
        except CallFailed as failure:
            ok, spent = (False if failure.retryable else None), self._price.of(*failure.tokens)
            raise
        finally:
            self.seconds += time.monotonic() - start
            self.spent += spent
            await self._permits.release(lease, ok=ok, spent=spent)
        return found


class _Outage:
    """Whether a call goes on while the endpoint is down: ``longest_s`` from when the first one saw it."""

    def __init__(self, permits: Permits, longest_s: float) -> None:
        self._permits, self._longest_s = permits, longest_s
        self._last = "calls of other workers failed"

    async def goes_on(self, failure: CallFailed) -> bool:
        """Is there anything to wait for after this failure? CallFailed (breaker): it has lasted too long."""
        self._last = str(failure)
        return await self._still_down()

    async def lease(self, seconds: float, about: str) -> int:
        """Wait for a lease, however long for the limits, but not longer than an outage may last."""
        asked = asyncio.ensure_future(self._permits.acquire(seconds, about))
        taken = False
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=min(self._longest_s / LOOKS, LOOK_S))
                if not asked.done():
                    await self._still_down()
            taken = True
            return asked.result()
        finally:
            if (
                not taken and not asked.cancel() and asked.exception() is None
            ):  # granted while we were leaving
                await self._permits.release(asked.result(), ok=None, spent=0.0)

    async def _still_down(self) -> bool:
        down_s = await self._permits.down_s()
        if down_s >= self._longest_s:
            reason = f"the endpoint stayed down for {down_s:.0f} s; last: {self._last}"
            raise CallFailed("breaker", reason, retryable=True)
        return down_s > 0


def _texts(content: str | list[dict[str, Any]]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]
