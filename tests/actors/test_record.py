"""The records of a step are enough to score it again, and say what taught nothing and what to do about it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from actors.run.record import RunDirectory, record_step
from learner.decide import ReplyGroup
from learner.types import StepResult
from report.read import read_rollouts
from report.records import Event
from store.lines import read_json_lines
from tests.learner.test_decide import decided, group, settings


def ended(finish: Any, item: ReplyGroup) -> ReplyGroup:
    return replace(item, replies=tuple((replace(reply, finish=finish), judged) for reply, judged in item.replies))


def recorded(run: Path, groups: list[ReplyGroup], **algo: Any) -> RunDirectory:
    directory = RunDirectory(run)
    row = {"audios": (), "answer": None, "task_type": "t", "question_text": "?", "style": None}
    message = SimpleNamespace(content="?")
    rows: Any = [SimpleNamespace(id=g.prompt.id, messages=(message,), **row) for g in groups]
    result = StepResult(version=1, metrics={}, learner_logps={})
    record_step(directory, 1, rows, groups, decided(groups, **algo), result, settings(**algo), {"step": 1})
    return directory


def test_a_record_holds_what_the_reply_answers_in_ids(tmp_path: Path) -> None:
    run = recorded(tmp_path, [group("a", [1.0, 5.0])])
    rows = read_rollouts(run.path / "rollouts" / "step_000001.jsonl").rows
    assert [(row.prompt_ids, row.ids) for row in rows] == [([1, 2], [7, 3])] * 2


@pytest.mark.parametrize(("rewards", "why"), [([3.0, 3.0], "lambda is 0"), ([1.0, 5.0], None)])
def test_a_reply_of_a_step_without_preference_says_why_it_taught_nothing(
    rewards: list[float | None], why: str | None, tmp_path: Path
) -> None:
    run = recorded(tmp_path, [group("a", rewards)])
    rows = read_rollouts(run.path / "rollouts" / "step_000001.jsonl").rows
    assert {row.dropped for row in rows} == {why}


def events(run: RunDirectory) -> list[str]:
    file = run.path / "events.jsonl"
    return [event.detail for event in read_json_lines(file, TypeAdapter(Event)).rows] if file.exists() else []


def test_a_step_in_which_every_reply_was_cut_off_is_an_event_with_what_to_do(tmp_path: Path) -> None:
    groups = [group("a", [1.0, 5.0]), group("b", [2.0, 3.0])]
    (event,) = events(recorded(tmp_path / "all", [ended("length", item) for item in groups]))
    assert event.startswith("no reply came to its end within rollout.max_new_tokens=160: raise rollout.max_new")
    assert events(recorded(tmp_path / "one", [ended("length", groups[0]), groups[1]])) == []
    assert events(recorded(tmp_path / "none", [])) == []  # a step that samples nothing
