"""A run that goes on from a checkpoint gets the batches that it would have got, also what was sampled ahead."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.batches import BatchScheduler, CollectedBatch, CursorStates
from actors.context import RunContext
from actors.errors import RunError
from actors.run import checkpoint
from actors.run.checkpoint import DriverState
from conf.load import load_config
from judge.types import JudgeTask, MissingVerdict, ReplyJudgement, ScoredVerdict
from learner.decide import reward_of
from rollout.request import derive_seed
from rollout.types import Prompt, Reply, Sampling
from speech.dataset import Example, Response
from speech.features import EncodedPrompt

STEPS, ROWS, SIZE = 6, 7, 2


class Rows(list[Any]):
    """Rows of a manifest that nobody reads."""


def row(name: str) -> Any:
    last = SimpleNamespace(content="?")
    return SimpleNamespace(
        id=name, audios=(), messages=(last,), answer=None, task_type="t", question_text="?", style=None
    )


class Engine:
    """Replies that tell which weights they came from; a reply takes a while."""

    def __init__(self, version: int) -> None:
        self.version = version

    async def ask_engine(self, how: str, manifest: Path, rows: Sequence[Any]) -> list[Example]:
        target = Response(ids=(3, 4), channels="TE", sampled=(True, True))
        return [Example(row_id=row.id, prompt=EncodedPrompt((1, 2)), target=target) for row in rows]

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, deadline: float
    ) -> AsyncIterator[tuple[Reply, list[Any]]]:
        for prompt in prompts:
            for index in range(sampling.group_size):
                await asyncio.sleep(0)
                drawn = derive_seed(10 * sampling.seed + self.version, prompt.id, index) % 1009
                reply = Reply(
                    prompt_id=prompt.id,
                    index=index,
                    ids=(drawn, 2),
                    logps=(-drawn / 7, -1e-17),
                    channels="TE",
                    sampled=(True, False),
                    versions=(self.version,) * 2,
                    finish="stop",
                    text=f"é {drawn}",
                    well_formed=True,
                )
                yield reply, []


class Judges:
    """Verdicts from the reply alone, some of them missing, some groups equal."""

    together = False

    async def score(self, reply: Reply, speech: list[Any], task: JudgeTask, path: Path | None) -> ReplyJudgement:
        drawn = reply.ids[0]
        verdict: Any = ScoredVerdict(value=1 + drawn % 3 / 3, judge="j", spread=0.1, why="w")
        if drawn % 5 == 0:
            verdict = MissingVerdict(judge="j", reason="HTTP 503", kind="server", retryable=True)
        return ReplyJudgement(
            prompt_id=reply.prompt_id,
            index=reply.index,
            axes={"semantic": verdict, "acoustic": verdict},
            reward=verdict,
            transcript=None,
            figures={"wer": drawn / 3},
        )


def batches(staleness: int, equal_groups: str, engine: Engine) -> BatchScheduler:
    config = load_config(
        [
            f"run.steps={STEPS}",
            f"run.staleness={staleness}",
            "rollout.prompts_per_step=2",
            f"rollout.group_size={SIZE}",
            "learner.anchors_per_step=3",
            f"algo.equal_groups={equal_groups}",
            "run.seed=3",
        ]
    )
    family = SimpleNamespace(channels=SimpleNamespace(to_letters=lambda ids: "T" * len(ids)))
    train = Rows(row(f"r{i}") for i in range(ROWS))
    job: Any = SimpleNamespace(config=config, train=train, pairs=(), family=family)
    monitor: Any = SimpleNamespace(begin_phase=lambda *_, **__: None, tick=lambda *_: None)
    run: Any = SimpleNamespace(reply_audio_path=lambda step, reply: None)
    fleet: Any = SimpleNamespace(rollout=engine, judges=Judges())
    return BatchScheduler(RunContext(job, run, fleet, monitor))


def untimed(batch: CollectedBatch) -> CollectedBatch:
    return replace(batch, judged=replace(batch.judged, generate_s=0.0, judge_s=0.0, overlap_s=0.0))


def snapshot(run: Path, made: BatchScheduler, step: int) -> None:
    """As the driver writes it."""
    ahead = made.prefetched_after(step)
    cursors: CursorStates = made.cursors(step)
    state = DriverState(step=step, seed=3, gate={}, cursors=cursors)
    checkpoint.save_snapshot(run, state, lambda folder: None, 99, None if ahead is None else ahead.prefetched)


async def whole(staleness: int, equal_groups: str, run: Path) -> list[CollectedBatch]:
    """A run in the driver's order of calls, with a checkpoint after every step."""
    engine = Engine(0)
    made, collected = batches(staleness, equal_groups, engine), []
    snapshot(run, made, 0)
    for step in range(1, STEPS + 1):
        made.start(step)
        collected.append(untimed(await made.wait_for_batch()))
        made.start(step)
        await made.wait_until_sampled()
        engine.version = step
        snapshot(run, made, step)
    return collected


