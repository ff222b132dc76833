"""Kimi-Audio: what a row's clips become, codes and the vectors that join them."""

from pathlib import Path

import numpy as np
import pytest

from conf.schema import ModelConfig
from speech import audio
from speech.dataset import Encoder
from speech.families import load_family
from speech.families.base import Family
from speech.manifest import Row
from tests.families.kimi_audio import write_checkpoint, write_codec
from tests.families.world import clip

SECONDS = 10.0


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("kimi")
    path, codec = write_checkpoint(root / "model"), write_codec(root / "codec")
    return load_family(ModelConfig(family="kimi_audio", path=path, codec=codec))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for i in range(3):
        audio.write(folder / f"{i}.wav", clip(0.33, i), 16_000)
    return folder


def row(*clips: str) -> Row:
    content = {
        "id": "row-1",
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [list(clips)],
        "question_text": "what is two",
        "task_type": "say",
        "sft_target_text": "two",
        "sft_target_audio": ["0.wav"],
    }
    return Row.model_validate(content)


def test_vectors_that_are_not_finite_are_refused_with_row_and_clip(
    family: Family, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = family.ear().hear

    def broken(wave: audio.Wave) -> np.ndarray:
        vectors = hear(wave)
        vectors[1, 3] = np.nan
        return vectors

    monkeypatch.setattr(family.ear(), "hear", broken)
    with pytest.raises(ValueError, match=r"^row row-1: 1\.wav: the ear's vectors must be finite: got NaN"):
        Encoder(family, data, SECONDS).encode(row("1.wav"))
