"""The judge benches: their parts at a small size, so that a change of what they measure is noticed here."""

import asyncio
from pathlib import Path

import pytest

from bench.__main__ import PROGRAMS
from bench.judge_throughput import instant, profile
from bench.judge_trouble import DOWN_AFTER, Run, Switch, lambdas, same_replies
from conf.load import dump_config, load_config
from judge.llm.build import probe_endpoints
from report.records import RolloutRecord, ScoreRecord

ROOT = Path(__file__).parents[2]


def test_the_bench_runs_only_programs_that_are_there() -> None:
    files = (ROOT / "bench").glob("[a-z]*.py")
    there = {file.stem for file in files if '__name__ == "__main__"' in file.read_text()}
    assert there - {"study_tasks"} == set(PROGRAMS)  # that one reads a study that was run before


def test_the_instant_server_is_a_judge_and_every_verdict_of_it_is_paid_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with instant() as (_, url):
        config = load_config(
            [
                "judge=openai",
                "judge.semantic_by=local",
                f"judge.api.base_url={url}",
                "judge.api.model=instant",
                f"judge.api.cache={tmp_path / 'verdicts.sqlite'}",
            ]
        )
        endpoints = asyncio.run(probe_endpoints(config.judge))
        assert endpoints.judge.mode == "logprobs" and endpoints.judge.audio
        profile(config, endpoints, 20, tmp_path / "profile")
    calls = (tmp_path / "profile.calls").read_text().splitlines()
    assert "20 in " in capsys.readouterr().out and len(calls) == 20
    assert (tmp_path / "profile").stat().st_size


def record(group: int, index: int, reward: float, judge: str) -> RolloutRecord:
    return RolloutRecord(
        step=1, prompt_id=f"p{group}", group=group, index=index, policy_version=0, question="", expected=None,
        style=None, ids=[], channels="", text="", transcript="", finish="stop", audio=None,
        scores={"semantic": ScoreRecord(value=reward, judge=judge)}, reward=reward, missing=None, advantage=None,
        weights=None, behaviour_logps=[], learner_logps=None, dropped=None,
    )  # fmt: skip


def run_of(path: Path, judge: str) -> Run:
    """One step of forty groups of four; half of each group is as good as can be, half worthless."""
    (path / "rollouts").mkdir(parents=True)
    (path / "config.yaml").write_text(dump_config(load_config(["run.steps=1"])))
    rows = [record(group, i, 5.0 if i % 2 else 1.0, judge) for group in range(40) for i in range(4)]
    lines = "\n".join(row.model_dump_json() for row in rows)
    (path / "rollouts" / "step_000001.jsonl").write_text(lines + "\n")
    return Run(path)


def test_lambda_follows_from_the_records_and_failures_hide_replies_of_the_endpoint_only(
    tmp_path: Path,
) -> None:
    asked, floored = (
        run_of(tmp_path / "asked", "openai(m semantic/1 tagged)"),
        run_of(tmp_path / "l", "floor/1"),
    )
    (whole,) = lambdas(asked, lambda record: False)
    assert whole == pytest.approx(0.8, abs=1e-3)
    assert same_replies(asked, 0.0) == [whole] * len(same_replies(asked, 0.0))
    assert all(0.5 < mean < 0.99 * whole for mean in same_replies(asked, 0.2))
    assert set(same_replies(floored, 0.2)) == {whole}
    (half,) = lambdas(asked, lambda record: record.index % 2 == 0)
    assert half == 0.0, "replies that are all alike open no gate"


def test_the_switch_takes_the_judge_down_once_after_its_step(tmp_path: Path) -> None:
    switch = Switch(tmp_path / "down", seconds=0.0)
    metrics = tmp_path / "metrics.jsonl"
    switch.watch(tmp_path)
    for step in range(1, DOWN_AFTER + 1):
        assert not switch.down.exists()
        metrics.write_text("{}\n" * step)
        switch.watch(tmp_path)
    assert switch.down.exists() and len(switch.finished) == DOWN_AFTER
    switch.watch(tmp_path)
    assert not switch.down.exists() and switch.began is not None and switch.ended is not None
    switch.watch(tmp_path)
    assert not switch.down.exists()
