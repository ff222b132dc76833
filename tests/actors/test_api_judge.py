"""API judges on a real Ray against an endpoint on loopback: one actor asks it, verdicts, failures with their kind."""

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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from actors.api_judge import JUDGE_CALLS_FILE, EndpointPool, sum_logged_spend
from actors.checks.endpoints import probe_judge
from actors.cluster import Cluster, count_usable_cores, plan_placement
from actors.errors import RestartBudgetSpent, UserError
from actors.judge_pool import JudgePool
from commands.cli import main
from conf.load import load_config
from conf.schema import Config
from judge.llm.build import calls_at_once, compute_answer_deadline
from judge.panel import MAX_JUDGED_AUDIO_S
from judge.rules.voice import TINY_VOICE_NORMS
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict, Verdict
from tests.actors.test_pool import Events
from tests.helpers import clocks
from tests.helpers.api_judge_runs import api_judges
from tests.helpers.clocks import put_forward
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
    actual = Cluster(config.cluster, plan_placement(config, count_usable_cores()))
    yield actual
    actual.close(logs=None)


def judges(config: Config, events: Events) -> AbstractAsyncContextManager[tuple[JudgePool, EndpointPool]]:
    return api_judges(config, events, restarts=2)


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


def test_verdicts_on_what_two_judges_heard_come_from_the_endpoint_under_one_limiter(
    cluster: Cluster, tmp_path: Path
) -> None:
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
            async with judges(config, Events()) as (pool, endpoint):
                await scores(pool, 2)  # recogniser and rate are warm
                server.bodies.clear()
                start = time.monotonic()
                judged = await scores(pool, 10, tmp_path)
                seconds = time.monotonic() - start
                figures = await endpoint.state()
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
        assert seconds >= (20 - 1 - 6) / 10, "600 requests a minute, of which 6 may burst"
        assert (tmp_path / "9.ogg").is_file()
        lines = (tmp_path / "run" / JUDGE_CALLS_FILE).read_text().splitlines()
        assert len(lines) == 24 and all(json.loads(line)["kind"] is None for line in lines)

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_a_failure_is_missing_with_its_kind_an_outage_a_pause_and_the_dead_are_replaced_once(
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
            async with judges(config, events) as (pool, endpoint):
                await pool.know_voice(TINY_VOICE_NORMS)  # as the driver tells it
                server.edit = lambda body, text: "five"
                (malformed,) = await scores(pool, 1)
                server.edit = lambda body, text: text
                server.down = True
                pausing = asyncio.create_task(scores(pool, 3, different=True))
                while not (await endpoint.state()).opened:
                    await asyncio.sleep(0.05)
                server.down = False
                paused = await pausing
                after = []
                for dying in (pool, endpoint):
                    pid = (await dying.handles[0].hello.remote())["pid"]
                    calls = asyncio.create_task(scores(pool, 4, different=True))
                    await asyncio.sleep(0.05)
                    os.kill(pid, signal.SIGKILL)
                    after += await calls
                left = await endpoint.state()
        assert isinstance(malformed.axes["semantic"], MissingVerdict) and isinstance(malformed.reward, MissingVerdict)
        assert malformed.axes["semantic"].kind == malformed.reward.kind == "malformed"
        assert isinstance(malformed.axes["acoustic"], ScoredVerdict), "the local axis has its own verdict"
        assert all(isinstance(item.reward, ScoredVerdict) for item in paused), "they waited for the end of the outage"
        assert all(isinstance(judged.reward, ScoredVerdict) for judged in after)
        assert [judged.index for judged in after] == [0, 1, 2, 3] * 2
        assert left.in_flight == left.waiting == 0
        assert [detail.partition(" replaced")[0] for _, detail in events.found] == [
            "judge worker 0",
            "judge endpoint worker 0",
        ]

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_a_killed_endpoint_comes_back_with_its_cache_and_its_spend_and_asks_about_nothing_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with JudgeServer(lambda body: 3.0) as server:
            config = settings(
                server.base_url,
                "judge.workers=1",
                "judge.acoustic_by=local",
                "judge.api.prompt_price=1000",
                "judge.api.completion_price=1000",
                "judge.api.spend_cap=1000",
                f"judge.api.cache={tmp_path / 'verdicts.sqlite'}",
                root=tmp_path,
            )
            async with judges(config, Events()) as (pool, endpoint):
                await pool.know_voice(TINY_VOICE_NORMS)
                before = await scores(pool, 3, different=True)
                asked, spent = len(server.bodies), (await endpoint.state()).spent
                os.kill((await endpoint.handles[0].hello.remote())["pid"], signal.SIGKILL)
                after = await scores(pool, 3, different=True)
                figures = await endpoint.state()
        assert [item.axes["semantic"] for item in after] == [
            replace(item.axes["semantic"], cached=True)  # type: ignore[type-var]
            for item in before
        ]
        assert len(server.bodies) == asked, "every verdict was paid for before"
        assert figures.spent == pytest.approx(spent) and spent > 0 and figures.requests == 0

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
            async with judges(config, Events()) as (pool, endpoint):
                assert pool.together
                texts = [TEXT, "after monday comes tuesday", "my dog is happy now"]
                replies = [replace(reply(text), index=i) for i, text in enumerate(texts)]
                heard = [[ray.put(speech(spoken(text)))] for text in texts]
                judged = await pool.compare(replies, heard, task(TEXT), [tmp_path / "a.ogg", None, None])
                compared = len(server.bodies)
                clips = [WORLD / "data" / "bank" / "rms" / f"{word}.flac" for word in TEXT.split()]
                canaries = [await endpoint.canaries(task(TEXT), TEXT, clips) for _ in range(2)]
        assert [judgement.index for judgement in judged] == [0, 1, 2] and (tmp_path / "a.ogg").is_file()
        values = [value(judgement.axes["semantic"]) for judgement in judged]
        assert values == pytest.approx([5.0, 3.0, 1.0]), "by the alphabet, as the endpoint has it"
        assert compared >= 6 + 4, "three pairs in both orders, after the probe"
        assert len(canaries[0]) == len(canaries[1]) == 5
        assert len(server.bodies) == compared + 10, "no canary is answered from the cache"

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def first_is_better(body: dict[str, Any]) -> float:
    """Of two transcripts the one that comes first in the alphabet by its last word; a single one: level 2."""
    matches = re.findall(r"<transcript [AB] \w+>\n(.*)\n", said(body))
    if len(matches) < 2:
        return 2.0
    order = ["twelve", "tuesday", "now"]
    ranks = [order.index(text.split()[-1]) for text in matches]
    return float(ranks[0] < ranks[1])


def test_an_endpoint_that_keeps_dying_ends_the_run(cluster: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with JudgeServer() as server:
            config = settings(server.base_url, "judge.workers=1", root=tmp_path)
            async with api_judges(config, Events(), restarts=0) as (pool, endpoint):
                await scores(pool, 1)
                ray.kill(endpoint.handles[0])
                with pytest.raises(RestartBudgetSpent, match="judge endpoint worker 0 failed after 0 restarts"):
                    await scores(pool, 1)

    asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_an_endpoint_that_is_late_leaves_its_own_axes_missing_and_nothing_else() -> None:
    def never() -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    async def scenario() -> list[dict[str, Verdict]]:
        endpoint = EndpointPool(
            axes=("semantic",), deadline=HANG_S, slots=2, create=never, source="", restarts=0, journal=Events()
        )
        silent = SimpleNamespace(remote=lambda *asked: never())
        endpoint.handles = [SimpleNamespace(score=silent, compare=silent)]
        alone = asyncio.create_task(endpoint.score(TEXT, ["sound"], task(TEXT), "p/0"))
        group = asyncio.create_task(endpoint.compare([TEXT] * 2, [["sound"]] * 2, 0, task(TEXT), "p"))
        await asyncio.sleep(0)
        while not (alone.done() and group.done()):
            put_forward(HANG_S / 2)
            await asyncio.sleep(0)
        return [await alone, *await group]

    late = MissingVerdict(judge="pool", reason="deadline", kind="deadline", retryable=True)
    assert clocks.run(scenario()) == [{"semantic": late}] * 3


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


def test_an_endpoints_deadline_covers_every_round_of_calls_the_rates_and_an_outage() -> None:
    config = settings(CLOSED, "judge.api.concurrency=8", "judge.api.repeats=2").judge
    assert calls_at_once(config, config.api, 4) == 8 * 2 * 2
    assert compute_answer_deadline(config, config.api, 4) == (4 + 1) * 60 + 600
    slow = settings(CLOSED, "judge.api.requests_per_minute=6", "judge.api.audio_seconds_per_minute=60").judge
    rates = max(16 / 6, 8 * 2 * MAX_JUDGED_AUDIO_S / 60) * 60
    assert calls_at_once(slow, slow.api, 4) == 16
    assert compute_answer_deadline(slow, slow.api, 4) == 3 * 60 + 600 + rates
    other = [f"judge.second.base_url={CLOSED}", "judge.second.model=m", "judge.second.repeats=3"]
    pairs = settings(CLOSED, "judge.api.compare=pairwise", *other).judge
    assert calls_at_once(pairs, pairs.api, 5) == 8 * 2 * 20 and calls_at_once(pairs, pairs.api, 1) == 16
    assert compute_answer_deadline(pairs, pairs.api, 5) == (40 + 1) * 60 + 600
    assert calls_at_once(pairs, pairs.second, 5) == 8 * 2 * 3, "the second judge compares nothing"


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