async def resumed(staleness: int, equal_groups: str, run: Path, step: int) -> list[CollectedBatch]:
    """The rest of it."""
    folder = checkpoint.snapshot_folder(run, step)
    assert checkpoint.check_snapshot(folder) == []
    engine = Engine(step)
    made, collected = batches(staleness, equal_groups, engine), []
    _, state, _ = checkpoint.find_newest_snapshot(run)
    assert state.step == step
    made.resume_after(step, state.cursors, checkpoint.read_prefetched_batch(folder))
    for now in range(step + 1, STEPS + 1):
        made.start(now)
        collected.append(untimed(await made.wait_for_batch()))
        made.start(now)
        await made.wait_until_sampled()
        engine.version = now
    return collected


@pytest.mark.parametrize("equal_groups", ["keep", "refill"])
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_resumed_run_learns_from_the_batches_of_the_straight_one(
    staleness: int, equal_groups: str, tmp_path: Path
) -> None:
    straight = asyncio.run(whole(staleness, equal_groups, tmp_path))
    assert [min(r.policy_version for r, _ in b.judged.replies) for b in straight] == [
        max(0, step - staleness) for step in range(STEPS)
    ]
    assert any(reward_of(judged) is None for b in straight for _, judged in b.judged.replies)
    for step in reversed(range(STEPS)):
        for later in checkpoint.list_snapshots(tmp_path)[step + 1 :]:
            later.rename(tmp_path / later.name)
        assert asyncio.run(resumed(staleness, equal_groups, tmp_path, step)) == straight[step:]


async def interrupted(run: Path, when: str) -> int:
    """A run at staleness 1 that is interrupted in step 3: the step of its checkpoint."""
    engine = Engine(0)
    made = batches(1, "keep", engine)
    for step in (1, 2, 3):
        made.start(step)
        await made.wait_for_batch()
        made.start(step)
        if step == 3 and when == "before the update":  # batch 3 was taken, and nothing was learnt of it
            await made.stop_sampling(2)
            snapshot(run, made, 2)
            return 2
        if step == 3 and when == "in the update":  # batch 4 is being sampled by the weights of step 2
            await asyncio.sleep(0)
            await made.stop_sampling(3)
            snapshot(run, made, 3)
            return 3
        await made.wait_until_sampled()
        engine.version = step
    raise AssertionError(when)


async def cancelled(work: Coroutine[Any, Any, Any]) -> None:
    """Begun, and interrupted as a signal does it."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class BrokenEngine(Engine):
    """Fails in the middle of a batch, also where it is asked to end."""

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, deadline: float
    ) -> AsyncIterator[tuple[Reply, list[Any]]]:
        try:
            await asyncio.sleep(0.01)
        finally:
            raise RunError("an engine died too often")
        yield


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_batch_that_fails_while_the_run_is_interrupted_is_an_event(staleness: int) -> None:
    events: list[str] = []

    async def interrupt() -> None:
        engine = Engine(0)
        made = batches(staleness, "keep", engine)
        made._run = cast(
            Any,
            SimpleNamespace(reply_audio_path=made._run.reply_audio_path, event=lambda kind, line: events.append(line)),
        )
        made.start(1)
        await made.wait_for_batch()
        made._fleet = cast(Any, SimpleNamespace(rollout=BrokenEngine(1), judges=Judges()))
        made.start(2)
        await cancelled(made.wait_for_batch())
        await made.stop_sampling(1)
        assert made.prefetched_after(1) is None and made._ahead is not None
        await asyncio.wait({made._ahead})

    asyncio.run(interrupt())
    assert events == [
        "what was being sampled failed, a resumed run samples it again: RunError: an engine died too often"
    ]


@pytest.mark.parametrize("when", ["before the update", "in the update"])
def test_an_interrupt_loses_nothing_that_only_older_weights_could_sample_again(when: str, tmp_path: Path) -> None:
    straight = asyncio.run(whole(1, "keep", tmp_path / "straight"))
    step = asyncio.run(interrupted(tmp_path / "cut", when))
    assert asyncio.run(resumed(1, "keep", tmp_path / "cut", step)) == straight[step:]
