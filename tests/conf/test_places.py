"""Paths in config.yaml: as they are, unless they lie in a Ray job's folder, which is gone when they are read."""

from pathlib import Path

import pytest

from conf.load import PROJECT_ROOT, ConfigError, dump_config, load_config, read_config
from conf.places import make_paths_portable


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked folder of a Ray job, in which the command runs; the user's data travelled with it."""
    folder = tmp_path / "session_2026/runtime_resources/working_dir_files/_ray_pkg_0"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine/train.jsonl").touch()
    monkeypatch.chdir(folder)
    return folder


def written(tmp_path: Path, job: Path) -> Path:
    """The directory of a run of this job; one path lies in its copy of the project, one beside it."""
    config = load_config([f"run.root={tmp_path}/runs", "run.name=r", "data.train=mine/train.jsonl"])
    copied = {"path": job / "examples/tiny_world/base"}
    config = config.model_copy(update={"model": config.model.model_copy(update=copied)})
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    return run


def test_no_path_of_a_jobs_folder_is_written(tmp_path: Path, job: Path) -> None:
    text = (written(tmp_path, job) / "config.yaml").read_text()
    assert "runtime_resources" not in text
    assert "path: examples/tiny_world/base" in text and "train: mine/train.jsonl" in text
    assert f"root: {tmp_path}/runs" in text, "what a run writes stays where it is"


def test_what_travelled_with_a_job_is_found_again_from_the_folder_that_was_sent(
    tmp_path: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sent = written(tmp_path, job), tmp_path / "sent"
    (sent / "mine").mkdir(parents=True)
    (sent / "mine/train.jsonl").touch()
    monkeypatch.chdir(sent)
    for config in (read_config(run / "config.yaml"), load_config([f"resume={run}"])):
        assert config.model.path == PROJECT_ROOT / "examples/tiny_world/base"
        assert config.data.train == sent / "mine/train.jsonl"


def test_runs_of_older_versions_whose_paths_are_gone_are_found_too(tmp_path: Path) -> None:
    config, gone = (
        dump_config(load_config(["run.name=r"])),
        "/tmp/ray/s/runtime_resources/working_dir_files/_ray_pkg_1",
    )
    old = config.replace(f"{PROJECT_ROOT}/examples", f"{gone}/examples")
    assert old != config
    (tmp_path / "config.yaml").write_text(old)
    assert read_config(tmp_path / "config.yaml").data.train == PROJECT_ROOT / "examples/tiny_world/data/train.jsonl"


def test_elsewhere_every_path_is_written_as_it_is() -> None:
    config = load_config(["run.name=r", "data.train=/somewhere/train.jsonl"])
    assert make_paths_portable(config) == config


@pytest.mark.parametrize("key", ["run.root", "judge.api.cache", "judge.second.cache"])
@pytest.mark.parametrize("inside", ["kept", "{job}/kept"], ids=["relative", "absolute"])
def test_nothing_that_a_job_writes_may_lie_in_its_folder(key: str, inside: str, tmp_path: Path, job: Path) -> None:
    with pytest.raises(ConfigError, match=f"conf: {key}: must be absolute in a Ray job, whose own folder is"):
        load_config([f"run.root={tmp_path}", f"{key}={inside.format(job=job)}"])
