"""Verdicts per second through the judges of a run, against an endpoint that answers at once.

    python -m bench.judge_throughput [--seconds 20] [--workers 2] [--concurrency 16]

Everything a run has between a reply and its verdict, on this machine: judge workers and the one limiter on
Ray, a cache and a log on disk, HTTP to a process of its own that reads every byte. Each verdict is one call
with 3 s of 16 kHz audio that was never sent before.

    path    workers that are given the waves and score the acoustic axis: what the API judge itself costs
    whole   replies through the pool as in a run: transfer, recogniser, local rules, then the same call

Required: at least 100 verdicts a second by ``path``. ``--profile FILE``: cProfile of one process without Ray.
"""

import argparse
import asyncio
import cProfile
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from actors.api_judge import ApiJudgeActor
from actors.cluster import Cluster, count_usable_cores, plan_placement
from actors.judge_pool import JudgePool
from conf.load import load_config
from conf.schema import Config
from judge.endpoint.limits import Limiter
from judge.llm.build import (
    EndpointLimiters,
    ProbedEndpoints,
    build_api_panel,
    count_worker_slots,
    limits_from_config,
    probe_endpoints,
)
from judge.llm.reply_judge import OpenAIJudge
from judge.llm.rubric import ACOUSTIC_RUBRIC
from judge.types import JudgeTask, ScoredVerdict
from rollout.types import Speech
from tests.helpers.api_judge_runs import api_judges
from tests.helpers.judge_builders import reply, spoken

REQUIRED = 100.0  # verdicts per second
RATE, SECONDS = 16_000, 3.0
TEXT = "the answer is twelve"
TASK = JudgeTask(task_type="bench", question="what is seven plus five", match="final", answer="twelve", style=None)


def answer() -> bytes:
    """The one answer: a 4 with its probabilities."""
    chances = {"4": log(0.8), "5": log(0.2)}
    options = [{"token": token, "logprob": logprob} for token, logprob in chances.items()]
    label = {"token": "4", "logprob": chances["4"], "top_logprobs": options}
    message = {"role": "assistant", "content": "4"}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": [label]}}
    body = {"model": "instant", "choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": 1}}
    content = json.dumps(body).encode()
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Instant(asyncio.Protocol):
    """Reads a whole request, looks at nothing but its length, answers."""

    content = answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._head, self._left = b"", -1

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            self._left = int(length[15:]) - len(body)
        else:
            self._left -= len(data)
        if self._left <= 0:
            self._transport.write(self.content)
            self._transport.close()


async def serve() -> None:
    """Until killed; the port is the first line of the output."""
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Worker(ApiJudgeActor):
    """A judge of the run that also scores waves which it makes itself."""

    async def verdicts(self, first: int, seconds: float, at_once: int) -> list[float]:
        """Seconds that each verdict took, as many as there are in this time."""
        end = time.perf_counter() + seconds
        return await scored(self._panel.judge, first, at_once, lambda _: time.perf_counter() < end)


async def scored(judge: OpenAIJudge, first: int, at_once: int, goes_on: Callable[[int], bool]) -> list[float]:
    """Keep ``at_once`` verdicts under way. ``goes_on``: whether one more is begun, after so many begun."""
    noise = np.random.default_rng(first).normal(0, 0.1, 2 * round(SECONDS * RATE)).astype(np.float32)
    numbers, took = count(), list[float]()

    async def line() -> None:
        while goes_on(shift := next(numbers)):
            start = time.perf_counter()
            assert shift < len(noise) // 2, "every wave is used once"
            wave = noise[shift : shift + len(noise) // 2]
            verdict = await judge.score(ACOUSTIC_RUBRIC, TASK, TEXT, Speech(wave=wave, sample_rate=RATE), None)
            assert isinstance(verdict, ScoredVerdict) and not verdict.cached, verdict
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(line() for _ in range(at_once)))
    return took


@dataclass(slots=True)
class Usage:
    """Processor time of named processes."""

    pids: dict[str, list[int]]
    since: float = field(default_factory=time.perf_counter)
    before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = self._seconds()

    def _seconds(self) -> dict[str, float]:
        return {
            name: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for name, pids in self.pids.items()
        }

    def shares(self) -> str:
        """Of one core, by name."""
        wall, now = time.perf_counter() - self.since, self._seconds()
        return ", ".join(f"{name} {(now[name] - self.before[name]) / wall:.0%}" for name in self.pids)


