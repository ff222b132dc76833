"""What a step does when verdicts are missing: it goes on, or it says that the judges are out."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import evaluate
from actors.collect import Harvest, check_outage
from actors.decide import Group
from actors.errors import JudgeOutage
from judge.types import Judged, Missing, Scored
from rollout.types import Prompt, Reply


def judged(reward: float | None) -> Judged:
    verdict = (
        Missing(judge="j", reason="HTTP 503", kind="server")
        if reward is None
        else Scored(value=reward, judge="j")
    )
    return Judged(prompt_id="p", index=0, axes={}, reward=verdict, transcript=None)


def test_as_many_missing_verdicts_as_allowed_are_no_outage() -> None:
    check_outage([judged(3.0), judged(None)], most=0.5)


def test_more_missing_verdicts_than_allowed_stop_the_run_with_their_reason() -> None:
    with pytest.raises(JudgeOutage, match=r"2 of 3 verdicts are missing.*HTTP 503"):
        check_outage([judged(3.0), judged(None), judged(None)], most=0.5)


def test_an_evaluation_on_an_outage_writes_no_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[object] = []
    settings = SimpleNamespace(
        data=SimpleNamespace(test="t", validation="v"), judge=SimpleNamespace(max_missing=0.5), rollout=None
    )
    job = SimpleNamespace(config=settings, test=(), validation=())
    run = SimpleNamespace(path=tmp_path, append=lambda *line: written.append(line))
    monitor = SimpleNamespace(phase=lambda *_, **__: None, tick=None, say=written.append)

    async def nothing(*_: object) -> list[object]:
        return []

    async def all_missing(*_: object, **__: object) -> Harvest:
        reply = Reply(
            prompt_id="p",
            index=0,
            ids=(),
            logps=(),
            channels="",
            sampled=(),
            versions=(),
            finish="stop",
            text="",
            well_formed=True,
        )
        group = Group(prompt=Prompt(id="p", ids=()), replies=((reply, judged(None)),))
        return Harvest(groups=(group,), generate_s=0.0, judge_s=0.0)

    monkeypatch.setattr(evaluate, "encode", nothing)
    monkeypatch.setattr(evaluate, "greedy", all_missing)
    held_out = evaluate.HeldOut(job, run, SimpleNamespace(rollout=None, judges=None), monitor)  # type: ignore[arg-type]
    with pytest.raises(JudgeOutage, match="1 of 1 verdicts"):
        asyncio.run(held_out.evaluate("test", "before", 0))
    assert written == []
