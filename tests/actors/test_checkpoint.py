"""Snapshots are whole or not there: every kind of damage is named, nothing is changed by a refusal."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.errors import LearnerFailed, RunError, UserError
from actors.fleet import LearnerGroup
from actors.launch import report_unfinished_run
from actors.run import checkpoint
from actors.run.checkpoint import DriverState
from commands.cli import main


def state(step: int) -> DriverState:
    return DriverState(
        step=step,
        seed=0,
        gate={"lambda": 0.25},
        cursors={"prompts": {"drawn": 4 * step}, "anchors": {"drawn": 0}},
    )


def write_shard(folder: Path) -> None:
    (folder / "shard-1.safetensors").write_bytes(os.urandom(1000))


def saved(run: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        checkpoint.save_snapshot(run, state(step), write_shard, keep)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    folder, actual, problems = checkpoint.find_newest_snapshot(tmp_path)
    assert (folder.name, actual, problems) == ("step_000002", state(2), [])
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step_000002"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, keep=2)
    assert [path.name for path in checkpoint.list_snapshots(tmp_path)] == ["step_000002", "step_000003"]


def truncate(snapshot: Path) -> None:
    shard = snapshot / "learner" / "shard-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def flip(snapshot: Path) -> None:
    shard = snapshot / "learner" / "shard-1.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(bytes([content[0] ^ 1]) + content[1:])


DAMAGE = {
    "missing": lambda snapshot: (snapshot / "learner" / "shard-1.safetensors").unlink(),
    "must have 1000 bytes, has 999": truncate,
    "content differs": flip,
    "manifest.json: missing": lambda snapshot: (snapshot / "manifest.json").unlink(),
    "Invalid JSON": lambda snapshot: (snapshot / "manifest.json").write_text("{"),
    "format Input should be": lambda snapshot: (snapshot / "manifest.json").write_text(
        json.dumps({"format": "other"})
    ),
    "driver.json: must have": lambda snapshot: (snapshot / "driver.json").write_text("{}"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_the_older_snapshot_is_taken(tmp_path: Path, name: str) -> None:
    saved(tmp_path, 1, 2)
    DAMAGE[name](checkpoint.snapshot_folder(tmp_path, 2))
    before = tree(tmp_path)
    folder, _, problems = checkpoint.find_newest_snapshot(tmp_path)
    assert folder.name == "step_000001"
    assert any(name in problem and "step_000002" in problem for problem in problems), problems
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_of_the_only_snapshot_is_refused_and_changes_nothing(tmp_path: Path, name: str) -> None:
    saved(tmp_path, 1)
    DAMAGE[name](checkpoint.snapshot_folder(tmp_path, 1))
    before = tree(tmp_path)
    with pytest.raises(UserError, match=name):
        checkpoint.find_newest_snapshot(tmp_path)
    assert tree(tmp_path) == before


def test_no_run_and_no_checkpoint_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run directory"):
        checkpoint.find_newest_snapshot(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.find_newest_snapshot(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from actors.run import checkpoint
from tests.actors.test_checkpoint import state

def half(folder):
    (folder / "shard-1.safetensors").write_bytes(b"x" * 500)
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_snapshot(Path(sys.argv[1]), state(2), half, 2)
"""


def test_a_kill_during_a_save_leaves_the_older_snapshot_and_a_rest_that_is_cleaned(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoints" / "step_000002.tmp").is_dir()
    assert checkpoint.find_newest_snapshot(tmp_path)[1] == state(1)
    checkpoint.remove_unfinished_snapshots(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step_000001"]


def test_a_resume_whose_run_went_on_since_it_was_looked_at_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    actual, _, _ = checkpoint.find_newest_snapshot(tmp_path)
    checkpoint.check_still_newest(actual)
    saved(tmp_path, 2)
    damaged = checkpoint.snapshot_folder(tmp_path, 2)
    with pytest.raises(UserError, match="has changed since it was looked at: start this command again"):
        checkpoint.check_still_newest(actual)
    truncate(damaged)
    checkpoint.check_still_newest(actual)  # a damaged one was skipped before, too


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before_and_nothing_of_the_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)
    before = tree(tmp_path)

    def full(folder: Path) -> None:
        write_shard(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match=r"step_000002\.tmp: .* before is whole: No space left on device$"):
        checkpoint.save_snapshot(tmp_path, state(2), full, 1)
    assert tree(tmp_path) == before and checkpoint.check_snapshot(checkpoint.snapshot_folder(tmp_path, 1)) == []

    def train(arguments: list[str]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # wherever else a run writes

    monkeypatch.setattr("actors.train.run_train_command", train)
    assert main(["train"]) == 1
    assert capsys.readouterr().err.startswith("stopped: a file: No space left on device: make room")


def test_only_a_run_that_has_a_checkpoint_is_told_to_go_on_from_it(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match=r"cannot be written: No space left on device$"):
        checkpoint.save_snapshot(tmp_path, state(1), full, 1)
    assert report_unfinished_run(tmp_path).endswith("\nthere is no checkpoint to go on from: start again")
    saved(tmp_path, 1)
    assert report_unfinished_run(tmp_path).endswith(f"\ngo on with: wavgate train resume={tmp_path}")


def test_a_learner_that_fails_says_why_and_leaves_it_to_the_run_how_to_go_on() -> None:
    class FullDisk:
        async def remote(self, folder: Path) -> None:
            raise TimeoutError

    ranks = LearnerGroup(timeout=1.0, count=1, create=lambda rank: None, source="", restarts=0, journal=None)
    ranks.handles = [SimpleNamespace(save=FullDisk())]
    with pytest.raises(LearnerFailed, match=r"^learner save: no answer in time$"):
        asyncio.run(ranks.save(Path()))
