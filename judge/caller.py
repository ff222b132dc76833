"""One reading of a judge, from the cache or paid for: cache, permit, question, strict reading, cache, log.

Invariant: every lease is given back, whatever happens under it; only what was read is cached; nothing here
retries but for an outage: while the breaker is open a call waits for its turn and asks again, so a run pauses
and resumes. After ``outage_s`` of that it fails. The log has the audio's hash and no audio, and no header.
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
from judge.limits import Limiter, Permits
from judge.types import CallFailed, Scored
from rollout.types import Speech

Ask = Callable[[dict[str, Any]], Awaitable[Answer]]  # ``judge.chat.ask`` with client and endpoint given
LOOKS = 4  # times per ``outage_s`` that a waiting call looks whether the endpoint is still down


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Per million tokens, in any one currency. An endpoint of one's own costs nothing."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, answer: Answer) -> float:
        """What an answer cost."""
        return (self.prompt * answer.prompt_tokens + self.completion * answer.completion_tokens) / 1e6


class Gate(Permits, Protocol):
    """Permits that also tell whether the breaker holds everybody back."""

    async def is_open(self) -> bool:
        """False only while calls pass freely."""
        ...


class LocalGate:
    """A limiter of this process as a Gate."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self.acquire = limiter.acquire
        self.release = limiter.release

    async def is_open(self) -> bool:
        """A breaker that waits for its probe is open to nobody else."""
        return self._limiter.state().breaker != "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One call. ``clips``: the recordings of ``messages``, in order; ``read`` gives ``readings`` numbers."""

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

    Example:
        caller = Caller(partial(ask, client, endpoint), endpoint.model, LocalGate(limiter), outage_s=600.0)
        (score,) = await caller.call(question)
    """

    def __init__(
        self,
        ask: Ask,
        model: str,
        gate: Gate,
        *,
        outage_s: float,
        price: Price | None = None,
        cache: VerdictCache | None = None,
        log: Path | None = None,
    ) -> None:
        if not 0 < outage_s < float("inf"):
            raise ValueError(f"outage_s must be positive and finite: got {outage_s}")
        self.model = model
        self._ask, self._gate, self._outage_s = ask, gate, outage_s
        self._price, self._cache, self._log = price or Price(), cache, log

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
        outage = _Outage(self._gate, self._outage_s)
        seconds = sum(clip.seconds for clip in question.clips)
        while True:
            lease = await outage.lease(seconds)
            try:
                return await self._once(question, hashes, lease)
            except CallFailed as failure:
                if not failure.retryable or not await outage.goes_on(failure):
                    raise

    async def _once(self, question: Question, hashes: list[str], lease: int) -> Sequence[Reading]:
        ok: bool | None = None  # of a call that was cancelled or refused nothing is learnt about the endpoint
        spent = 0.0
        answer: Answer | None = None
        start = time.monotonic()
        try:
            answer = await self._ask(question.settings | {"messages": question.messages})
            ok, spent = True, self._price.of(answer)
            readings = question.read(answer)
        except CallFailed as failure:
            ok = False if failure.retryable else ok
            self._write(question, hashes, answer, failure, time.monotonic() - start)
            raise
        finally:
            await self._gate.release(lease, ok=ok, spent=spent)
        assert len(readings) == question.readings
        self._write(question, hashes, answer, None, time.monotonic() - start)
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
        answer: Answer | None,
        failure: CallFailed | None,
        seconds: float,
    ) -> None:
        if self._log is None:
            return
        line = {
            "time": time.time(),
            "judge": question.judge,
            "model": self.model,
            "repeat": question.repeat,
            "seconds": round(seconds, 4),
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


class _Outage:
    """How long one call has seen the endpoint down."""

    def __init__(self, gate: Gate, longest_s: float) -> None:
        self._gate, self._longest_s = gate, longest_s
        self._since: float | None = None
        self._last = "calls of other workers failed"

    async def goes_on(self, failure: CallFailed) -> bool:
        """Is there anything to wait for after this failure? CallFailed (breaker): it lasted too long."""
        self._last = str(failure)
        return await self._still_down()

    async def lease(self, seconds: float) -> int:
        """Wait for a lease, however long for the limits, but not longer than an outage may last."""
        asked = asyncio.ensure_future(self._gate.acquire(seconds))
        taken = False
        try:
            while not asked.done():
                await asyncio.wait({asked}, timeout=self._longest_s / LOOKS)
                if not asked.done():
                    await self._still_down()
            taken = True
            return asked.result()
        finally:
            if (
                not taken and not asked.cancel() and asked.exception() is None
            ):  # granted while we were leaving
                await self._gate.release(asked.result(), ok=None, spent=0.0)

    async def _still_down(self) -> bool:
        if not await self._gate.is_open():
            self._since = None
            return False
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._longest_s:
            reason = f"the endpoint stayed down for {self._longest_s:g} s; last: {self._last}"
            raise CallFailed("breaker", reason, retryable=True)
        return True


def _texts(content: str | list[dict[str, Any]]) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]
