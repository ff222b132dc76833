"""One limiter for all judge workers: concurrency, requests and audio per minute, money, circuit breaker.

Invariant: a call is on its way only under a lease, and leases are given in the order they were asked for,
each at the first moment at which every limit allows it. Limits make callers wait; only the spend cap turns
them away.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Protocol

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
    lease_s: float = 600.0  # longer than any call; a lease held longer belongs to a worker that died

    def __post_init__(self) -> None:
        for name in ("concurrency", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        rates = ("requests_per_minute", "audio_seconds_per_minute", "spend_cap")
        for name in (*rates, "breaker_rest_s", "lease_s"):
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
    reclaimed: int  # of these, never released in time
    spent: float
    opened: int  # times the breaker opened, after failed probes included
    seconds_open: float  # in which the breaker was not closed


class LimiterProtocol(Protocol):
    """What a judge needs of a limiter, wherever it lives."""

    async def acquire(self, audio_seconds: float, about: str | None = None) -> int:
        """Wait for a lease; see ``Limiter.acquire``. CallFailed (spend_cap): there will never be one."""
        ...

    async def release(self, lease: int, *, ok: bool | None, spent: float, why: str = "") -> None:
        """Give it back; see ``Limiter.release``."""
        ...

    async def down_s(self) -> float:
        """For how many seconds the breaker has held calls back; 0 while they pass freely."""
        ...

    async def cause(self) -> str:
        """Why the last call failed that said something about the endpoint, whoever made it."""
        ...


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
    """Rate of calls: in no minute more than 1 % above, thus none at all below 100 a minute. None: any."""
    return RateLimit(inf, 0) if per_minute is None else RateLimit(per_minute, BURST_SHARE * per_minute // 1)


def limit_audio(per_minute: float | None) -> RateLimit:
    """Rate of audio seconds: in no minute more than 1 % and the last clip above. None: any."""
    return RateLimit(inf, 0) if per_minute is None else RateLimit(per_minute, BURST_SHARE * per_minute)


@dataclass(frozen=True, slots=True)
class _Waiter:
    audio_seconds: float
    about: str | None
    owner: str
    granted: asyncio.Future[bool]  # False: the spend cap was reached


@dataclass(frozen=True, slots=True)
class _Lease:
    expires: float
    opened: int  # what the breaker wants back
    about: str | None
    owner: str


class Limiter:
    """Hands out leases. For one event loop; workers elsewhere reach it through an actor or a socket.

    ``spent``: what earlier runs under the same cap have spent. ``clock``: seconds, never backwards.

    Example:
        lease = await limiter.acquire(audio_seconds=3.0)
        ...  # one request
        await limiter.release(lease, ok=True, spent=0.0004)
    """

    def __init__(
        self, limits: EndpointLimits, *, spent: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._spent, self._clock = limits, spent, clock
        self._breaker = CircuitBreaker(limits.breaker_failures, limits.breaker_rest_s)
        self._requests = limit_requests(limits.requests_per_minute)
        self._audio = limit_audio(limits.audio_seconds_per_minute)
        self._waiting: OrderedDict[int, _Waiter] = OrderedDict()  # in the order of asking
        self._leases: OrderedDict[int, _Lease] = OrderedDict()  # in the order of giving, thus of expiry
        # From the wall clock: a lease from before a restart of the limiter must not be taken for a new one.
        self._tickets = count(time.time_ns())
        self._given = self._reclaimed = 0
        self._cause = "its calls did not end"
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, audio_seconds: float, about: str | None = None, owner: str = "") -> int:
        """Wait for every limit, first come, first served. Returns the lease. Cancelling it costs nothing.

        ``about``: the case that the call is about: one that fails by itself is not taken for an outage.
        ``owner``: for ``forget``.
        CallFailed (spend_cap): the cap is reached, now or while waiting. ValueError: no duration in seconds.
        """
        if not 0 <= audio_seconds < inf:
            raise ValueError(f"audio_seconds must be finite and not negative: got {audio_seconds}")
        waiter = _Waiter(audio_seconds, about, owner, asyncio.get_running_loop().create_future())
        ticket = next(self._tickets)
        self._waiting[ticket] = waiter
        self._grant_due_leases()
        try:
            granted = await waiter.granted
        except asyncio.CancelledError:
            if self._waiting.pop(ticket, None) is None:  # granted, and nobody left to use it
                self._end(ticket, ok=None)
            self._grant_due_leases()
            raise
        if granted:
            return ticket
        reason = f"spent {self._spent:g} of a spend cap of {self._limits.spend_cap:g}"
        raise CallFailed("spend_cap", reason)

    async def release(self, lease: int, *, ok: bool | None, spent: float, why: str = "") -> None:
        """The call has ended and cost ``spent``. ValueError: not an amount of money.

        ``ok``: the endpoint answered; False: it did not, and ``why``; None: the call failed for a reason that
        says nothing about the endpoint. A lease unknown here (reclaimed, or from before a restart) only
        counts as money.
        """
        if not 0 <= spent < inf:
            raise ValueError(f"spent must be finite and not negative: got {spent}")
        if ok is False and why:
            self._cause = why
        self._spent += spent
        self._end(lease, ok)
        self._grant_due_leases()

    async def down_s(self) -> float:
        """A breaker that waits for its probe is open to nobody else."""
        return self._breaker.down_s(self._clock())

    async def cause(self) -> str:
        """See ``Permits.cause``."""
        return self._cause

    async def forget(self, owner: str) -> None:
        """Whoever asked under this name is gone: nobody waits for it, and its leases teach nothing."""
        for ticket, waiter in list(self._waiting.items()):
            if waiter.owner == owner:
                del self._waiting[ticket]
                waiter.granted.cancel()
        for ticket, lease in list(self._leases.items()):
            if lease.owner == owner:
                self._end(ticket, ok=None)
        self._grant_due_leases()

    def state(self) -> LimiterFigures:
        """The figures as of now."""
        now = self._clock()
        self._reclaim_expired(now)
        return LimiterFigures(
            breaker=self._breaker.state(now),
            in_flight=len(self._leases),
            waiting=len(self._waiting),
            requests=self._given,
            reclaimed=self._reclaimed,
            spent=self._spent,
            opened=self._breaker.opened,
            seconds_open=self._breaker.seconds_open(now),
        )

    def _end(self, ticket: int, ok: bool | None) -> None:
        lease = self._leases.pop(ticket, None)
        if lease is not None:
            self._breaker.end(lease.opened, ok, self._clock(), lease.about)

    def _reclaim_expired(self, now: float) -> None:
        """A worker that died says nothing about the endpoint, and what its call cost is not known here."""
        while self._leases and self._expiry() <= now + TIMER_TOLERANCE_S:
            self._end(next(iter(self._leases)), ok=None)
            self._reclaimed += 1

    def _expiry(self) -> float:
        """Of the oldest lease."""
        return next(iter(self._leases.values())).expires if self._leases else inf

    def _due(self) -> float:
        """When the head of the queue may go if nothing is released before; inf: not without a release."""
        if len(self._leases) >= self._limits.concurrency:
            return inf
        return max(self._breaker.due(), self._requests.due(), self._audio.due())

    def _grant_due_leases(self) -> None:
        """Give leases as long as all limits allow it, then come back when they may allow the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        self._reclaim_expired(now)
        if self._limits.spend_cap is not None and self._spent >= self._limits.spend_cap:
            while self._waiting:
                self._answer_waiter(self._waiting.popitem(last=False)[1], granted=False)
        while self._waiting:
            due = self._due()
            if due > now + TIMER_TOLERANCE_S:
                delay = min(due, self._expiry()) - now
                self._timer = asyncio.get_running_loop().call_later(delay, self._grant_due_leases)
                return
            ticket, waiter = self._waiting.popitem(last=False)
            if self._answer_waiter(waiter, granted=True):
                self._leases[ticket] = _Lease(
                    now + self._limits.lease_s, self._breaker.start(), waiter.about, waiter.owner
                )
                self._requests.charge(1, now)
                self._audio.charge(waiter.audio_seconds, now)
                self._given += 1

    @staticmethod
    def _answer_waiter(waiter: _Waiter, *, granted: bool) -> bool:
        """Whether anybody was still waiting: a cancelled task only notices when its turn comes."""
        if waiter.granted.done():
            return False
        waiter.granted.set_result(granted)
        return True
