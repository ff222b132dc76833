"""Held-out replies: a line per prompt that adds up to the evaluation; nothing stands in for what is missing."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from actors.collect import JudgedBatch
from actors.evaluate import build_held_out_record, summarise_evaluation
from actors.run.record import RunDirectory
from conf.load import load_config
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict, Verdict
from learner.decide import ReplyGroup
from report.records import Event, HeldOutReply, MissingScoreRecord, ScoreRecord
from rollout.types import Prompt, Reply
from speech.data.manifest import ManifestRow
from store.lines import read_json_lines

REPLIES = TypeAdapter(HeldOutReply)
NONE = MissingVerdict(judge="panel/1", reason="recogniser: HTTP 503", kind="recogniser", retryable=True)


def row(name: str) -> ManifestRow:
    return ManifestRow.model_validate(
        {
            "id": name,
            "messages": [{"role": "user", "content": "what is two plus two"}],
            "question_text": "what is two plus two",
            "task_type": "arithmetic",
            "answer": {"match": "final", "value": "four"},
            "style": "slow",
            "sft_target_text": "four",
            "sft_target_audio": ["a.flac"],
        }
    )


def reply(name: str, channels: str = "TBAAABE") -> Reply:
    n = len(channels)
    return Reply(
        prompt_id=name, index=0, ids=tuple(range(100, 100 + n)), logps=(-0.5,) * n, channels=channels,
        sampled=(True,) * n, versions=(0,), finish="stop", text="four", well_formed=True,
    )  # fmt: skip


def judged(name: str, verdict: Verdict, figures: dict[str, float], transcript: str | None) -> ReplyJudgement:
    return ReplyJudgement(
        prompt_id=name,
        index=0,
        axes={"acoustic": verdict},
        reward=verdict,
        transcript=transcript,
        figures=figures,
    )


HEARD = judged(
    "a",
    ScoredVerdict(value=4.5, judge="acoustic/1", why="clear"),
    {"seconds": 1.5, "wer": 0.25, "heard_right": 1.0},
    "for",
)
UNHEARD = judged("b", NONE, {"seconds": 2.0}, None)


def written() -> tuple[list[HeldOutReply], float | None]:
    rows, pairs = [row("a"), row("b")], [(reply("a"), HEARD), (reply("b", "TE"), UNHEARD)]
    groups = tuple(
        ReplyGroup(prompt=Prompt(id=one.id, ids=()), replies=(pair,)) for one, pair in zip(rows, pairs, strict=True)
    )
    batch = JudgedBatch(groups=groups, generate_s=3.0, judge_s=0.5)
    evaluation = summarise_evaluation(rows, batch, step=0, split="test", when="before")
    return [
        build_held_out_record(evaluation, one, *pair) for one, pair in zip(rows, pairs, strict=True)
    ], evaluation.took_s


def test_a_line_has_the_reply_its_codes_its_scores_and_its_figures() -> None:
    (first, _), took = written()
    assert took == 3.5
    assert (first.row_id, first.task_type, first.style, first.when) == ("a", "arithmetic", "slow", "before")
    assert first.codes == [102, 103, 104], "the ids of the AUDIO positions alone"
    assert first.scores == {"acoustic": ScoreRecord(value=4.5, judge="acoustic/1", why="clear")}
    assert (first.reward, first.missing, first.transcript, first.seconds) == (4.5, None, "for", 1.5)
    assert first.figures == {"seconds": 1.5, "wer": 0.25, "heard_right": 1.0}


def test_what_nobody_knows_is_left_out_and_has_a_reason() -> None:
    second = written()[0][1]
    assert second.scores == {"acoustic": MissingScoreRecord(missing="recogniser: HTTP 503", kind="recogniser")}
    assert (second.reward, second.missing, second.transcript) == (None, "recogniser: HTTP 503", None)
    assert second.figures == {"seconds": 2.0} and second.codes == []
    with pytest.raises(ValidationError, match="either a reward or a reason"):
        HeldOutReply.model_validate(second.model_dump() | {"missing": None})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    replies, _ = written()
    RunDirectory(tmp_path).write("heldout/test_before.jsonl", replies)
    assert read_json_lines(tmp_path / "heldout/test_before.jsonl", REPLIES).rows == tuple(replies)
    assert [path.name for path in (tmp_path / "heldout").iterdir()] == ["test_before.jsonl"]


def test_a_resumed_run_keeps_what_was_held_out_up_to_its_step(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    names = (
        "test_before",
        "validation_before",
        "validation_step_000020",
        "validation_step_000040",
        "test_after",
    )
    for name in names:
        run.write(f"heldout/{name}.jsonl", [])
    run.discard_after(20, load_config([f"run.root={tmp_path}", "run.name=run"]))
    left = sorted(path.stem for path in (tmp_path / "heldout").iterdir())
    assert left == ["test_before", "validation_before", "validation_step_000020"]


def test_an_event_that_a_kill_tore_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    RunDirectory(tmp_path).event("restart", "before the kill")
    with (tmp_path / "events.jsonl").open("a") as out:
        out.write('{"time": 1.0, "kind": "dr')
    RunDirectory.reopen(tmp_path, 3).event("resume", "after it")
    json_lines = read_json_lines(tmp_path / "events.jsonl", TypeAdapter(Event))
    assert [event.kind for event in json_lines.rows] == ["restart", "resume"] and json_lines.note is None


@pytest.mark.parametrize("whole", [False, True])
def test_an_evaluation_that_a_kill_cut_short_leaves_no_line_where_it_is_made_again(
    whole: bool, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    for step, when in ((0, "before"), (2, "during"), (4, "during")):
        run.append("evaluations.jsonl", {"step": step, "split": "validation", "when": when})
    run.append("samples.jsonl", {"when": "before"})
    run.write("heldout/validation_before.jsonl", [])
    if whole:
        run.write("heldout/validation_step_000004.jsonl", [])
    run.discard_after(4, load_config([]))
    steps = [json.loads(line)["step"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert steps == [0, 2, *[4] * whole]
    assert (tmp_path / "samples.jsonl").read_text()
