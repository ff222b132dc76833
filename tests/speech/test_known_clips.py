"""What is remembered of clips has a bound: the oldest goes, and is looked up again when it is needed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from conf.schema import ModelConfig
from speech import dataset
from speech.codecs.base import Wave
from speech.codecs.mel import MelCodec
from speech.data import clips
from speech.data.clips import ClipInspector
from speech.data.manifest import ManifestRow
from speech.dataset import RowEncoder, RowLengths
from speech.families import load_family
from speech.families.base import Family
from speech.sound import audio
from tests.helpers.micro_world import clip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three clips, of which two can be remembered."""
    monkeypatch.setenv("WAVGATE_CACHE", "off")
    for module in (clips, dataset):
        monkeypatch.setattr(module, "MAX_KNOWN_CLIPS", 2)
    for name in "abc":
        audio.write(tmp_path / f"{name}.wav", clip(0.3, ord(name)), 16_000)
    return tmp_path


@pytest.fixture
def family(micro_checkpoint: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=micro_checkpoint))


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[object]:
    """What the function is called with from now on."""
    calls: list[object] = []
    function = getattr(owner, name)

    def call(*given: Any) -> Any:
        calls.append(given[0])
        return function(*given)

    monkeypatch.setattr(owner, name, call)
    return calls


def row(name: str) -> ManifestRow:
    content = {
        "id": name,
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [[f"{name}.wav"]],
        "question_text": "what",
        "task_type": "arithmetic",
        "sft_target_text": "two",
        "sft_target_audio": [f"{name}.wav"],
    }
    return ManifestRow.model_validate(content)


def test_an_encoder_knows_the_last_clips(family: Family, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Wave] = counted(monkeypatch, MelCodec, "encode")  # type: ignore[assignment]
    encoder = RowEncoder(family, data, 60.0)
    hashed = counted(monkeypatch, hashlib, "file_digest")
    first = [encoder.encode(row(name)) for name in "abc"]
    assert (len(encoded), len(hashed)) == (3, 3)
    assert [encoder.encode(row(name)) for name in "cb"] == first[:0:-1]
    assert (len(encoded), len(hashed)) == (3, 3)
    assert encoder.encode(row("a")) == first[0]
    assert (len(encoded), len(hashed)) == (4, 4)


def test_headers_are_read_again_when_they_are_forgotten_one_by_one(
    family: Family, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted(monkeypatch, audio, "read_audio_header")
    lengths, inspector = RowLengths(family, data), ClipInspector(data, 60.0, deep=False)
    for name in "abcbc":
        lengths.count_ids(row(name))
    assert len(read) == 3
    for name in "abcbc":
        assert not list(inspector.find_problems([("audios[0]", f"{name}.wav")]))
    assert len(read) == 6
