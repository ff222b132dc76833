"""Whisper from a folder: deterministic, at 16 kHz whatever comes in, silent in silence, safetensors alone."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conf.judging import AsrConfig
from judge.recognisers.choose import build_recogniser
from judge.recognisers.whisper import (
    CPU_MODEL_OPTIONS,
    WHISPER_SAMPLE_RATE,
    FasterWhisperRecogniser,
    WhisperRecogniser,
    split_speech_windows,
)
from speech.sound.audio import resample
from tests.helpers.whisper_checkpoint import write_micro_whisper

RANDOM = np.random.default_rng(0)
NOISE, OTHER = (RANDOM.normal(0, 0.1, WHISPER_SAMPLE_RATE).astype(np.float32) for _ in range(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def whisper(folder: Path) -> WhisperRecogniser:
    return WhisperRecogniser(folder, "en")


def test_the_same_wave_gives_the_same_words_whatever_was_heard_before(
    whisper: WhisperRecogniser, folder: Path
) -> None:
    said = whisper.transcribe(NOISE, WHISPER_SAMPLE_RATE)
    other = whisper.transcribe(OTHER, WHISPER_SAMPLE_RATE)
    assert said and set(said) <= set("abcdefghijklmnopqrstuvwxyz ") and said != other
    assert whisper.transcribe(NOISE, WHISPER_SAMPLE_RATE) == said
    assert WhisperRecogniser(folder, "en").transcribe(NOISE, WHISPER_SAMPLE_RATE) == said


def test_another_sample_rate_is_resampled_to_16_khz(whisper: WhisperRecogniser) -> None:
    high = resample(NOISE, WHISPER_SAMPLE_RATE, 24_000)
    assert whisper.transcribe(high, 24_000) == whisper.transcribe(resample(high, 24_000, 16_000), 16_000)
    assert whisper.transcribe(high, 24_000) != whisper.transcribe(high, 16_000)
    with pytest.raises(ValueError, match="positive, got 0"):
        whisper.transcribe(NOISE, 0)


def test_silence_and_nothing_are_no_words(whisper: WhisperRecogniser) -> None:
    for samples in (0, 100, 8000):
        assert whisper.transcribe(np.zeros(samples, np.float32), WHISPER_SAMPLE_RATE) == ""


def test_more_than_thirty_seconds_are_heard_window_by_window(whisper: WhisperRecogniser) -> None:
    quiet = np.zeros(WHISPER_SAMPLE_RATE // 2, np.float32)
    first = np.concatenate([np.tile(NOISE, 27), quiet])
    both = whisper.transcribe(np.concatenate([first, np.tile(OTHER, 10)]), WHISPER_SAMPLE_RATE)
    assert both.startswith(whisper.transcribe(first[: -len(quiet) // 2], WHISPER_SAMPLE_RATE)[:8])
    assert len(both.split()) >= 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 100), st.integers(0, 2**31))
def test_windows_are_the_wave_cut_into_at_most_thirty_seconds(seconds: int, seed: int) -> None:
    wave = np.random.default_rng(seed).normal(0, 0.1, seconds * WHISPER_SAMPLE_RATE + seed % 999).astype(np.float32)
    parts = list(split_speech_windows(wave, WHISPER_SAMPLE_RATE))
    assert all(len(part) <= 30 * WHISPER_SAMPLE_RATE for part in parts)
    assert all(len(part) >= 25 * WHISPER_SAMPLE_RATE for part in parts[:-1])
    assert np.array_equal(np.concatenate([*parts, wave[:0]]), wave)


def test_a_window_ends_where_it_is_quiet_and_one_without_speech_is_left_out() -> None:
    gap = slice(round(28.0 * WHISPER_SAMPLE_RATE), round(28.3 * WHISPER_SAMPLE_RATE))
    wave = np.tile(NOISE, 40)
    wave[gap] = 0
    first, second = split_speech_windows(wave, WHISPER_SAMPLE_RATE)
    assert gap.start <= len(first) <= gap.stop
    assert len(first) + len(second) == len(wave)
    wave[30 * WHISPER_SAMPLE_RATE :] = 0
    wave[gap.start : 30 * WHISPER_SAMPLE_RATE] = 0
    assert len(list(split_speech_windows(wave, WHISPER_SAMPLE_RATE))) == 1


def test_weights_in_any_other_format_are_refused(folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold model\.safetensors"):
        WhisperRecogniser(pickled, "en")
    torch.save({}, pickled / "model.safetensors")
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        WhisperRecogniser(pickled, "en")


def test_a_folder_that_is_no_whole_whisper_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold"):
        WhisperRecogniser(tmp_path, "en")
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    weights = load_file(torn / "model.safetensors")
    weights.pop("model.encoder.conv1.weight")
    save_file(weights, torn / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"must have all weights: lacks model\.encoder\.conv1\.weight"):
        WhisperRecogniser(torn, "en")
    (torn / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="must be a Whisper checkpoint"):
        WhisperRecogniser(torn, "en")


def test_an_english_checkpoint_is_not_told_a_language(folder: Path, tmp_path: Path) -> None:
    english = tmp_path / "english"
    shutil.copytree(folder, english)
    config = json.loads((english / "generation_config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.endswith("_to_id")}
    (english / "generation_config.json").write_text(json.dumps(kept | {"is_multilingual": False}))
    assert WhisperRecogniser(english, "en").transcribe(NOISE, WHISPER_SAMPLE_RATE)


def test_the_settings_lead_to_whisper(folder: Path, whisper: WhisperRecogniser) -> None:
    listener = build_recogniser(AsrConfig(by="whisper", path=Path(folder.name)), folder.parent)
    assert listener.transcribe(NOISE, WHISPER_SAMPLE_RATE) == whisper.transcribe(NOISE, WHISPER_SAMPLE_RATE)


# --- faster-whisper: the real one where it is installed, else one that shows how it is called


def converted(folder: Path, path: Path) -> Path:
    path.mkdir()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (path / name).write_text("{}")
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A faster_whisper that says the length of what it hears in two segments."""
    calls: list[dict[str, Any]] = []

    class Model:
        def __init__(self, path: str, **options: Any) -> None:
            calls.append({"path": path} | options)

        def transcribe(self, wave: np.ndarray, **options: Any) -> tuple[Iterator[Any], None]:
            calls.append(options)
            said = [" samples", f" {len(wave)}."]
            return iter([SimpleNamespace(text=text) for text in said]), None

    module = ModuleType("faster_whisper")
    module.WhisperModel = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faster_whisper", module)
    yield calls


