"""What a run does first: a resumed one looks at the start policy where an interruption cut that off."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.loop import Driver
from actors.run.checkpoint import DriverState


async def nothing(*_: Any) -> None: ...


@pytest.mark.parametrize(
    ("step", "done", "looked"),
    [
        (0, [("test", "before", 0)], [("validation", "before", 0)]),
        (3, [], []),
        (4, [], [("validation", "during", 4)]),
        (4, [("validation", "during", 4)], []),
        (8, [], []),  # the last step: it is looked at after training
    ],
)
def test_evaluations_that_an_interruption_cut_off_are_made_on_resume(
    step: int, done: list[Any], looked: list[Any]
) -> None:
    asked: list[Any] = []

    async def evaluate(*evaluation: Any) -> None:
        asked.append(evaluation)

    driver: Any = Driver.__new__(Driver)
    state = DriverState(step=step, seed=0, gate={}, cursors={})
    driver._config = SimpleNamespace(run=SimpleNamespace(steps=8, eval_every=4))
    driver._job = SimpleNamespace(snapshot=(Path("snapshot"), state))
    driver._fleet = SimpleNamespace(learner=SimpleNamespace(load=nothing), sync=nothing)
    driver._gate = SimpleNamespace(load_state_dict=lambda _: None)
    driver._batches = SimpleNamespace(resume_after=lambda *_: None)
    driver._run = SimpleNamespace(discard_after=lambda *_: None, event=lambda *_: None)
    driver._monitor = SimpleNamespace(resume=lambda _: None)
    driver._canaries = SimpleNamespace(check=nothing)
    driver._held_out = SimpleNamespace(is_done=lambda *which: which in done, evaluate=evaluate)
    asyncio.run(driver._start_or_resume())
    assert asked == looked
