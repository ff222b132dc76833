"""One real run of the whole loop on the tiny world, and what must be true of it: vLLM, two ranks, judges, files.

Two processes: a run of four steps; the same run cut at step two and resumed, with two engines instead of one.
"""

import asyncio
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import psutil
import pytest
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from actors.cluster import count_usable_cores
from actors.diagnose import DIAGNOSTICS_FILE
from actors.run.checkpoint import check_snapshot, list_snapshots, snapshot_folder
from commands.cli import main
from conf.load import read_config
from judge.types import MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict
from learner.decide import ReplyGroup, decide_step
from learner.gate import build_lambda_source
from report.read import read_metric_rows, read_rollouts
from report.records import DiagnosisRecord, Evaluation, HeldOutReply, RolloutRecord, Sample, ScoreRecord
from rollout.request import example_to_prompt
from rollout.types import Prompt, Reply
from speech.data.manifest import read_manifest as read_rows
from store.lines import read_json_lines
from tests.actors.test_working_folder import write_own
from tests.helpers.processes import HANG_S, ended, wait_for

ROOT = Path(__file__).parents[2]
WORLD = ROOT / "examples" / "tiny_world"
STEPS = 4
SETTINGS = [
    "experiment=smoke", "run.checkpoint_every=2", "run.keep_checkpoints=9", "rollout.prompts_per_step=3",
    "rollout.group_size=3", "learner.anchors_per_step=4", "data.eval_prompts=3", "log.audio_every=2",
    "log.diagnose_every=2", "learner.timeout_s=600",
]  # fmt: skip

pytestmark = pytest.mark.skipif(count_usable_cores() < 2, reason="two learner ranks need two cores")


