"""What a run does first: a resumed one looks at the start policy where an interruption cut that off."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.checkpoint import DriverState
from actors.driver import Driver


async def nothing(*_: Any) -> None: ...


@pytest.mark.parametrize(("step", "done", "looked"), [(0, ["test"], ["validation"]), (3, [], [])])
def test_evaluations_before_training_that_an_interruption_cut_off_are_made_on_resume(
    step: int, done: list[str], looked: list[str]
) -> None:
    asked: list[str] = []

    async def evaluate(split: str, when: str, at: int) -> None:
        assert (when, at) == ("before", 0)
        asked.append(split)

    driver: Any = Driver.__new__(Driver)
    state = DriverState(step=step, seed=0, gate={}, cursors={})
    driver._config = None
    driver._job = SimpleNamespace(snapshot=(Path("snapshot"), state))
    driver._fleet = SimpleNamespace(learner=SimpleNamespace(load=nothing), sync=nothing)
    driver._gate = SimpleNamespace(load_state_dict=lambda _: None)
    driver._batches = SimpleNamespace(load=lambda *_: None)
    driver._run = SimpleNamespace(cut=lambda *_: None, event=lambda *_: None)
    driver._monitor = SimpleNamespace(resume=lambda _: None)
    driver._canaries = SimpleNamespace(check=nothing)
    driver._held_out = SimpleNamespace(done=lambda split, when, at: split in done, evaluate=evaluate)
    asyncio.run(driver._begin())
    assert asked == looked
