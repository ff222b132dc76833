"""A real HTTP server that has the faults of ``tests.helpers.fault_schedules``, and a storm of seeded calls against it.

The first segment of the path is the plan that a call belongs to: its first requests meet the fault, later ones
a good answer that no other plan gets, so that an answer in the wrong place is seen.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx2

from judge.endpoint import chat, http
from judge.endpoint.address import Endpoint
from judge.types import CallFailed, MissingKind
from tests.helpers.fault_schedules import FAULTS, MODEL, SHORT, Fault, Request, bomb, completion, message
from tests.helpers.processes import HANG_S

ATTEMPTS = 4
LONG = HANG_S  # the deadline of calls that must not meet it
GRACE = 60.0  # seconds past a deadline: who waits for a fault to end waits longer


@dataclass(slots=True, kw_only=True)
class Plan:
    """What the calls to one path meet, and what they did."""

    fault: Fault
    faults: int  # so many requests meet it
    rng: Random
    text: str  # of the good answer
    heads: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class FaultServer:
    """Serves plans. ``plans`` may grow while it runs; a path without a plan counts as ``trapped``."""

    def __init__(self) -> None:
        self.plans: dict[str, Plan] = {}
        self.trapped = 0
        self.port = 0

    def endpoint(self, name: str, deadline_s: float, **fields: Any) -> Endpoint:
        base = f"http://127.0.0.1:{self.port}/{name}/v1"
        known = {"base_url": base, "model": MODEL, "key_env": None, "attempts": ATTEMPTS}
        return Endpoint(**known | {"deadline_s": deadline_s} | fields)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer on one connection until either side has had enough."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # the client hung up
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        await reader.readexactly(int(headers["content-length"]))
        plan = self.plans.get(head.split("/")[1])
        if plan is None:
            self.trapped += 1
            return False
        plan.heads.append(head)
        plan.times.append(time.monotonic())
        request = Request(reader, writer, plan.rng, head, completion(plan.text))
        if len(plan.heads) <= plan.faults:
            await plan.fault.handler(request)
        else:
            await request.send(message(200, request.good))
        return headers.get("connection") != "close"


@asynccontextmanager
async def running() -> AsyncIterator[FaultServer]:
    """A server on a free port of loopback; its connections end with it."""
    faulty = FaultServer()
    open_now: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(faulty.serve(reader, writer))
        open_now.add(task)
        task.add_done_callback(open_now.discard)

    bomb()  # now, as it would hold up every call
    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1000)
    faulty.port = server.sockets[0].getsockname()[1]
    try:
        yield faulty
    finally:
        server.close()
        for task in open_now:
            task.cancel()
        await asyncio.gather(*open_now, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one call ended. ``wrong``: what it should not have done; "" when all is well."""

    name: str
    faults: int
    kind: MissingKind | None
    seconds: float
    over: float  # seconds past the deadline; negative before it
    wrong: str


async def _call(client: httpx2.AsyncClient, server: FaultServer, name: str, path: str) -> Outcome:
    plan = server.plans[path]
    fault = plan.fault
    endpoint = server.endpoint(path, SHORT if fault.kind == "deadline" else LONG)
    mended = fault.again and plan.faults < ATTEMPTS
    expected = None if mended else fault.kind
    requests = plan.faults + 1 if mended else ATTEMPTS if fault.again else 1
    kind: MissingKind | None = None
    wrong = ""
    start = time.monotonic()
    try:
        answer = await chat.ask_endpoint(client, endpoint, {"messages": []})
        if answer.text != plan.text:
            wrong = f"the answer of another call: {answer.text!r}"
    except CallFailed as failure:
        kind = failure.kind
        if failure.retryable != (kind in {"deadline", "network", "rate_limited", "server", "not_json"}):
            wrong = f"retryable: {failure.retryable}"
        if kind != expected:
            wrong = f"expected {expected}, got {failure}"
    else:
        if expected is not None:
            wrong = f"expected {expected}, got {answer}"
    seconds = time.monotonic() - start
    over = seconds - endpoint.deadline_s
    if over > GRACE:
        wrong = f"{over:.2f} s past its deadline"
    unheard = kind == "deadline" and not plan.heads  # on a busy machine a short deadline passes before that
    if not wrong and not unheard and len(plan.heads) != requests:
        wrong = f"expected {requests} requests, got {len(plan.heads)}"
    return Outcome(name=name, faults=plan.faults, kind=kind, seconds=seconds, over=over, wrong=wrong)


async def storm(kinds: Iterable[str], schedules: int, seed: int, concurrency: int = 100) -> list[Outcome]:
    """So many seeded schedules of every named fault, shuffled, through one client. One outcome per call."""
    async with running() as server, http.new_client(concurrency) as client:
        calls = []
        for name in kinds:
            for index in range(schedules):
                path = f"{name}-{index}"
                rng = Random(f"{seed} {path}")
                server.plans[path] = Plan(
                    fault=FAULTS[name], faults=rng.randint(1, ATTEMPTS), rng=rng, text=f"4 to {path}"
                )
                calls.append((name, path))
        Random(seed).shuffle(calls)
        left = iter(calls)
        outcomes = []

        async def worker() -> None:
            for name, path in left:
                outcomes.append(await _call(client, server, name, path))

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        assert server.trapped == 0, "a redirect was followed"
    return outcomes
