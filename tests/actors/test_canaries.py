"""What a run does with a judge that pays for replies that deserve nothing."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.canaries import CANARIES_FILE, CanaryChecks
from actors.context import RunContext
from actors.errors import CanaryPaid
from actors.run.record import RunDirectory
from conf.load import load_config
from judge.llm.canary import CanaryResult
from judge.types import JudgeTask, MissingVerdict, ScoredVerdict
from speech.data.manifest import read_manifest

API = ["judge=openai", "judge.api.base_url=http://127.0.0.1:9/v1", "judge.api.model=m"]
PAID = CanaryResult(name="plea", axis="semantic", verdict=ScoredVerdict(value=5.0, judge="j"), most=2.0)
PASSED = CanaryResult(name="noise", axis="acoustic", verdict=ScoredVerdict(value=1.0, judge="j"), most=2.0)
UNKNOWN = CanaryResult(
    name="silence", axis="acoustic", verdict=MissingVerdict(judge="j", reason="HTTP 503", kind="server"), most=2.0
)


class Judges:
    def __init__(self, actual: list[CanaryResult]) -> None:
        self.found, self.asked = actual, []  # type: ignore[var-annotated]

    async def canaries(self, task: JudgeTask, transcript: str, clips: list[Path]) -> list[CanaryResult]:
        self.asked.append((task, transcript, clips))
        return self.found


def canaries_of(run: RunDirectory, judges: Judges, *settings: str) -> CanaryChecks:
    config = load_config(list(settings))
    job: Any = SimpleNamespace(config=config, train=read_manifest(config.data.train, 60.0)[:1])
    fleet: Any = SimpleNamespace(endpoints=[judges])
    monitor: Any = SimpleNamespace(begin_phase=lambda *_: None)
    return CanaryChecks(RunContext(job, run, fleet, monitor))


def test_each_check_is_on_disk_and_a_judge_that_pays_is_an_event(tmp_path: Path) -> None:
    run, judges = RunDirectory(tmp_path), Judges([PAID, PASSED, UNKNOWN])
    asyncio.run(canaries_of(run, judges, *API).check(20))
    lines = [json.loads(line) for line in (tmp_path / CANARIES_FILE).read_text().splitlines()]
    assert [line["fate"] for line in lines] == ["paid", "passed", "unknown"]
    assert [line["value"] for line in lines] == [5.0, 1.0, None] and {line["step"] for line in lines} == {20}
    (event,) = (json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert event["kind"] == "canary" and event["count"] == 1 and "semantic/plea: PAID with 5.00" in event["detail"]
    ((task, transcript, clips),) = judges.asked
    assert transcript and all(clip.is_file() for clip in clips) and task.question


def test_a_judge_that_pays_ends_the_run_when_the_settings_say_so(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(CanaryPaid, match=r"semantic/plea: PAID.*judge\.api\.canary_stop"):
        asyncio.run(canaries_of(run, Judges([PAID]), *API, "judge.api.canary_stop=true").check(0))
    asyncio.run(canaries_of(run, Judges([PASSED, UNKNOWN]), *API, "judge.api.canary_stop=true").check(0))


def test_canaries_are_due_every_so_often_and_never_for_local_judges(tmp_path: Path) -> None:
    run, judges = RunDirectory(tmp_path), Judges([])
    often = canaries_of(run, judges, *API, "judge.api.canary_every=3")
    assert [step for step in range(1, 10) if often.is_due_at(step)] == [3, 6, 9]
    assert not canaries_of(run, judges, *API, "judge.api.canary_every=0").is_due_at(20)
    local = canaries_of(run, judges)
    asyncio.run(local.check(0))
    assert not local.is_due_at(20) and not judges.asked and not (tmp_path / CANARIES_FILE).exists()