def show(name: str, took: list[float], seconds: float, shares: str) -> float:
    """Print a line. Verdicts per second."""
    rate = len(took) / seconds
    p50, p95 = np.percentile(took, [50, 95])
    print(
        f"{name:<6} {rate:7.1f} verdicts/s   {len(took)} in {seconds:.1f} s   "
        f"latency p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms   of one core: {shares}",
        flush=True,
    )
    return rate


async def by_path(pool: JudgePool, config: Config, usage: Usage, seconds: float) -> float:
    """The API judge alone."""
    at_once = count_worker_slots(config.judge)
    calls = [handle.verdicts.remote(i + 1, seconds, at_once) for i, handle in enumerate(pool.handles)]
    took = [one for found in await asyncio.gather(*calls) for one in found]
    return show("path", took, time.perf_counter() - usage.since, usage.shares())


async def by_whole(pool: JudgePool, usage: Usage, seconds: float) -> float:
    """Replies from the object store to verdicts."""
    wave = np.resize(spoken(TEXT), round(SECONDS * RATE))
    random, numbers, took = np.random.default_rng(0), count(), list[float]()
    end = usage.since + seconds

    async def line() -> None:
        while (start := time.perf_counter()) < end:
            new = wave + random.normal(0, 1e-3, len(wave)).astype(np.float32)
            heard = [ray.put(Speech(wave=new, sample_rate=RATE))]
            judged = await pool.score(replace(reply(TEXT), index=next(numbers)), heard, TASK, None)
            assert isinstance(judged.reward, ScoredVerdict), judged.reward
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(line() for _ in range(pool.places)))
    return show("whole", took, time.perf_counter() - usage.since, usage.shares())


async def measure(config: Config, server: int, seconds: float) -> bool:
    """Both, on one fleet. Whether the required rate was had."""
    async with api_judges(config, Worker, journal=None, restarts=0) as (pool, limiter):
        workers = [(await handle.hello.remote())["pid"] for handle in pool.handles]
        pids = {
            "workers": workers,
            "limiter": [(await limiter.hello.remote())["pid"]],
            "server": [server],
            "driver": [os.getpid()],
        }
        await asyncio.gather(*(handle.verdicts.remote(0, 1.0, 1) for handle in pool.handles[:1]))  # warm
        rate = await by_path(pool, config, Usage(pids), seconds)
        await by_whole(pool, Usage(pids), seconds)
    return rate >= REQUIRED


def profile(config: Config, found: ProbedEndpoints, verdicts: int, to: Path) -> None:
    """The same path in this process, profiled over so many verdicts."""
    access = EndpointLimiters(judge=Limiter(limits_from_config(config.judge.api)), second=None)
    panel = build_api_panel(config.judge, Path.cwd(), config.model.path, found, access, log=to.with_suffix(".calls"))
    profiler = cProfile.Profile()
    start = time.perf_counter()
    took = profiler.runcall(asyncio.run, scored(panel.judge, 1, 8, lambda begun: begun < verdicts))
    show("alone", took, time.perf_counter() - start, "profiled")
    profiler.dump_stats(to)


@contextmanager
def instant() -> Any:
    """A server in a process of its own: (pid, address)."""
    command = [sys.executable, "-m", "bench.judge_throughput", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.pid, f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def main() -> int:
    """0 when the required rate was had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=16, help="calls on their way, over all workers")
    parser.add_argument("--profile", type=Path, metavar="FILE")
    parser.add_argument("--verdicts", type=int, default=2000, help="of --profile")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    with instant() as (server, url), tempfile.TemporaryDirectory() as folder:
        config = load_config(
            [
                "judge=openai",
                "judge.semantic_by=local",
                f"judge.workers={options.workers}",
                f"judge.api.base_url={url}",
                "judge.api.model=instant",
                f"judge.api.concurrency={options.concurrency}",
                f"judge.api.cache={folder}/verdicts.sqlite",
                f"run.root={folder}",
                "run.name=run",
                "rollout.workers=1",
                "learner.ranks=1",
            ]
        )
        Path(folder, "run").mkdir()
        if options.profile is not None:
            profile(config, asyncio.run(probe_endpoints(config.judge)), options.verdicts, options.profile)
            return 0
        cluster = Cluster(config.cluster, plan_placement(config, count_usable_cores()))
        try:
            held = asyncio.run(measure(config, server, options.seconds))
        finally:
            cluster.close(logs=None)
    print(f"required: {REQUIRED:g} verdicts/s by path on 2 cores: {'held' if held else 'BROKEN'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
