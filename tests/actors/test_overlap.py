"""What train and test share is counted, by words and by decoded samples; one file for both is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.checks.overlap import check_held_out
from actors.errors import UserError
from commands.cli import main
from speech.data import manifest, pairs
from speech.data.traces import describe_overlap
from speech.sound import audio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five clips of one sample each row, and the first in two more containers."""
    for i in range(5):
        audio.write(tmp_path / f"{i}.wav", np.tile(np.float32([0, 0.1 + i / 8]), 800), 16_000)
    shutil.copy(tmp_path / "0.wav", tmp_path / "copy.wav")
    audio.write(tmp_path / "copy.flac", audio.read(tmp_path / "0.wav", 16_000, 1.0), 16_000)
    return tmp_path


def row(own: str, question: str, asked: list[str], reply: list[str]) -> dict[str, Any]:
    return {
        "id": own,
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [asked],
        "question_text": question,
        "task_type": "s2s",
        "sft_target_text": "it is noon",
        "sft_target_audio": reply,
    }


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (row("b", "and in Rome", ["1.wav"], ["2.wav"]), ""),
        (row("a", "and in Rome", ["1.wav"], ["2.wav"]), "1 ids, 0 questions, 0 clips"),
        (row("b", "What TIME is it ?!", ["1.wav"], ["2.wav"]), "0 ids, 1 questions, 0 clips"),
        (row("b", "and in Rome", ["copy.wav"], ["2.wav"]), "0 ids, 0 questions, 1 clips"),
        (row("b", "and in Rome", ["copy.flac"], ["2.wav"]), "0 ids, 0 questions, 1 clips"),
        (row("b", "and in Rome", ["1.wav"], ["copy.flac"]), "0 ids, 0 questions, 1 clips"),
        (row("b", "and in Rome", ["0.wav", "1.wav"], ["0.wav", "4.wav"]), ""),
        (row("a", "what time is it", ["0.wav"], ["4.wav"]), "1 ids, 1 questions, 2 clips"),
    ],
)
def test_what_two_files_share_is_counted(folder: Path, other: dict[str, Any], message: str) -> None:
    first = written(
        folder / "a.jsonl",
        row("a", "what time is it", ["0.wav"], ["4.wav"]),
        row("c", "x", ["3.wav"], ["3.wav"]),
    )
    second = written(folder / "b.jsonl", other)
    one, two = (manifest.read_manifest(path, 1.0, deep=True) for path in (first, second))
    assert describe_overlap(one.traces, two.traces) == message == describe_overlap(two.traces, one.traces)
    assert (one.traces.echoes, two.traces.echoes) == (1, 0)


def test_pairs_leave_traces_too(folder: Path) -> None:
    pair = {
        "messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["copy.flac"], "id": "a/b",
        "sft_target_text": "x", "sft_target_audio": "1.wav", "rejected_text": "y", "rejected_audio": "2.wav",
        "question_text": "what time is it?",
    }  # fmt: skip
    ours = written(folder / "a.jsonl", row("a", "what time is it", ["0.wav"], ["2.wav"]))
    theirs = written(folder / "b.jsonl", pair)
    rows_read, two = manifest.read_manifest(ours, 1.0, deep=True), pairs.read_pairs(theirs, 1.0, deep=True)
    assert describe_overlap(rows_read.traces, two.traces) == "0 ids, 1 questions, 2 clips"


def test_data_check_tells_what_its_files_share_and_refuses_one_for_both(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = written(folder / "a.jsonl", row("a", "what time is it", ["0.wav"], ["copy.wav"]))
    second = written(folder / "b.jsonl", row("a", "Why?", ["copy.flac"], ["2.wav"]))
    assert main(["data", "check", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        f"{second}: is not held out from {first}: it shares 1 ids, 0 questions, 1 clips",
        f"{first}: 1 rows have the question's own sound as their reply",
    ]
    (folder / "link.jsonl").symlink_to(first)
    shutil.copy(first, folder / "copied.jsonl")
    for other, got in (
        ("a.jsonl", "must be named once"),
        ("link.jsonl", "the same file"),
        ("copied.jsonl", "a copy of it"),
    ):
        assert main(["data", "check", str(first), str(folder / other)]) == 2
        error = capsys.readouterr().err
        assert got in error and error.count("\n") == 1
    bad = written(folder / "bad.jsonl", {"id": "x"})
    assert main(["data", "check", str(bad), str(first), str(bad.with_name("none.jsonl"))]) == 2
    error = capsys.readouterr().err
    assert f"{bad}:1:messages: key is missing" in error and "none.jsonl: manifest does not exist" in error


def of_run(folder: Path, **files: list[dict[str, Any]]) -> tuple[Any, list[Any]]:
    """Settings and rows of a run's three manifests."""
    paths = {split: written(folder / f"{split}.jsonl", *rows) for split, rows in files.items()}
    read = [manifest.read_manifest(path, 1.0, deep=True) for path in paths.values()]
    return SimpleNamespace(**paths, pairs=None), read


def test_a_run_is_told_what_is_not_held_out(folder: Path) -> None:
    train = [row("a", "what time is it", ["0.wav"], ["4.wav"]), row("b", "x", ["3.wav"], ["3.wav"])]
    held = {
        "validation": [row("c", "y", ["1.wav"], ["2.wav"])],
        "test": [row("a", "z", ["copy.flac"], ["2.wav"])],
    }
    assert check_held_out(*of_run(folder, train=train, **held), ()) == [
        "data.train: 1 rows have the question's own sound as their reply",
        "data.test: is not held out from data.train: it shares 1 ids, 0 questions, 1 clips",
    ]
    for split in held:
        with pytest.raises(UserError, match=f"data.{split}: must hold other rows than data.train, or nothing is"):
            check_held_out(*of_run(folder, **({"train": train} | held | {split: train})), ())
    assert (
        check_held_out(*of_run(folder, train=train[:1], validation=held["validation"], test=held["validation"]), ())
        == []
    )
