"""Kimi-Audio: what a row's clips become, codes and the vectors that join them."""

from pathlib import Path

import numpy as np
import pytest

from conf.schema import ModelConfig
from speech.dataset import RowEncoder, RowLengths
from speech.families import load_family
from speech.families.base import Family
from speech.sound import audio
from tests.helpers.micro_kimi_audio import BASE, OFFSET, write_checkpoint, write_codec
from tests.helpers.micro_world import clip, heard_row

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


def test_clips_of_one_entry_are_laid_out_as_messages_that_follow_each_other(family: Family, data: Path) -> None:
    """kimia_infer/api/prompt_manager.py: role once; begin, codes and end of each; ctd and over at the end."""
    blank, user, assistant, begin, end, ctd, over = (BASE + place for place in (23, 27, 28, 18, 20, 33, 2))
    waves = [audio.read(data / f"{i}.wav", 16_000, SECONDS) for i in range(3)]
    codes = [[OFFSET + code for code in family.codec().encode(wave)] for wave in waves]
    prompt = RowEncoder(family, data, SECONDS).encode(heard_row("0.wav", "1.wav", "2.wav")).prompt
    said = [token for item in codes for token in (begin, *item, end)]
    assert list(prompt.ids[1::2]) == [user, *said, ctd, over, assistant]
    assert set(prompt.ids[0::2]) == {blank}


def test_the_vectors_of_a_clip_lie_on_its_own_codes(family: Family, data: Path) -> None:
    waves = [audio.read(data / f"{i}.wav", 16_000, SECONDS) for i in range(3)]
    kept = [len(family.codec().encode(wave)) for wave in waves]
    prompt = RowEncoder(family, data, SECONDS).encode(heard_row("0.wav", "1.wav", "2.wav")).prompt
    assert prompt.features is not None
    coded = [step for step, token in enumerate(prompt.ids[1::2]) if token >= OFFSET]
    assert list(prompt.features.steps) == coded and len(coded) == sum(kept)
    alone = np.concatenate([family.audio_encoder().encode(wave) for wave in waves])
    assert np.array_equal(prompt.features.vectors, alone)


def test_lengths_of_several_clips_are_known_beforehand(family: Family, data: Path) -> None:
    several = heard_row("2.wav", "0.wav", "2.wav")
    example = RowEncoder(family, data, SECONDS).encode(several)
    assert RowLengths(family, data).count_ids(several) == (len(example.prompt.ids), len(example.target.ids))


def test_vectors_that_are_not_finite_are_refused_with_row_and_clip(
    family: Family, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = family.audio_encoder().encode

    def broken(wave: audio.Wave) -> np.ndarray:
        vectors = hear(wave)
        vectors[1, 3] = np.nan
        return vectors

    monkeypatch.setattr(family.audio_encoder(), "encode", broken)
    with pytest.raises(ValueError, match=r"^row row-1: 1\.wav: the audio encoder's vectors must be finite: got NaN"):
        RowEncoder(family, data, SECONDS).encode(heard_row("1.wav"))
