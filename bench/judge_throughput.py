"""Verdicts per second through the judges of a run, against an endpoint that answers at once.

    python -m bench.judge_throughput [--seconds 20] [--workers 2] [--concurrency 16]

Everything a run has between a reply and its verdict, on this machine: local judges and the endpoint's actor on
Ray, a cache and a log on disk, HTTP to a process of its own that reads every byte. Each verdict is one call
with 3 s of 16 kHz audio that was never sent before.

    path    the endpoint's actor scores the acoustic axis of waves that it makes itself: what the API judge costs
    asked   it is given them by the driver, through the object store
    whole   replies through the pools as in a run: transfer, recogniser, local rules, then the same call

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

from actors.api_judge import JUDGE_CALLS_FILE, EndpointActor, EndpointPool
from actors.cluster import Cluster, count_usable_cores, plan_placement
from actors.judge_pool import JudgePool
from conf.load import load_config
from conf.schema import Config
from judge.llm.build import ProbedEndpoints, build_endpoint_judge, probe_endpoints
from judge.llm.endpoint_judge import AxisJudge
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


class MeasuredEndpoint(EndpointActor):
    """The endpoint of a run that also scores waves which it makes itself."""

    async def verdicts(self, seconds: float, at_once: int) -> list[float]:
        """Seconds that each verdict took, as many as there are in this time."""
        end = time.perf_counter() + seconds
        return await scored(self._judge, at_once, lambda _: time.perf_counter() < end, lambda speech: speech)


async def scored(
    judge: AxisJudge[Any], at_once: int, goes_on: Callable[[int], bool], give: Callable[[Speech], Any]
) -> list[float]:
    """Seconds that each verdict took, with ``at_once`` under way.

    ``goes_on``: whether one more is begun, after so many begun; ``give``: a wave as the judge takes it.
    """
    noise = np.random.default_rng().normal(0, 0.1, 2 * round(SECONDS * RATE)).astype(np.float32)
    numbers, took = count(), list[float]()

    async def line() -> None:
        while goes_on(shift := next(numbers)):
            start = time.perf_counter()
            assert shift < len(noise) // 2, "every wave is used once"
            speech = give(Speech(wave=noise[shift : shift + len(noise) // 2], sample_rate=RATE))
            verdict = (await judge.score(TEXT, speech, TASK, "bench"))["acoustic"]
            assert isinstance(verdict, ScoredVerdict) and not verdict.cached, verdict
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(line() for _ in range(at_once)))
    return took


@dataclass(slots=True)
class Usage:
    """Processor time of named processes."""

    pids: dict[str, list[int]]
    since: float = 0.0
    before: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Count from now on."""
        self.since, self.before = time.perf_counter(), self._seconds()

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


async def by_path(config: Config, usage: Usage, seconds: float) -> float:
    """The API judge alone."""
    arguments = (config, 0, await probe_endpoints(config.judge), Path(config.run.root, "run", JUDGE_CALLS_FILE), False)
    actor: Any = ray.remote(MeasuredEndpoint).options(num_cpus=0).remote(*arguments)
    await actor.verdicts.remote(1.0, 1)  # warm
    usage.pids["endpoint"] = [(await actor.hello.remote())["pid"]]
    usage.begin()
    took = await actor.verdicts.remote(seconds, config.judge.api.concurrency)
    rate = show("path", took, time.perf_counter() - usage.since, usage.shares())
    ray.kill(actor)
    return rate


async def by_asking(endpoint: EndpointPool, at_once: int, usage: Usage, seconds: float) -> None:
    """The same for waves from here."""
    warm = Speech(wave=np.ones(round(SECONDS * RATE), np.float32), sample_rate=RATE)
    await endpoint.score(TEXT, [ray.put(warm)], TASK, "warm")
    usage.begin()
    end = usage.since + seconds
    took = await scored(endpoint, at_once, lambda _: time.perf_counter() < end, lambda speech: [ray.put(speech)])
    show("asked", took, time.perf_counter() - usage.since, usage.shares())


async def by_whole(pool: JudgePool, at_once: int, usage: Usage, seconds: float) -> float:
    """Replies from the object store to verdicts."""
    wave = np.resize(spoken(TEXT), round(SECONDS * RATE))
    random, numbers, took = np.random.default_rng(0), count(), list[float]()
    usage.begin()
    end = usage.since + seconds

    async def line() -> None:
        while (start := time.perf_counter()) < end:
            new = wave + random.normal(0, 1e-3, len(wave)).astype(np.float32)
            heard = [ray.put(Speech(wave=new, sample_rate=RATE))]
            judged = await pool.score(replace(reply(TEXT), index=next(numbers)), heard, TASK, None)
            assert isinstance(judged.reward, ScoredVerdict), judged.reward
            took.append(time.perf_counter() - start)

    await asyncio.gather(*(line() for _ in range(at_once)))
    return show("whole", took, time.perf_counter() - usage.since, usage.shares())


async def measure(config: Config, server: int, seconds: float) -> bool:
    """All three. Whether the required rate was had."""
    at_once, processes = config.judge.api.concurrency, {"server": [server], "driver": [os.getpid()]}
    rate = await by_path(config, Usage(dict(processes)), seconds)
    async with api_judges(config, journal=None, restarts=0) as (pool, endpoint):
        pids = {
            "judges": [(await handle.hello.remote())["pid"] for handle in pool.handles],
            "endpoint": [(await endpoint.handles[0].hello.remote())["pid"]],
            **processes,
        }
        await by_asking(endpoint, at_once, Usage(pids), seconds)
        await by_whole(pool, at_once, Usage(pids), seconds)
    return rate >= REQUIRED


def profile(config: Config, found: ProbedEndpoints, verdicts: int, to: Path) -> None:
    """The same path in this process, profiled over so many verdicts."""
    judge = build_endpoint_judge(config.judge, config.judge.api, found.judge, log=to.with_suffix(".calls"))
    profiler = cProfile.Profile()
    start = time.perf_counter()
    took = profiler.runcall(asyncio.run, scored(judge, 8, lambda begun: begun < verdicts, lambda speech: speech))
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
    parser.add_argument("--concurrency", type=int, default=16, help="calls on their way")
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
