"""Rate-limit leases of one call's attempts, and what the call does while the endpoint is down.

Invariant: every lease is given back, whatever happens under it. While the breaker is open nothing of a reply
is sent: a small question about no reply (the ping) finds out whether the endpoint is back, so that a reply
which fails by itself keeps no other call waiting. No call waits longer than an outage may last.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from judge.endpoint.chat import ChatAnswer
from judge.endpoint.completion import Completion
from judge.endpoint.http import AttemptCall
from judge.endpoint.limits import Lease, Limiter
from judge.types import CallFailed

MIN_CHECKS_PER_OUTAGE = (
    4  # times per ``outage_s``, at least, that a waiting call looks whether the endpoint is still down
)
MAX_CHECK_INTERVAL_S = 5.0  # seconds, at most, between two looks
MAX_OUTAGE_ROUNDS = 2  # of attempts, for a call that failed while the endpoint was down

EndpointPing = Callable[[], Awaitable[ChatAnswer]]  # asks something small, once


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrice:
    """Per million tokens, in any one currency. An endpoint of one's own costs nothing."""

    prompt: float = 0.0
    completion: float = 0.0

    def cost_of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What an answer cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class Outage:
    """Whether a call goes on while the endpoint is down: ``longest_s`` from when the first one saw it."""

    def __init__(self, limiter: Limiter, longest_s: float, ping: EndpointPing | None, price: TokenPrice) -> None:
        self._limiter, self._longest_s = limiter, longest_s
        self._ping, self._price = ping, price
        self._rounds = 0
        self.suspected = False  # there is a reason to think that the endpoint is down

    def should_wait(self, failure: CallFailed) -> bool:
        """Is there anything to wait for after this failure? CallFailed (breaker): it has lasted too long."""
        if failure.kind == "breaker":  # that was the end of the waiting
            return False
        self._rounds += 1
        if self._ping is not None and self._rounds >= MAX_OUTAGE_ROUNDS:
            return False  # the endpoint was up in between: it is the reply
        return self._is_still_down()

    async def acquire_lease(self, seconds: float, about: str) -> Lease:
        """A lease, once the endpoint answers at all. CallFailed (breaker): it has not for too long."""
        while True:
            lease = await self._acquire_unless_down(seconds, about)
            if self._ping is None or not self.suspected or self._limiter.down_s() == 0:
                return lease
            await self._find_out(self._ping, lease)

    async def _find_out(self, ping: EndpointPing, lease: Lease) -> None:
        """Use the lease to tell the breaker whether the endpoint is back."""
        ok, tokens, why = False, (0, 0), ""
        try:
            answer = await ping()
            ok, tokens = True, (answer.prompt_tokens, answer.completion_tokens)
        except CallFailed as failure:
            ok, tokens, why = not failure.retryable, failure.tokens, str(failure)
        finally:
            self._limiter.release(lease, ok=ok, spent=self._price.cost_of(*tokens), why=why)

    async def _acquire_unless_down(self, seconds: float, about: str) -> Lease:
        """Wait for a lease, however long for the limits, but not longer than an outage may last."""
        acquisition = asyncio.ensure_future(self._limiter.acquire(seconds, about))
        is_taken = False
        try:
            while not acquisition.done():
                await asyncio.wait(
                    {acquisition}, timeout=min(self._longest_s / MIN_CHECKS_PER_OUTAGE, MAX_CHECK_INTERVAL_S)
                )
                if not acquisition.done():
                    self._is_still_down()
            is_taken = True
            return acquisition.result()
        finally:
            if (
                not is_taken and not acquisition.cancel() and acquisition.exception() is None
            ):  # granted while we were leaving
                self._limiter.release(acquisition.result(), ok=None, spent=0.0)

    def _is_still_down(self) -> bool:
        down_s = self._limiter.down_s()
        if down_s >= self._longest_s:
            reason = f"the endpoint stayed down for {down_s:.0f} s; last: {self._limiter.cause}"
            raise CallFailed("breaker", reason, retryable=True)
        self.suspected |= down_s > 0
        return down_s > 0


class AttemptLeases:
    """The leases of one call, one per attempt, and what the attempts took."""

    def __init__(self, limiter: Limiter, outage: Outage, about: str, audio_seconds: float, price: TokenPrice) -> None:
        self._limiter, self._outage = limiter, outage
        self._about, self._audio_seconds, self._price = about, audio_seconds, price
        self.count = 0
        self.seconds = 0.0  # on their way
        self.spent = 0.0

    async def run_leased(self, attempt: AttemptCall[Completion]) -> Completion:
        """Run an attempt under a lease. CallFailed: its own, or there is no lease to be had."""
        lease = await self._outage.acquire_lease(self._audio_seconds, self._about)
        ok: bool | None = None  # of a call that was cancelled or refused nothing is learnt about the endpoint
        spent, why, start = 0.0, "", time.monotonic()
        self.count += 1
        try:
            completion = await attempt()
            ok, spent = True, self._price.cost_of(completion.prompt_tokens, completion.completion_tokens)
        except CallFailed as failure:
            ok, spent, why = (
                (False if failure.retryable else None),
                self._price.cost_of(*failure.tokens),
                str(failure),
            )
            self._outage.suspected |= failure.retryable
            raise
        finally:
            self.seconds += time.monotonic() - start
            self.spent += spent
            self._limiter.release(lease, ok=ok, spent=spent, why=why)
        return completion
