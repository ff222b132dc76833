"""The circuit breaker in front of a judge's endpoint: after enough failures in a row nobody asks for a while.

Closed: calls pass. Open: none does, until it has rested. Half-open: one call, the probe, finds out.
Invariant: from an opening until a probe succeeds at most one call starts at a time, and none while resting.
A case that fails again and again is no outage, however often it is asked about: it takes two to open.
Pure: there is no clock in here, whoever calls says what time it is (seconds, any origin, never backwards).
"""

from math import inf
from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]
MAX_REST_FACTOR = 8  # times the first rest; each failed probe doubles it up to here


class CircuitBreaker:
    """Opens after ``failures`` in a row and rests ``rest_s`` seconds before it lets a probe through."""

    def __init__(self, failures: int, rest_s: float) -> None:
        self._failures, self._rest_s = failures, rest_s
        self._streak = 0  # failures since the last success
        self._failing: set[object] = set()  # the cases that they are of
        self._rest = rest_s  # how long the next opening rests
        self._until: float | None = None  # end of the rest; None: closed
        self._probing = False
        self._since = self._before = 0.0  # start of this outage; seconds of all the earlier ones
        self.opened = 0
        """How often it opened, by a failed probe included."""

    def due(self) -> float:
        """When the next call may start; -inf: any time, inf: not before the probe has ended."""
        if self._until is None:
            return -inf
        return inf if self._probing else self._until

    def start(self) -> int:
        """A call starts, at ``due`` or later. Returns the ``opened`` that ``end`` needs."""
        self._probing = self._until is not None
        return self.opened

    def end(self, opened: int, ok: bool | None, now: float, about: str | None = None) -> None:
        """A call ended. ``ok`` None: nothing was learnt about the endpoint; after a probe, another may start.

        ``about``: the case that it was about; None: one of its own.
        A call from before the last opening is ignored: it tells how the endpoint was, not how it is, and
        the time-outs of one outage would otherwise cut the recovery short.
        """
        if opened != self.opened:
            return
        self._probing = False
        if ok:
            self._close(now)
        elif ok is False:
            self._streak += 1
            self._failing.add(about if about is not None else object())
            enough = self._streak >= self._failures and len(self._failing) >= min(2, self._failures)
            if enough:  # since it opened, one more is
                self._open(now)

    def state(self, now: float) -> BreakerState:
        """Half-open as soon as a probe may start."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half_open"

    def down_s(self, now: float) -> float:
        """How long this outage has lasted; 0 while calls pass."""
        return (now - self._since) * (self._until is not None)

    def seconds_open(self, now: float) -> float:
        """Seconds so far in which it was not closed."""
        return self._before + (now - self._since) * (self._until is not None)

    def _open(self, now: float) -> None:
        if self._until is None:
            self._since = now
        self._until = now + self._rest
        self._rest = min(2 * self._rest, MAX_REST_FACTOR * self._rest_s)
        self.opened += 1

    def _close(self, now: float) -> None:
        self._before = self.seconds_open(now)
        self._streak, self._rest, self._until = 0, self._rest_s, None
        self._failing.clear()
