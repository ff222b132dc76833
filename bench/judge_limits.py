"""An endpoint's limiter under 128 hungry callers: are the rates held within 2 %, how far is the cap overshot?

    python -m bench.judge_limits [--seconds 75]

All callers ask without a pause, as the calls of a judge's actor do. Exit status 1: a limit was not held.
"""

import argparse
import asyncio
import sys
import time
from bisect import bisect_left
from dataclasses import replace
from itertools import chain
from math import inf
from random import Random

from judge.endpoint.limits import EndpointLimits, Limiter
from judge.types import CallFailed

CALLERS = 128
CLIP = 3.0  # seconds of audio per call
PRICE = 1 / 64  # per call; sums of it are exact
MINUTE = 60.0
OPEN = EndpointLimits(
    concurrency=64,
    requests_per_minute=None,
    audio_seconds_per_minute=None,
    spend_cap=None,
    breaker_failures=5,
    breaker_rest_s=1.0,
)


class Measured:
    """A limiter and what was seen of it."""

    def __init__(self, limits: EndpointLimits) -> None:
        self.limiter = Limiter(limits)
        self.cap = limits.spend_cap or inf
        self.on_their_way = -1  # calls, when the cap was reached

    async def ask_until(self, end: float, random: Random) -> list[float]:
        """Ask until the time is over or the money spent. Returns when leases were had."""
        grants: list[float] = []
        while time.monotonic() < end:
            try:
                lease = await self.limiter.acquire(CLIP)
            except CallFailed:
                break
            grants.append(time.monotonic())
            await asyncio.sleep(random.uniform(0.02, 0.2))
            self.limiter.release(lease, ok=True, spent=PRICE)
            figures = self.limiter.state()
            if figures.spent >= self.cap and self.on_their_way < 0:
                self.on_their_way = figures.in_flight
        return grants


async def measure(limits: EndpointLimits, seconds: float) -> tuple[list[float], Measured]:
    """When leases were had, by all callers together."""
    measured, end = Measured(limits), time.monotonic() + seconds
    grants = await asyncio.gather(*(measured.ask_until(end, Random(seed)) for seed in range(CALLERS)))
    return sorted(chain.from_iterable(grants)), measured


def per_minute(times: list[float], amount: float, seconds: float) -> tuple[float, float]:
    """Least and most in any 60 s that lie within the first ``seconds`` after the first grant."""
    starts = [i for i, at in enumerate(times) if at + MINUTE <= times[0] + seconds]
    found = [(bisect_left(times, times[i] + MINUTE) - i) * amount for i in starts]
    return min(found), max(found)


def rate(name: str, limits: EndpointLimits, limit: float, amount: float, options: argparse.Namespace) -> bool:
    """Print a line. Whether the rate was held."""
    grants, _ = asyncio.run(measure(limits, options.seconds))
    least, most = per_minute(grants, amount, options.seconds)
    held = 0.98 * limit <= least <= most <= 1.02 * limit
    between = f"{least:.0f} .. {most:.0f} ({least / limit - 1:+.2%} .. {most / limit - 1:+.2%})"
    print(f"{name:<16} limit {limit:>6.0f} per minute   any 60 s {between}   {'held' if held else 'BROKEN'}")
    return held


def spend(cap: float, options: argparse.Namespace) -> bool:
    """Print a line. Whether only calls that were on their way when the cap was reached came on top."""
    _, measured = asyncio.run(measure(replace(OPEN, spend_cap=cap), options.seconds))
    above = (measured.limiter.state().spent - cap) / PRICE
    held = 0 <= above <= measured.on_their_way
    print(
        f"spend cap        {cap / PRICE:.0f} calls' worth   reached with {measured.on_their_way} on their way,"
        f" {above:.0f} spent on top   {'held' if held else 'BROKEN'}"
    )
    return held


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=75.0, help="of demand, per rate; above 66")
    options = parser.parse_args()
    if options.seconds < 66:
        parser.error(f"--seconds must be at least 66: a minute and the start: got {options.seconds:g}")
    print(f"{CALLERS} callers")
    results = [
        spend(10.0, options),
        rate("requests", replace(OPEN, requests_per_minute=300), 300, 1, options),
        rate("requests", replace(OPEN, requests_per_minute=3000), 3000, 1, options),
        rate("audio seconds", replace(OPEN, audio_seconds_per_minute=6000), 6000, CLIP, options),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
