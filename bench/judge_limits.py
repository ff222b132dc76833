"""The shared limiter under 8 processes: are the rates held within 2 %, and how far is the spend cap overshot?

    python -m bench.judge_limits [--seconds 75] [--processes 8]

The limiter runs in this process and is served over loopback, one connection for each of 16 callers per
process, all of them always hungry. Rates are counted where they matter: at the callers, by a clock that all
processes share. Exit status 1: a limit was not held.
"""

import argparse
import asyncio
import json
import sys
import time
from bisect import bisect_left
from dataclasses import replace
from itertools import chain
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import Connection
from random import Random
from typing import Any

from judge.endpoint.limits import EndpointLimits, Limiter
from judge.types import CallFailed

CALLERS = 16  # per process
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


class Served:
    """A limiter behind a socket."""

    def __init__(self, limits: EndpointLimits) -> None:
        self.limiter = Limiter(limits)
        self.cap = limits.spend_cap or inf
        self.on_their_way = -1  # calls, when the cap was reached

    async def caller(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A line of JSON asks, a line answers."""
        while line := await reader.readline():
            asked = json.loads(line)
            answer: dict[str, Any] = {}
            if "release" in asked:
                await self.limiter.release(asked["release"], ok=True, spent=asked["spent"])
                figures = self.limiter.state()
                if figures.spent >= self.cap and self.on_their_way < 0:
                    self.on_their_way = figures.in_flight
            else:
                try:
                    answer["lease"] = await self.limiter.acquire(asked["acquire"])
                except CallFailed as failed:
                    answer["failed"] = failed.kind
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


async def call_on(port: int, seconds: float, random: Random) -> list[float]:
    """Ask without a pause until the time is over or the money spent. Returns when leases were had."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    grants: list[float] = []

    async def say(asked: dict[str, Any]) -> dict[str, Any]:
        writer.write(json.dumps(asked).encode() + b"\n")
        return dict(json.loads(await reader.readline()))

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = await say({"acquire": CLIP})
        if "failed" in answer:
            break
        grants.append(time.monotonic())
        await asyncio.sleep(random.uniform(0.02, 0.2))
        await say({"release": answer["lease"], "spent": PRICE})
    writer.close()
    return grants


def caller(port: int, seconds: float, seed: int, pipe: Connection) -> None:
    """One process of callers."""

    async def main() -> list[float]:
        found = await asyncio.gather(*(call_on(port, seconds, Random(f"{seed} {i}")) for i in range(CALLERS)))
        return list(chain.from_iterable(found))

    pipe.send(asyncio.run(main()))


async def measure(limits: EndpointLimits, processes: int, seconds: float) -> tuple[list[float], Served]:
    """When leases were had, in all processes together, and what served them."""
    served = Served(limits)
    server = await asyncio.start_server(served.caller, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found: list[float] = []
    context = get_context("spawn")
    async with server:
        workers = []
        for seed in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=caller, args=(port, seconds, seed, theirs))
            process.start()
            theirs.close()
            workers.append((process, ours))
        for process, pipe in workers:
            found += await asyncio.to_thread(pipe.recv)
            await asyncio.to_thread(process.join)
    return sorted(found), served


def per_minute(times: list[float], amount: float, seconds: float) -> tuple[float, float]:
    """Least and most in any 60 s that lie within the first ``seconds`` after the first grant."""
    starts = [i for i, at in enumerate(times) if at + MINUTE <= times[0] + seconds]
    found = [(bisect_left(times, times[i] + MINUTE) - i) * amount for i in starts]
    return min(found), max(found)


def rate(name: str, limits: EndpointLimits, limit: float, amount: float, options: argparse.Namespace) -> bool:
    """Print a line. Whether the rate was held."""
    grants, _ = asyncio.run(measure(limits, options.processes, options.seconds))
    # Processes start one after another: the last seconds belong to those that started late.
    least, most = per_minute(grants, amount, options.seconds - 5)
    held = 0.98 * limit <= least <= most <= 1.02 * limit
    between = f"{least:.0f} .. {most:.0f} ({least / limit - 1:+.2%} .. {most / limit - 1:+.2%})"
    print(f"{name:<16} limit {limit:>6.0f} per minute   any 60 s {between}   {'held' if held else 'BROKEN'}")
    return held


def spend(cap: float, options: argparse.Namespace) -> bool:
    """Print a line. Whether only calls that were on their way when the cap was reached came on top."""
    _, served = asyncio.run(measure(replace(OPEN, spend_cap=cap), options.processes, options.seconds))
    above = (served.limiter.state().spent - cap) / PRICE
    held = 0 <= above <= served.on_their_way
    print(
        f"spend cap        {cap / PRICE:.0f} calls' worth   reached with {served.on_their_way} on their way,"
        f" {above:.0f} spent on top   {'held' if held else 'BROKEN'}"
    )
    return held


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=75.0, help="of demand, per rate; above 66")
    parser.add_argument("--processes", type=int, default=8)
    options = parser.parse_args()
    if options.seconds < 66:
        parser.error(f"--seconds must be at least 66: a minute and the start: got {options.seconds:g}")
    print(f"{options.processes} processes with {CALLERS} callers each")
    held = [
        spend(10.0, options),
        rate("requests", replace(OPEN, requests_per_minute=300), 300, 1, options),
        rate("requests", replace(OPEN, requests_per_minute=3000), 3000, 1, options),
        rate("audio seconds", replace(OPEN, audio_seconds_per_minute=6000), 6000, CLIP, options),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
