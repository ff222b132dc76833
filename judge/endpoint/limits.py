"""The one limiter of an endpoint: concurrency, requests and audio per minute, money, circuit breaker.

Invariant: a call is on its way only under a lease, and leases are given in the order they were asked for,
each at the first moment at which every limit allows it. Limits make callers wait; only the spend cap turns
them away.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from judge.endpoint.breaker import BreakerState, CircuitBreaker
from judge.types import CallFailed

MINUTE = 60.0  # seconds
BURST_SHARE = 0.01  # share of a minute's allowance that may go at once: makes up for timers that ring late
TIMER_TOLERANCE_S = 1e-6  # seconds that a timer may ring early


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLimits:
    """What the endpoint and its owner allow. None: no such limit. ValueError: not a limit."""

    concurrency: int  # calls on their way
    requests_per_minute: float | None
    audio_seconds_per_minute: float | None
    spend_cap: float | None  # in the currency of ``spent``
    breaker_failures: int  # in a row that open the breaker
    breaker_rest_s: float  # before the first probe

    def __post_init__(self) -> None:
        for name in ("concurrency", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        rates = ("requests_per_minute", "audio_seconds_per_minute", "spend_cap")
        for name in (*rates, "breaker_rest_s"):
            limit = getattr(self, name)
            if not (limit is None and name in rates) and not 0 < limit < inf:
                raise ValueError(f"{name} must be positive and finite: got {limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterFigures:
    """What the metrics show. Counts and sums since the limiter was made."""

    breaker: BreakerState
    in_flight: int
    waiting: int
    requests: int  # leases given
    spent: float
    opened: int  # times the breaker opened, after failed probes included
    seconds_open: float  # in which the breaker was not closed


class RateLimit:
    """An allowance per minute by virtual scheduling (the generic cell rate algorithm of ITU-T I.371).

    Whatever the demand, the amounts within any 60 s, but for the last of them, add up to less than
    ``per_minute`` + ``burst``: an amount that has begun is not cut in two.
    """

    def __init__(self, per_minute: float, burst: float) -> None:
        self._cost = MINUTE / per_minute  # seconds of schedule per unit
        self._slack = burst * self._cost
        self._scheduled = -inf  # when everything granted so far is paid off

    def due(self) -> float:
        """When the next amount, however large, may go."""
        return self._scheduled - self._slack

    def charge(self, amount: float, now: float) -> None:
        """It goes now, at ``due`` or later."""
        self._scheduled = max(self._scheduled, now) + amount * self._cost


def limit_requests(per_minute: float | None) -> RateLimit:
    """The limit of calls per minute; None: no limit. A burst may exceed it by 1 %, rounded down to whole calls."""
    return RateLimit(inf, 0) if per_minute is None else RateLimit(per_minute, BURST_SHARE * per_minute // 1)


def limit_audio(per_minute: float | None) -> RateLimit:
    """Rate of audio seconds: in no minute more than 1 % and the last clip above. None: any."""
    return RateLimit(inf, 0) if per_minute is None else RateLimit(per_minute, BURST_SHARE * per_minute)


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """Leave to make one attempt; for ``release``."""

    opened: int  # of the breaker, for its ``end``
    about: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    audio_seconds: float
    about: str | None
    granted: asyncio.Future[Lease | None]  # None: the spend cap was reached


class Limiter:
    """Hands out leases. For one event loop: that of the process that makes all calls to the endpoint.

    ``spent``: what earlier processes under the same cap have spent. ``restarted``: one of them may have used up
    the last minute's rates, so where there are any the first lease comes a minute later. ``clock``: seconds,
    never backwards.

    Example:
        lease = await limiter.acquire(audio_seconds=3.0)
        ...  # one request
        limiter.release(lease, ok=True, spent=0.0004)
    """

    def __init__(
        self,
        limits: EndpointLimits,
        *,
        spent: float = 0.0,
        restarted: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._spent, self._clock = limits, spent, clock
        self._breaker = CircuitBreaker(limits.breaker_failures, limits.breaker_rest_s)
        self._requests = limit_requests(limits.requests_per_minute)
        self._audio = limit_audio(limits.audio_seconds_per_minute)
        rated = limits.requests_per_minute is not None or limits.audio_seconds_per_minute is not None
        self._opens = clock() + MINUTE if restarted and rated else -inf
        self._waiting: deque[_Waiter] = deque()  # in the order of asking
        self._leases: set[Lease] = set()
        self._given = 0
        self._cause = "its calls did not end"
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, audio_seconds: float, about: str | None = None) -> Lease:
        """Wait for every limit, first come, first served. Cancelling it costs nothing.

        ``about``: the case that the call is about: one that fails by itself is not taken for an outage.
        CallFailed (spend_cap): the cap is reached, now or while waiting. ValueError: no duration in seconds.
        """
        if not 0 <= audio_seconds < inf:
            raise ValueError(f"audio_seconds must be finite and not negative: got {audio_seconds}")
        waiter = _Waiter(audio_seconds, about, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._grant_due_leases()
        try:
            lease = await waiter.granted
        except asyncio.CancelledError:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            elif not waiter.granted.cancelled() and (unused := waiter.granted.result()) is not None:
                self._end(unused, ok=None)  # granted, and nobody left to use it
            self._grant_due_leases()
            raise
        if lease is not None:
            return lease
        reason = f"spent {self._spent:g} of a spend cap of {self._limits.spend_cap:g}"
        raise CallFailed("spend_cap", reason)

    def release(self, lease: Lease, *, ok: bool | None, spent: float, why: str = "") -> None:
        """The call has ended and cost ``spent``. ValueError: not an amount of money.

        ``ok``: the endpoint answered; False: it did not, and ``why``; None: the call failed for a reason that
        says nothing about the endpoint.
        """
        if not 0 <= spent < inf:
            raise ValueError(f"spent must be finite and not negative: got {spent}")
        if ok is False and why:
            self._cause = why
        self._spent += spent
        self._end(lease, ok)
        self._grant_due_leases()

    def down_s(self) -> float:
        """For how many seconds the breaker has held calls back; 0 while they pass freely.

        A breaker that waits for its probe is open to nobody else.
        """
        return self._breaker.down_s(self._clock())

    @property
    def cause(self) -> str:
        """Why the last call failed that said something about the endpoint, whoever made it."""
        return self._cause

    def state(self) -> LimiterFigures:
        """The figures as of now."""
        now = self._clock()
        return LimiterFigures(
            breaker=self._breaker.state(now),
            in_flight=len(self._leases),
            waiting=len(self._waiting),
            requests=self._given,
            spent=self._spent,
            opened=self._breaker.opened,
            seconds_open=self._breaker.seconds_open(now),
        )

    def _end(self, lease: Lease, ok: bool | None) -> None:
        self._leases.remove(lease)
        self._breaker.end(lease.opened, ok, self._clock(), lease.about)

    def _due(self) -> float:
        """When the head of the queue may go if nothing is released before; inf: not without a release."""
        if len(self._leases) >= self._limits.concurrency:
            return inf
        return max(self._opens, self._breaker.due(), self._requests.due(), self._audio.due())

    def _grant_due_leases(self) -> None:
        """Give leases as long as all limits allow it, then come back when they may allow the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        capped = self._limits.spend_cap is not None and self._spent >= self._limits.spend_cap
        while self._waiting:
            due = self._due()
            if due > now + TIMER_TOLERANCE_S and not capped:
                if due < inf:
                    self._timer = asyncio.get_running_loop().call_later(due - now, self._grant_due_leases)
                return
            waiter = self._waiting.popleft()
            if waiter.granted.done():  # a cancelled task only notices when its turn comes
                continue
            waiter.granted.set_result(None if capped else self._start_lease(waiter, now))

    def _start_lease(self, waiter: _Waiter, now: float) -> Lease:
        lease = Lease(self._breaker.start(), waiter.about)
        self._leases.add(lease)
        self._requests.charge(1, now)
        self._audio.charge(waiter.audio_seconds, now)
        self._given += 1
        return lease
