"""One real run whose judge wants a key: the key is used, and it is nowhere that a run leaves behind."""

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import psutil
import pytest

from examples.judge_server.service import MODEL
from examples.judge_server.started import started
from report.read import read_rollouts
from report.records import ScoreRecord
from tests.helpers.processes import HANG_S, wait_for

ROOT = Path(__file__).parents[2]
NAME, SECRET = "WAVGATE_TEST_JUDGE_KEY", "sk-canary-7f3a91c2e5d84b06"
SHAPES = (SECRET.encode(), b64encode(SECRET.encode()), SECRET.encode().hex().encode())


def training(settings: list[str], out: IO[bytes]) -> "subprocess.Popen[bytes]":
    """A run that has the key."""
    return subprocess.Popen(
        [sys.executable, "-m", "actors.driver", *settings],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", NAME: SECRET},
        stdout=out,
        stderr=subprocess.STDOUT,
    )


def holds_something(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def holding(folder: Path, *wanted: bytes) -> list[Path]:
    """Files below a folder that hold one of these; what vanishes meanwhile holds nothing."""
    collected = []
    for file in sorted(folder.rglob("*")):
        try:
            content = file.read_bytes() if file.is_file() else b""
        except OSError:
            continue
        if any(item in content for item in wanted):
            collected.append(file.relative_to(folder))
    return collected


def session_folders(processes: Iterable[psutil.Process]) -> set[Path]:
    """Of the Ray that these belong to: one, and those of starts that were given up, on a busy machine."""
    words = [word for process in processes for word in process.cmdline()]
    return {Path(word.partition("=")[2]) for word in words if word.startswith(("--session-dir=", "--session_dir="))}


def test_the_key_of_the_judge_is_used_and_in_no_file_no_log_and_no_command_line(
    short_world: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs, said = tmp_path / "runs", tmp_path / "said"
    runs.mkdir()
    with (
        said.open("wb") as out,
        started("--key-env", NAME, **{NAME: SECRET, "OMP_NUM_THREADS": "1"}) as url,
    ):
        settings = [
            "experiment=smoke",
            "judge=openai",
            f"judge.api.base_url={url}",
            f"judge.api.model={MODEL}",
        ]
        settings += [f"judge.api.key_env={NAME}", f"judge.api.cache={runs / 'verdicts.sqlite'}"]
        settings += short_world
        settings += [f"run.root={runs}", "run.name=keyed", "run.steps=2", "run.checkpoint_every=1"]
        settings += ["learner.ranks=1", "log=tensorboard", "log.audio_every=1"]
        process = training(settings, out)
        wait_for(lambda: holds_something(runs / "keyed" / "metrics.jsonl"), process)
        everybody = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
        commands = " ".join(word for item in everybody for word in item.cmdline())
        sessions = session_folders(everybody)
        assert any(holding(session, b"raylet") for session in sessions), "Ray's session is looked at"
        assert [holding(session, *SHAPES) for session in sessions] == [[]] * len(sessions)
        assert process.wait(HANG_S) == 0, said.read_text()
    assert "actors.driver" in commands and SECRET not in commands
    run = runs / "keyed"
    scores = [
        score
        for record in read_rollouts(run / "rollouts" / "step_000002.jsonl").rows
        for score in record.scores.values()
    ]
    assert any(isinstance(score, ScoreRecord) and score.judge.startswith(f"openai({MODEL} ") for score in scores)
    calls = [json.loads(line) for line in (run / "judge_calls.jsonl").read_text().splitlines()]
    assert calls and all(call["kind"] is None for call in calls)
    for kept in (
        "tensorboard",
        "checkpoints/step_000002",
        "final",
        "infra",
        "report.html",
        "../verdicts.sqlite",
    ):
        assert (run / kept).exists(), kept
    assert {Path("keyed/config.yaml"), Path("keyed/judge_calls.jsonl")} <= set(holding(runs, MODEL.encode()))
    assert Path("keyed/config.yaml") in holding(runs, NAME.encode()), "its name may be told, and is"
    assert holding(tmp_path, *SHAPES) == []
    assert SECRET not in capfd.readouterr().err, "the server's, too"
