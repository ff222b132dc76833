"""An interrupt while a checkpoint is being written lets it end: it is not lost, and not written twice."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import checkpoint
from actors.driver import Driver
from actors.interrupt import terminable, undisturbed
from actors.prepare import prepare
from actors.record import RunDirectory


class SlowLearner:
    """Writes two files; what has been ``begun`` ends when it ``may``."""

    def __init__(self) -> None:
        self.calls = 0
        self.begun, self.may = asyncio.Event(), asyncio.Event()

    async def save(self, folder: Path) -> None:
        self.calls += 1
        assert not any(folder.iterdir())
        (folder / "a").write_text("1")
        self.begun.set()
        await self.may.wait()
        (folder / "b").write_text("2")


def driver(tmp_path: Path, learner: SlowLearner) -> tuple[Driver, RunDirectory]:
    job = prepare([f"run.root={tmp_path}", "run.name=run", "learner.ranks=1", "judge.workers=1"])
    run = RunDirectory.create(job.config)
    monitor: Any = SimpleNamespace(phase=lambda *_, **__: None, say=lambda _: None, tick=None, step=None)
    fleet: Any = SimpleNamespace(learner=learner, rollout=None, judges=None)
    found = Driver(job, run, fleet, monitor)
    found._state = replace(found._state, step=2)
    return found, run


def test_an_interrupt_during_a_checkpoint_lets_it_end(tmp_path: Path) -> None:
    learner = SlowLearner()
    found, run = driver(tmp_path, learner)

    async def train() -> None:
        try:
            await found._checkpoint()
        except asyncio.CancelledError:
            await found._interrupted()
            raise

    async def interrupted() -> None:
        task = asyncio.create_task(train())
        await learner.begun.wait()
        task.cancel()
        await asyncio.sleep(0.01)  # it is told
        learner.may.set()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert learner.calls == 1
    assert [path.name for path in (run.path / "checkpoints").glob("step_*")] == ["step_000002"]
    assert checkpoint.check(checkpoint.folder(run.path, 2)) == []


def test_an_interrupt_before_a_resumed_run_has_learnt_anything_writes_nothing(tmp_path: Path) -> None:
    learner = SlowLearner()
    found, run = driver(tmp_path, learner)
    learner.may.set()
    asyncio.run(found._checkpoint())
    asyncio.run(found._interrupted())  # its state is that of the snapshot
    assert learner.calls == 1 and len(checkpoint.snapshots(run.path)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_what_must_not_be_torn_has_ended(number: signal.Signals) -> None:
    whole = False
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt), terminable():
            with undisturbed():
                os.kill(os.getpid(), number)
                whole = True
            raise AssertionError("the signal was lost")
    finally:
        signal.signal(signal.SIGINT, before)
    assert whole