def test_faster_whisper_is_asked_greedily_at_16_khz_and_downloads_nothing(
    fake: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = converted(tmp_path, tmp_path / "ct2")
    listener = build_recogniser(AsrConfig(by="faster_whisper", path=path, language="fr"), tmp_path)
    assert listener.transcribe(resample(NOISE, 16_000, 48_000), 48_000) == "samples 16000."
    assert listener.transcribe(np.zeros(8000, np.float32), WHISPER_SAMPLE_RATE) == ""
    made, asked = fake
    assert made == {"path": str(path), "local_files_only": True, **CPU_MODEL_OPTIONS}
    assert (asked["language"], asked["beam_size"], asked["temperature"]) == ("fr", 1, 0.0)


@pytest.mark.parametrize("name", ["model.bin", "config.json", "tokenizer.json"])
def test_a_ctranslate2_folder_must_be_whole(fake: list[dict[str, Any]], tmp_path: Path, name: str) -> None:
    path = converted(tmp_path, tmp_path / "ct2")
    (path / name).unlink()
    with pytest.raises(ValueError, match=f"must hold {name}"):
        FasterWhisperRecogniser(path, "en")
    assert fake == []


def test_without_faster_whisper_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(ValueError, match=r"needs the package faster-whisper: .*pip install faster-whisper "):
        FasterWhisperRecogniser(tmp_path, "en")


def test_the_real_faster_whisper_hears_a_converted_checkpoint(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    from ctranslate2.converters import TransformersConverter

    path = tmp_path / "ct2"
    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(folder), copy_files=files).convert(str(path))
    listener = FasterWhisperRecogniser(path, "en")
    said = listener.transcribe(NOISE, WHISPER_SAMPLE_RATE)
    assert said and listener.transcribe(OTHER, WHISPER_SAMPLE_RATE) != said
    assert FasterWhisperRecogniser(path, "en").transcribe(NOISE, WHISPER_SAMPLE_RATE) == said
    assert listener.transcribe(np.zeros(8000, np.float32), WHISPER_SAMPLE_RATE) == ""
    (path / "model.bin").write_bytes(b"\x80\x05}.")
    with pytest.raises(ValueError, match="must be a CTranslate2 checkpoint"):
        FasterWhisperRecogniser(path, "en")