def train(*arguments: str, here: Path = ROOT) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "actors.driver", *arguments]
    done = subprocess.run(
        command, cwd=here, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(short_world: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_own(root)
    train(
        *SETTINGS,
        *short_world,
        f"run.root={root}",
        "run.name=straight",
        f"run.steps={STEPS}",
        "log=tensorboard",
        here=root / "own",
    )
    return root / "straight"


@pytest.fixture(scope="module")
def resumed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as if it had been killed after step two's checkpoint, while step four was under way; two engines go on."""
    copy = tmp_path_factory.mktemp("resumed") / "cut"
    shutil.copytree(run, copy)
    shutil.rmtree(snapshot_folder(copy, STEPS))
    shutil.rmtree(copy / "final")
    train(f"resume={copy}", "rollout.workers=2")
    return copy


def metrics(run: Path) -> list[dict[str, float | None]]:
    return read_metric_rows(run / "metrics.jsonl").rows


def records(run: Path, step: int) -> list[RolloutRecord]:
    return read_rollouts(run / "rollouts" / f"step_{step:06d}.jsonl").rows


def untimed(row: dict[str, float | None]) -> dict[str, float | None]:
    clocked = ("time/", "idle/", "judge/latency_s", "judge/cached", "rollout/tokens_per_s")
    return {name: value for name, value in row.items() if not name.startswith(clocked)}


def unclocked(record: RolloutRecord) -> RolloutRecord:
    """But for what a judge's clock and its memory of earlier transcripts say."""
    scores = {
        axis: score.model_copy(update={"cached": False}) if isinstance(score, ScoreRecord) else score
        for axis, score in record.scores.items()
    }
    return record.model_copy(update={"judge_latency_s": None, "scores": scores})


def test_workers_import_nothing_of_the_folder_that_the_run_was_started_in(run: Path) -> None:
    assert (run.parent / "own" / "rollout.py").exists() and not (run.parent / "imported").exists()


def test_metrics_are_finite_and_one_line_a_step(run: Path) -> None:
    rows = metrics(run)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    named = {
        "policy_version",
        "lambda",
        "reward/mean",
        "judge/missing",
        "groups/kept",
        "rollout/tokens_per_s",
        "loss/total",
    }
    named |= {
        "loss/sft",
        "grad_norm",
        "staleness",
        *(f"time/{phase}" for phase in ("generate", "judge", "learn", "sync", "step")),
    }
    assert named <= set(rows[0])


def test_weights_changed_and_nothing_else_of_the_checkpoint(run: Path) -> None:
    start, end = (load_file(path / "model.safetensors") for path in (WORLD / "base", run / "final"))
    assert start.keys() == end.keys()
    assert any((start[name] != end[name]).any() for name in start)
    for name in ("config.json", "tokenizer.json", "codec.safetensors", "wavgate.json"):
        assert (run / "final" / name).read_bytes() == (WORLD / "base" / name).read_bytes()


def test_replies_come_from_the_version_before_their_step(run: Path) -> None:
    assert [row["policy_version"] for row in metrics(run)] == list(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        assert {record.policy_version for record in records(run, step)} == {step - 1}


def test_engine_and_learner_agree_on_log_probs_after_every_update(run: Path) -> None:
    for step in range(1, STEPS + 1):
        for record in records(run, step):
            pairs = zip(record.behaviour_logps, record.learner_logps or [], strict=False)
            gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
            assert max(gaps, default=0.0) <= 2e-4, (step, record.prompt_id, record.index)


def test_lambda_and_advantages_can_be_recomputed_from_the_records(run: Path) -> None:
    config = read_config(run / "config.yaml")
    gate = build_lambda_source(config.algo, Scale(config.judge.scale_lo, config.judge.scale_hi))
    for step, row in enumerate(metrics(run), start=1):
        actual = records(run, step)
        names = list(dict.fromkeys(record.prompt_id for record in actual))
        groups = [
            ReplyGroup(
                prompt=Prompt(id=name, ids=()),
                replies=tuple(judged(record) for record in actual if record.prompt_id == name),
            )
            for name in names
        ]
        decision = decide_step(step, groups, (), gate, config)
        assert decision.batch.weight == row["lambda"]
        expected_advantages = {key: advantage.whole for key, advantage in decision.advantages.items()}
        assert {(r.prompt_id, r.index): r.advantage for r in actual if r.advantage is not None} == expected_advantages


def judged(record: RolloutRecord) -> tuple[Reply, ReplyJudgement]:
    reply = Reply(
        prompt_id=record.prompt_id, index=record.index, ids=tuple(record.ids), logps=(0.0,) * len(record.ids),
        channels=record.channels, sampled=(True,) * len(record.ids), versions=(record.policy_version,),
        finish=record.finish, text=record.text, well_formed=record.well_formed is True,
    )  # fmt: skip
    reward: Verdict = (
        MissingVerdict(judge="x", reason=record.missing or "", kind="server")
        if record.reward is None
        else ScoredVerdict(value=record.reward, judge="x")
    )
    axes: dict[str, Verdict] = {
        axis: ScoredVerdict(value=score.value, judge=score.judge)
        if isinstance(score, ScoreRecord)
        else MissingVerdict(judge="x", reason=score.missing, kind="server")
        for axis, score in record.scores.items()
    }
    return reply, ReplyJudgement(
        prompt_id=record.prompt_id, index=record.index, axes=axes, reward=reward, transcript=record.transcript
    )


def test_the_run_directory_is_complete(run: Path) -> None:
    for name in (
        "config.yaml",
        "versions.json",
        "metrics.jsonl",
        "events.jsonl",
        "report.html",
        "checkpoints/latest",
    ):
        assert (run / name).stat().st_size, name
    assert [path.name for path in list_snapshots(run)] == ["step_000002", "step_000004"]
    assert all(check_snapshot(path) == [] for path in list_snapshots(run))
    content = json.loads((run / "versions.json").read_text())
    assert content["source"] and content["packages"]["torch"] and content["packages"]["ray"]
    evaluations = read_json_lines(run / "evaluations.jsonl", TypeAdapter(Evaluation)).rows
    assert [(e.split, e.when, e.count) for e in evaluations] == [
        ("test", "before", 6), ("validation", "before", 3), ("test", "after", 6), ("validation", "after", 3)
    ]  # fmt: skip
    for evaluation in evaluations:
        held_out = read_json_lines(
            run / f"heldout/{evaluation.split}_{evaluation.when}.jsonl", TypeAdapter(HeldOutReply)
        ).rows
        right = [reply.figures["heard_right"] for reply in held_out if "heard_right" in reply.figures]
        assert len(held_out) == evaluation.count and (fmean(right) if right else None) == evaluation.heard_right
        assert {reply.step for reply in held_out} == {evaluation.step} and all(reply.codes for reply in held_out)
    kept = [record.audio for record in records(run, 2) if record.audio]
    assert kept and all((run / name).stat().st_size for name in kept)
    assert not any(record.audio for record in records(run, 3)), "the first and the last are kept, too"


def test_tensorboard_holds_what_metrics_jsonl_holds(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("lambda")] == list(range(1, STEPS + 1))
    shown = [event.value for event in board.Scalars("loss/total")]
    assert shown == pytest.approx([row["loss/total"] for row in metrics(run)], rel=1e-6)


def test_export_writes_what_the_run_ended_with(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "hf")]) == 0
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "hf", run / "final"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_eval_finds_what_the_run_found_after_training(run: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert (
        main(["eval", str(read_config(run / "config.yaml").data.test), "--model", str(run), "--json", str(figures)])
        == 0
    )
    content = json.loads(figures.read_text())
    evaluations = read_json_lines(run / "evaluations.jsonl", TypeAdapter(Evaluation)).rows
    after = next(e for e in evaluations if (e.split, e.when) == ("test", "after"))
    assert (content["count"], content["heard_right"], content["wer"]) == (6, after.heard_right, after.wer)


@pytest.mark.parametrize(
    ("sent", "interrupts", "staleness"),
    [
        pytest.param(signal.SIGINT, signal.SIG_DFL, 0, id="ctrl-c", marks=pytest.mark.long),
        # a background shell ignores SIGINT
        pytest.param(signal.SIGTERM, signal.SIG_IGN, 1, id="sigterm-one-step-ahead"),
    ],
)
def test_an_interrupt_leaves_a_checkpoint_and_no_worker(
    sent: signal.Signals, interrupts: signal.Handlers, staleness: int, short_world: list[str], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "actors.driver", *SETTINGS, *short_world, f"run.root={tmp_path}", "run.name=cut",
         "run.steps=500", "run.checkpoint_every=0", "learner.ranks=1", f"run.staleness={staleness}"],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )  # fmt: skip
    first = tmp_path / "cut" / "metrics.jsonl"
    steps = 1 + 2 * staleness
    wait_for(lambda: first.exists() and first.read_text().count("\n") >= steps, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    process.send_signal(sent)
    assert process.wait(HANG_S) == 130
    assert ended(workers)
    (snapshot,) = list_snapshots(tmp_path / "cut")
    assert check_snapshot(snapshot) == []
    rows = metrics(tmp_path / "cut")
    assert json.loads((snapshot / "driver.json").read_text())["step"] == len(rows)
    assert [row["staleness"] for row in rows] == [min(step, staleness) for step in range(len(rows))]


def test_samples_can_be_heard_before_and_after(run: Path) -> None:
    samples = read_json_lines(run / "samples.jsonl", TypeAdapter(Sample)).rows
    assert sorted({sample.when for sample in samples}) == ["after", "before"]
    assert all((run / sample.audio).is_file() for sample in samples if sample.audio)


def test_the_synced_engine_speaks_like_a_fresh_one_from_final(run: Path) -> None:
    fresh = asyncio.run(greedy(run))
    samples = read_json_lines(run / "samples.jsonl", TypeAdapter(Sample)).rows
    after = {sample.row_id: sample.text for sample in samples if sample.when == "after"}
    assert fresh == after


async def greedy(run: Path) -> dict[str, str]:
    from rollout.types import Sampling
    from rollout.worker import build_rollout_worker

    config = read_config(run / "config.yaml")
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": run / "final"})})
    worker = build_rollout_worker(config, Path.cwd())
    rows = read_rows(config.data.test, 60.0)
    prompts = [example_to_prompt(e) for e in worker.encode(config.data.test, rows)]
    sampling = Sampling(group_size=1, temperature=0.0, max_new_tokens=config.rollout.max_new_tokens, seed=0)
    actual = {reply.prompt_id: reply.text async for reply, _ in worker.generate(prompts, sampling)}
    worker.close()
    return actual


def test_resume_equals_the_straight_run_bit_for_bit_also_with_two_engines(run: Path, resumed: Path) -> None:
    assert [untimed(row) for row in metrics(resumed)] == [untimed(row) for row in metrics(run)]
    for step in range(1, STEPS + 1):
        ours, theirs = (map(unclocked, records(path, step)) for path in (resumed, run))
        assert list(ours) == list(theirs)
    ours, theirs = (tensors(snapshot_folder(path, STEPS) / "learner") for path in (resumed, run))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours)
    states = [json.loads((snapshot_folder(path, STEPS) / "driver.json").read_text()) for path in (resumed, run)]
    assert states[0] == states[1]
    assert (resumed / "final" / "model.safetensors").read_bytes() == (run / "final" / "model.safetensors").read_bytes()


def tensors(path: Path) -> dict[str, bytes]:
    return {
        f"{file.name}:{name}": value.tobytes()
        for file in sorted(path.glob("*.safetensors"))
        for name, value in load_file(file).items()
    }


def test_diagnoses_are_taken_at_their_steps_and_again_after_a_resume(run: Path, resumed: Path) -> None:
    straight, again = (
        read_json_lines(path / DIAGNOSTICS_FILE, TypeAdapter(DiagnosisRecord)).rows for path in (run, resumed)
    )
    assert [item.step for item in straight] == [1, 2, 4] and straight == again
    assert {(s.mean, s.mean_abs) for s in straight[0].shift.values()} == {(0.0, 0.0)}  # nothing was learnt yet
    assert straight[-1].shift["anchor_text"].mean_abs
    for item, row in zip(straight, (metrics(run)[step - 1] for step in (1, 2, 4)), strict=True):
        assert (row.get("grad/text_audio_ratio"), row["shift/anchor_text"]) == (
            item.model.text_audio_ratio,
            item.shift["anchor_text"].mean,
        )
    assert [bool(row["time/diagnose"]) for row in metrics(run)] == [True, True, False, True]
    assert all("diversity/text" in row for row in metrics(run))


def test_a_resumed_run_holds_no_step_twice(resumed: Path) -> None:
    evaluations = read_json_lines(resumed / "evaluations.jsonl", TypeAdapter(Evaluation)).rows
    assert len({(e.split, e.when, e.step) for e in evaluations}) == len(evaluations) == 4
