"""An interrupt while a checkpoint is being written lets it end: it is not lost, and not written twice."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.checks.prepare import prepare_job
from actors.context import RunContext
from actors.loop import Driver
from actors.run import checkpoint
from actors.run.interrupt import (
    defer_signals,
    interrupt_on_termination,
    run_until_terminated,
    shield_children_from_hangup,
)
from actors.run.record import RunDirectory
from tests.helpers.processes import HANG_S


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


def driver(data: list[str], tmp_path: Path, learner: SlowLearner) -> tuple[Driver, RunDirectory]:
    job = prepare_job([f"run.root={tmp_path}", "run.name=run", "learner.ranks=1", "judge.workers=1", *data])
    run = RunDirectory.create(job.config)
    monitor: Any = SimpleNamespace(begin_phase=lambda *_, **__: None, say=lambda _: None, tick=None, step=None)
    fleet: Any = SimpleNamespace(learner=learner, rollout=None, judges=None)
    driver_under_test = Driver(RunContext(job, run, fleet, monitor))
    driver_under_test._state = replace(driver_under_test._state, step=2)
    return driver_under_test, run


def test_an_interrupt_during_a_checkpoint_lets_it_end(short_world: list[str], tmp_path: Path) -> None:
    learner = SlowLearner()
    actual, run = driver(short_world, tmp_path, learner)

    async def train() -> None:
        try:
            await actual._checkpoint()
        except asyncio.CancelledError:
            await actual._save_after_interrupt()
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
    assert checkpoint.check_snapshot(checkpoint.snapshot_folder(run.path, 2)) == []


def test_an_interrupt_before_a_resumed_run_has_learnt_anything_writes_nothing(
    short_world: list[str], tmp_path: Path
) -> None:
    learner = SlowLearner()
    actual, run = driver(short_world, tmp_path, learner)
    learner.may.set()
    asyncio.run(actual._checkpoint())
    asyncio.run(actual._save_after_interrupt())  # its state is that of the snapshot
    assert learner.calls == 1 and len(checkpoint.list_snapshots(run.path)) == 1


@pytest.fixture
def terminal_signals() -> Iterator[None]:
    """The handlers of a shell's foreground job: ``nohup`` ignores SIGHUP, a background job ignores SIGINT."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.usefixtures("terminal_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_until_what_must_not_be_torn_has_ended(number: signal.Signals) -> None:
    whole = False
    with pytest.raises(KeyboardInterrupt), interrupt_on_termination():
        with defer_signals():
            os.kill(os.getpid(), number)
            whole = True
        raise AssertionError("the signal was lost")
    assert whole


def saving(*sent: int) -> list[str]:
    """What a loop says that saves when it is cancelled, and gets these signals while it does."""
    said = []

    async def work() -> None:
        os.kill(os.getpid(), sent[0])
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            for number in sent[1:]:
                os.kill(os.getpid(), number)
            await asyncio.sleep(0.1)  # a checkpoint
            said.append("saved")
            raise

    with pytest.raises((asyncio.CancelledError, KeyboardInterrupt)):
        asyncio.run(run_until_terminated(work()))
    return said


@pytest.mark.usefixtures("terminal_signals")
@pytest.mark.parametrize(
    "sent",
    [(signal.SIGHUP, signal.SIGHUP), (signal.SIGTERM, signal.SIGHUP), (signal.SIGINT, signal.SIGTERM)],
    ids=["terminal", "manager", "keyboard"],
)
def test_a_second_signal_of_the_same_goodbye_does_not_cut_the_checkpoint_short(sent: tuple[int, int]) -> None:
    with interrupt_on_termination():  # what holds outside of the loop
        assert saving(*sent) == ["saved"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)

    try:
        with interrupt_on_termination():
            asyncio.run(run_until_terminated(work()))
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_started_for_a_run_outlives_the_terminal_until_the_run_ends_it() -> None:
    with shield_children_from_hangup():
        child = subprocess.Popen(["sleep", "600"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as ray.init sets one of its own
    try:
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)  # comes after SIGHUP: what ended it tells
        assert child.wait(HANG_S) == -signal.SIGTERM
    finally:
        child.kill()
