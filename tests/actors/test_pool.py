"""Pools on a real Ray: a worker that dies or hangs is replaced, its work is done again, and the budget is a budget."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.cluster import Cluster, count_usable_cores, plan_placement
from actors.collect import sample_and_judge
from actors.errors import RestartBudgetSpent, RunError
from actors.judge_pool import JudgePool
from actors.pool import RolloutPool
from actors.weight_sync import PublishedWeights
from conf.load import load_config
from judge.types import JudgeTask, MissingVerdict, ReplyJudgement, ScoredVerdict
from rollout.engine import WeightManifest
from rollout.types import Prompt, Reply, Sampling, Speech
from tests.helpers import clocks
from tests.helpers.clocks import put_forward
from tests.helpers.processes import HANG_S

SAMPLING = Sampling(group_size=3, temperature=1.0, max_new_tokens=4, seed=5)
PROMPTS = [Prompt(id=f"p{i}", ids=(i,)) for i in range(5)]
TASKS = {prompt.id: JudgeTask(task_type="x", question="", match=None, answer=None, style=None) for prompt in PROMPTS}


class Events:
    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def event(self, kind: str, detail: str, **more: Any) -> None:
        self.found.append((kind, detail))


class FakeRollout:
    """Dies or hangs after two replies as long as a file says so; its replies depend on prompt and index alone."""

    def __init__(self, trouble: str, marker: Path) -> None:
        self._trouble, self._marker, self._version = trouble, marker, 0

    async def hello(self) -> dict[str, Any]:
        return {"source": "same", "node": "here"}

    async def generate(self, prompts: list[Prompt], sampling: Sampling) -> AsyncIterator[tuple[Reply, list[Any]]]:
        given = 0
        for prompt in prompts:
            for index in range(sampling.group_size):
                if given == 2 and self._trouble and self._marker.exists():
                    if self._trouble != "always":
                        self._marker.unlink()
                    if self._trouble == "hang":
                        await asyncio.sleep(HANG_S)
                    os.kill(os.getpid(), signal.SIGKILL)
                yield (
                    reply(prompt, index, self._version),
                    [ray.put(Speech(wave=np.zeros(4, np.float32), sample_rate=8))],
                )
                given += 1

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        self._version = manifest.version
        return manifest.version


class FakeJudge:
    """Hangs on, or dies of, the replies it is told to, as long as a file is there."""

    def __init__(self, slow: str, deadly: str, marker: Path) -> None:
        self._slow, self._deadly, self._marker = slow, deadly, marker

    def hello(self) -> dict[str, Any]:
        return {"source": "same", "node": "here"}

    def score(self, given: Reply, speech: Speech, task: JudgeTask, audio: Path | None) -> ReplyJudgement:
        name = f"{given.prompt_id}/{given.index}"
        if name in (self._slow, self._deadly) and self._marker.exists():
            self._marker.unlink()
            if name == self._slow:
                time.sleep(HANG_S)
            os.kill(os.getpid(), signal.SIGKILL)
        reward = ScoredVerdict(value=1.0 + given.index, judge="fake")
        return ReplyJudgement(
            prompt_id=given.prompt_id,
            index=given.index,
            axes={"semantic": reward},
            reward=reward,
            transcript="",
        )


class TalkingJudge(FakeJudge):
    """One that can talk while it works, until it hangs."""

    async def hello(self) -> dict[str, Any]:  # type: ignore[override]
        return super().hello()

    async def score(self, given: Reply, speech: Speech, task: JudgeTask, audio: Path | None) -> ReplyJudgement:  # type: ignore[override]
        return super().score(given, speech, task, audio)


class Counted(JudgePool):
    """``judged``: verdicts so far."""

    judged = 0

    async def score(self, given: Reply, speech: list[Any], task: JudgeTask, audio: Path | None) -> ReplyJudgement:
        judgement = await super().score(given, speech, task, audio)
        self.judged += 1
        return judgement


class Shares(RolloutPool):
    """``ended``: engines that have given all that they were asked for."""

    ended = 0

    async def _generate_share(self, *share: Any) -> None:
        await super()._generate_share(*share)
        self.ended += 1


def reply(prompt: Prompt, index: int, version: int) -> Reply:
    return Reply(
        prompt_id=prompt.id, index=index, ids=(prompt.ids[0], index), logps=(0.0, 0.0), channels="TE",
        sampled=(True, True), versions=(version, version), finish="stop", text="", well_formed=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    config = load_config(["rollout.workers=1", "learner.ranks=1"])
    actual = Cluster(config.cluster, plan_placement(config, count_usable_cores()))
    yield actual
    actual.close(logs=None)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    path = tmp_path / "trouble"
    path.touch()
    return path


def rollouts(trouble: str, marker: Path, events: Events, *, count: int = 2, restarts: int = 2) -> Shares:
    """The first of them has the trouble."""
    actor = ray.remote(FakeRollout).options(num_cpus=0)
    return Shares(
        "rollout",
        count,
        create=lambda index: actor.remote("" if index else trouble, marker),
        source="same",
        restarts=restarts,
        journal=events,
    )


def judges(events: Events, marker: Path, *, slow: str = "", deadly: str = "") -> Counted:
    actor = ray.remote(FakeJudge).options(num_cpus=0)
    return Counted(
        "judge", 2, create=lambda index: actor.remote(slow, deadly, marker), source="same", restarts=2, journal=events,
        axes=("semantic",), deadline=HANG_S,
    )  # fmt: skip


async def sampled(pool: RolloutPool) -> dict[tuple[str, int], Reply]:
    return {(r.prompt_id, r.index): r async for r, _ in pool.generate(PROMPTS, SAMPLING, HANG_S)}


async def one_batch(
    pool: Shares, panel: Counted, marker: Path, until: tuple[int, int] | None = None
) -> list[tuple[Reply, ReplyJudgement]]:
    """A judged batch. Once somebody hangs and all others are done, the deadline of what is open passes.

    ``until``: engines that have ended and replies that are judged by then.
    """
    await asyncio.gather(pool.start(), panel.start())
    try:
        batch = asyncio.create_task(sample_and_judge(pool, panel, PROMPTS, TASKS, SAMPLING, deadline=HANG_S))
        while not batch.done() and until is not None:
            if pool.ended >= until[0] and panel.judged >= until[1] and not marker.exists():
                put_forward(HANG_S)
                break
            await asyncio.sleep(0.01)
        return (await batch).replies
    finally:
        pool.close()
        panel.close()


@pytest.mark.parametrize("trouble, until", [("die", None), ("hang", (1, 2 + 6))])  # the other engine gives six
def test_a_lost_engine_is_replaced_and_the_same_replies_come(
    cluster: Cluster, marker: Path, trouble: str, until: tuple[int, int] | None
) -> None:
    events = Events()
    batch = one_batch(rollouts(trouble, marker, events), judges(events, marker), marker, until)
    result = clocks.run(batch)
    assert [(r.prompt_id, r.index) for r, _ in result] == [(p.id, i) for p in PROMPTS for i in range(3)]
    assert [r for r, _ in result] == [reply(p, i, 0) for p in PROMPTS for i in range(3)]
    assert [kind for kind, _ in events.found] == ["restart"]
    assert "replies open" in events.found[0][1]


def test_a_fresh_engine_has_the_newest_weights(cluster: Cluster, marker: Path) -> None:
    async def scenario() -> dict[tuple[str, int], Reply]:
        pool = rollouts("die", marker, Events(), count=1)
        await pool.start()
        manifest = WeightManifest(version=4, names=(), dtypes=(), shapes=(), digest="")
        await pool.load(PublishedWeights(manifest, [ray.put(np.zeros(0, np.uint8))]))
        actual = await sampled(pool)
        pool.close()
        return actual

    assert {r.policy_version for r in asyncio.run(scenario()).values()} == {4}


def test_the_budget_ends_the_run_with_a_typed_error(cluster: Cluster, marker: Path) -> None:
    async def scenario() -> None:
        pool = rollouts("always", marker, Events(), count=1, restarts=1)
        await pool.start()
        try:
            await sampled(pool)
        finally:
            pool.close()

    with pytest.raises(RestartBudgetSpent, match="failed after 1 restarts"):
        asyncio.run(scenario())


def test_another_source_tree_is_refused(cluster: Cluster, marker: Path) -> None:
    async def scenario() -> None:
        actor = ray.remote(FakeRollout).options(num_cpus=0)
        pool = RolloutPool(
            "rollout",
            1,
            create=lambda i: actor.remote("", marker),
            source="mine",
            restarts=0,
            journal=Events(),
        )
        await pool.start()

    with pytest.raises(RunError, match="one source tree"):
        asyncio.run(scenario())


def test_a_late_verdict_is_missing_and_the_others_are_not(cluster: Cluster, marker: Path) -> None:
    events = Events()
    panel = judges(events, marker, slow="p1/2")
    result = clocks.run(one_batch(rollouts("", marker, events), panel, marker, until=(2, 14)))
    late = [(r.prompt_id, r.index) for r, judged in result if isinstance(judged.reward, MissingVerdict)]
    assert late == [("p1", 2)]
    assert next(j.reward for r, j in result if (r.prompt_id, r.index) == ("p1", 2)) == MissingVerdict(
        judge="pool", reason="deadline", kind="deadline", retryable=True
    )


def test_a_dead_judge_is_replaced_and_its_reply_judged_again(cluster: Cluster, marker: Path) -> None:
    events = Events()
    result = clocks.run(one_batch(rollouts("", marker, events), judges(events, marker, deadly="p3/1"), marker))
    assert all(judged.reward == ScoredVerdict(value=1.0 + r.index, judge="fake") for r, judged in result)
    assert [kind for kind, _ in events.found] == ["restart"]


def test_a_judge_that_hangs_is_replaced_long_before_its_deadline(cluster: Cluster, marker: Path) -> None:
    async def scenario() -> list[ReplyJudgement]:
        actor = ray.remote(TalkingJudge).options(num_cpus=0)
        pool = JudgePool(
            "judge", 1, create=lambda index: actor.remote("p1/1", "", marker), source="same", restarts=2,
            journal=events, axes=("semantic",),
            deadline=100 * HANG_S, slots=3, alive_s=HANG_S,
        )  # fmt: skip
        await pool.start()
        heard = [ray.put(Speech(wave=np.zeros(4, np.float32), sample_rate=8))]
        asked = asyncio.gather(*(pool.score(reply(PROMPTS[1], i, 0), heard, TASKS["p1"], None) for i in range(3)))
        try:
            while marker.exists():
                await asyncio.sleep(0.01)
            for _ in ("it is asked for a sign of life", "it gave none"):
                put_forward(HANG_S)
                await asyncio.sleep(0.01)
            return list(await asked)
        finally:
            pool.close()

    events = Events()
    result = clocks.run(scenario())
    assert [judged.reward for judged in result] == [ScoredVerdict(value=1.0 + i, judge="fake") for i in range(3)]
    assert events.found == [("restart", f"judge worker 0 replaced: no sign of life within {HANG_S:g} s")]
