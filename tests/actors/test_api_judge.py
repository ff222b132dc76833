"""API judges on a real Ray against an endpoint on loopback: one limiter, verdicts, failures with their kind."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.api_judge import JUDGE_CALLS_FILE, ApiJudgeActor, RemoteLimiter, start_limiters, sum_logged_spend
from actors.checks.endpoints import probe_judge
from actors.cluster import Cluster, count_usable_cores, plan_placement
from actors.errors import RunError, UserError
from actors.judge_pool import JudgePool
from commands.cli import main
from conf.load import load_config
from conf.schema import Config
from judge.llm.build import calls_at_once, count_worker_slots, verdict_deadline
from judge.panel import MAX_JUDGED_AUDIO_S
from judge.rules.voice import TINY_VOICE_NORMS
from judge.types import CallFailed, MissingVerdict, ReplyJudgement, ScoredVerdict
from tests.actors.test_pool import Events
from tests.helpers.api_judge_runs import api_judges
from tests.helpers.judge_builders import WORLD, reply, speech, spoken, task, value
from tests.helpers.judge_server import MODEL, JudgeServer, recordings, said
from tests.helpers.processes import HANG_S

TEXT = "the answer is twelve"
CLOSED = "http://127.0.0.1:9/v1"


def settings(url: str, *more: str, root: Path = Path("runs")) -> Config:
    api = [f"judge.api.base_url={url}", f"judge.api.model={MODEL}", f"run.root={root}", "run.name=run"]
    return load_config(["judge=openai", "rollout.workers=1", "learner.ranks=1", *api, *more])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    config = load_config(["rollout.workers=1", "learner.ranks=1"])
    found = Cluster(config.cluster, plan_placement(config, count_usable_cores()))
    yield found
    found.close(logs=None)


def judges(config: Config, events: Events) -> AbstractAsyncContextManager[tuple[JudgePool, Any]]:
    return api_judges(config, ApiJudgeActor, events, restarts=2)


async def scores(
    pool: JudgePool, count: int, folder: Path | None = None, *, different: bool = False
) -> list[ReplyJudgement]:
    def heard(index: int) -> list[Any]:
        return [ray.put(speech(spoken(TEXT) * np.float32(1 - index * different / 100)))]

    return list(
        await asyncio.gather(
            *(
                pool.score(replace(reply(TEXT), index=i), heard(i), task(TEXT), folder and folder / f"{i}.ogg")
                for i in range(count)
            )
        )
    )


def test_verdicts_of_two_judges_come_from_the_endpoint_under_one_limiter(cluster: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        # The acoustic axis sends audio, the semantic one does not: the server tells them apart by that.
        async with JudgeServer(lambda body: 4.5 if recordings(body) else 2.0) as server:
            config = settings(
                server.base_url,
                "judge.workers=2",
                "judge.api.concurrency=4",
                "judge.api.requests_per_minute=600",
                root=tmp_path,
            )
            async with judges(config, Events()) as (pool, limiter):
                await scores(pool, 2)  # recogniser and rate are warm
                server.bodies.clear()
                start = time.monotonic()
                judged = await scores(pool, 10, tmp_path)
                seconds = time.monotonic() - start
                figures = await limiter.state.remote()
        assert [verdict.index for verdict in judged] == list(range(10))
        for verdict in judged:
            assert verdict.transcript and verdict.figures["heard_right"] == 1
            semantic, acoustic = verdict.axes["semantic"], verdict.axes["acoustic"]
            assert isinstance(semantic, ScoredVerdict) and isinstance(acoustic, ScoredVerdict)
            assert (semantic.value, acoustic.value) == pytest.approx((2.0, 4.5))
            assert semantic.judge == f"openai({MODEL} semantic/1 logprobs)"
            assert isinstance(verdict.reward, ScoredVerdict)
            assert verdict.reward.value == pytest.approx(0.6 * 2.0 + 0.4 * 4.5)
        assert len(server.bodies) == 20 and figures.requests == 24 and figures.in_flight == 0
        assert seconds >= (20 - 1 - 6) / 10, "two judges share 600 requests a minute, of which 6 may burst"
        assert (tmp_path / "9.ogg").is_file()
        lines = (tmp_path / "run" / JUDGE_CALLS_FILE).read_text().splitlines()
        assert len(lines) == 24 and all(json.loads(line)["kind"] is None for line in lines)

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_a_failure_is_missing_with_its_kind_an_outage_a_pause_and_a_dead_judge_is_replaced_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with JudgeServer(lambda body: 3.0) as server:
            config = settings(
                server.base_url,
                "judge.workers=1",
                "judge.acoustic_by=local",
                "judge.api.concurrency=4",
                "judge.api.deadline_s=300",
                root=tmp_path,
            )
            events = Events()
            async with judges(config, events) as (pool, limiter):
                await pool.know_voice(TINY_VOICE_NORMS)  # as the driver tells it
                server.edit = lambda body, text: "five"
                (malformed,) = await scores(pool, 1)
                server.edit = lambda body, text: text
                server.down = True
                pausing = asyncio.create_task(scores(pool, 3, different=True))
                while not (await limiter.state.remote()).opened:
                    await asyncio.sleep(0.05)
                server.down = False
                paused = await pausing
                pid = (await pool.handles[0].hello.remote())["pid"]
                calls = asyncio.create_task(scores(pool, 4))
                await asyncio.sleep(0.05)
                os.kill(pid, signal.SIGKILL)
                after = await calls
                left = await limiter.state.remote()
        assert isinstance(malformed.axes["semantic"], MissingVerdict) and isinstance(malformed.reward, MissingVerdict)
        assert malformed.axes["semantic"].kind == malformed.reward.kind == "malformed"
        assert isinstance(malformed.axes["acoustic"], ScoredVerdict), "the local axis has its own verdict"
        assert all(isinstance(one.reward, ScoredVerdict) for one in paused), "they waited for the end of the outage"
        assert all(isinstance(judged.reward, ScoredVerdict) for judged in after)
        assert left.in_flight == left.waiting == 0, "what the dead judge had or wanted is free"
        assert [kind for kind, _ in events.found] == ["restart"]

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_a_cancelled_acquire_leaves_no_lease_and_the_spend_cap_comes_through(cluster: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        prices = ["judge.api.prompt_price=1", "judge.api.completion_price=1", "judge.api.spend_cap=0.5"]
        config = settings(CLOSED, "judge.api.concurrency=1", *prices).judge
        (limiter,) = start_limiters(config, 4, tmp_path / JUDGE_CALLS_FILE)
        gate = RemoteLimiter(limiter, "me")
        lease = await gate.acquire(0.0)
        waiting = asyncio.create_task(gate.acquire(0.0))
        while (await limiter.state.remote()).waiting == 0:
            await asyncio.sleep(0.02)
        waiting.cancel()
        while (await limiter.state.remote()).waiting:
            await asyncio.sleep(0.02)
        await gate.release(lease, ok=True, spent=0.4)
        second = await gate.acquire(0.0)  # would wait for ever for a lease that nobody holds
        assert await gate.down_s() == 0
        await gate.release(second, ok=True, spent=0.2)
        with pytest.raises(CallFailed) as refused:
            await gate.acquire(0.0)
        assert refused.value.kind == "spend_cap"
        ray.kill(limiter)

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_a_group_is_compared_as_a_whole_and_canaries_go_past_the_cache(cluster: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with JudgeServer(first_is_better) as server:
            config = settings(
                server.base_url,
                "judge.workers=1",
                "judge.acoustic_by=local",
                "judge.api.compare=pairwise",
                f"judge.api.cache={tmp_path / 'verdicts.sqlite'}",
                root=tmp_path,
            )
            async with judges(config, Events()) as (pool, _):
                assert pool.together
                texts = [TEXT, "after monday comes tuesday", "my dog is happy now"]
                replies = [replace(reply(text), index=i) for i, text in enumerate(texts)]
                heard = [[ray.put(speech(spoken(text)))] for text in texts]
                judged = await pool.compare(replies, heard, task(TEXT), [tmp_path / "a.ogg", None, None])
                compared = len(server.bodies)
                clips = [WORLD / "data" / "bank" / "rms" / f"{word}.flac" for word in TEXT.split()]
                canaries = [await pool.canaries(task(TEXT), TEXT, clips) for _ in range(2)]
        assert [one.index for one in judged] == [0, 1, 2] and (tmp_path / "a.ogg").is_file()
        values = [value(one.axes["semantic"]) for one in judged]
        assert values == pytest.approx([5.0, 3.0, 1.0]), "by the alphabet, as the endpoint has it"
        assert compared >= 6 + 4, "three pairs in both orders, after the probe"
        assert len(canaries[0]) == len(canaries[1]) == 5
        assert len(server.bodies) == compared + 10, "no canary is answered from the cache"

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def first_is_better(body: dict[str, Any]) -> float:
    """Of two transcripts the one that comes first in the alphabet by its last word; a single one: level 2."""
    found = re.findall(r"<transcript [AB] \w+>\n(.*)\n", said(body))
    if len(found) < 2:
        return 2.0
    order = ["twelve", "tuesday", "now"]
    ranks = [order.index(text.split()[-1]) for text in found]
    return float(ranks[0] < ranks[1])


def test_a_dead_limiter_ends_the_run_with_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with JudgeServer() as server:
            config = settings(server.base_url, "judge.workers=1", root=tmp_path)
            events = Events()
            async with judges(config, events) as (pool, limiter):
                await scores(pool, 1)
                ray.kill(limiter)
                with pytest.raises(RunError, match="limiter of an API judge died: go on with"):
                    await scores(pool, 1)
        assert events.found == [], "no judge is replaced for it"

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_what_a_resumed_run_has_spent_is_read_from_its_calls(tmp_path: Path) -> None:
    log = tmp_path / JUDGE_CALLS_FILE
    assert sum_logged_spend(log, "http://a/v1", "m") == 0
    calls = [
        ("http://a/v1", "m", 0.25),
        ("http://a/v1", "n", 8),
        ("http://b/v1", "m", 16),
        ("http://a/v1", "m", 1),
    ]
    lines = [json.dumps({"endpoint": where, "model": name, "spent": spent}) for where, name, spent in calls]
    log.write_text("\n".join([*lines, "12", '{"mo']))
    assert sum_logged_spend(log, "http://a/v1", "m") == 1.25


def test_the_deadline_covers_hearing_every_round_of_calls_the_rates_and_an_outage() -> None:
    config = settings(CLOSED, "judge.workers=3", "judge.api.concurrency=8", "judge.api.repeats=2").judge
    assert count_worker_slots(config) == 3 and calls_at_once(config, 4) == 3 * 3 * 2 * 2
    assert verdict_deadline(config, 4) == 3 * 60 + (5 + 1) * 60 + 600
    slow = settings(CLOSED, "judge.api.requests_per_minute=6", "judge.api.audio_seconds_per_minute=60").judge
    rates = max(16 / 6, 8 * 2 * MAX_JUDGED_AUDIO_S / 60) * 60
    assert calls_at_once(slow, 4) == 16 and verdict_deadline(slow, 4) == 4 * 60 + 3 * 60 + 600 + rates
    assert (
        verdict_deadline(load_config([]).judge, 4) == load_config([]).judge.deadline_s
        and count_worker_slots(load_config([]).judge) == 1
    )
    pairs = settings(CLOSED, "judge.workers=2", "judge.api.compare=pairwise").judge
    assert calls_at_once(pairs, 5) == 2 * 4 * 2 * 20 and calls_at_once(pairs, 1) == 16
    assert verdict_deadline(pairs, 5) == 4 * 5 * 60 + (40 + 1) * 60 + 600


def test_an_endpoint_that_is_not_there_stops_a_run_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(CLOSED, "judge.api.deadline_s=1")
    with pytest.raises(UserError, match=r"judge\.api: judge loopback-judge does not answer: network"):
        probe_judge(config.judge)
    where = [f"judge.api.base_url={CLOSED}", f"judge.api.model={MODEL}", "judge.api.deadline_s=1"]
    small = ["learner.ranks=1", "judge.workers=1", f"run.root={tmp_path}"]
    assert main(["train", *small, "judge=openai", *where]) == 2
    assert main(["judge", "probe", "judge=openai", *where]) == 2
    assert main(["judge", "probe"]) == 2
    *refused, nobody = capsys.readouterr().err.splitlines()
    assert len(refused) == 2 and all(line.startswith("judge.api: judge loopback") for line in refused)
    assert nobody.startswith("judge probe: no axis is judged by api")
    assert list(tmp_path.iterdir()) == []


def test_the_probe_says_on_one_line_what_the_endpoint_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> int:
        async with JudgeServer(lacks="logprobs choice") as server:
            where = [f"judge.api.base_url={server.base_url}", f"judge.api.model={MODEL}"]
            return await asyncio.to_thread(main, ["judge", "probe", "judge=openai", *where])

    assert asyncio.run(asyncio.wait_for(scenario(), HANG_S)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("judge answers by JSON") and "no logprobs" in line
