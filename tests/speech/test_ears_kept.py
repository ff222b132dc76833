"""What an ear heard is kept, exactly and within bounds: rows that are drawn again are not heard again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conf.schema import ModelConfig
from speech.dataset import RowEncoder
from speech.encoders.step_audio2 import StepAudio2Encoder
from speech.families import load_family
from speech.families.base import Family
from speech.features import AudioVectors
from speech.sound import audio
from tests.helpers.micro_step_audio2 import ENCODER, write_checkpoint, write_codec
from tests.helpers.micro_world import clip, heard_row


class Counting(StepAudio2Encoder):
    """The family's ear; ``heard``: how often."""

    heard = 0

    def encode(self, wave: NDArray[np.float32]) -> AudioVectors:
        self.heard += 1
        return super().encode(wave)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = write_checkpoint(tmp_path_factory.mktemp("step") / "model")
    codec = write_codec(tmp_path_factory.mktemp("codec") / "codec")
    return load_family(ModelConfig(family="step_audio2", path=folder, codec=codec))


@pytest.fixture
def ear(family: Family, monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting(family.path, ENCODER)
    monkeypatch.setitem(vars(family), "_audio_encoder", counting)  # where it is kept once it is made
    return counting


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """a.wav, b.wav, and a copy of a.wav under another name."""
    for name, seed in (("a", 1), ("b", 2)):
        audio.write(tmp_path / f"{name}.wav", clip(0.4, seed), 16_000)
    shutil.copy(tmp_path / "a.wav", tmp_path / "copy.wav")
    return tmp_path


def vectors(encoder: RowEncoder, *clips: str) -> AudioVectors:
    features = encoder.encode(heard_row(*clips)).prompt.features
    assert features is not None
    return features.vectors


def test_a_row_that_is_drawn_again_is_not_heard_again(family: Family, ear: Counting, data: Path) -> None:
    encoder = RowEncoder(family, data, 10.0)
    first, again, copied = (vectors(encoder, name, "b.wav") for name in ("a.wav", "a.wav", "copy.wav"))
    assert ear.heard == 1
    assert np.array_equal(first, again) and np.array_equal(first, copied)


def test_clips_in_another_order_are_heard_anew(family: Family, ear: Counting, data: Path) -> None:
    encoder = RowEncoder(family, data, 10.0)
    first, second = vectors(encoder, "a.wav", "b.wav"), vectors(encoder, "b.wav", "a.wav")
    assert ear.heard == 2 and not np.array_equal(first, second)
    assert np.array_equal(second, vectors(RowEncoder(family, data, 10.0), "b.wav", "a.wav"))


def test_a_clip_that_is_too_long_is_refused_before_it_is_heard(family: Family, ear: Counting, data: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.wav: audio must last at most 0\.3 s"):
        RowEncoder(family, data, 0.3).vectors(("a.wav",))
    assert ear.heard == 0


@pytest.mark.parametrize(("rows_kept", "heard"), [(2, 2), (1, 4), (0, 4)])
def test_vectors_are_kept_within_their_bytes(
    family: Family, ear: Counting, data: Path, monkeypatch: pytest.MonkeyPatch, rows_kept: int, heard: int
) -> None:
    size = vectors(RowEncoder(family, data, 10.0), "a.wav").nbytes
    monkeypatch.setattr("speech.dataset.VECTOR_CACHE_BYTES", rows_kept * size)
    encoder, ear.heard = RowEncoder(family, data, 10.0), 0
    first = [vectors(encoder, name) for name in ("a.wav", "b.wav", "a.wav", "b.wav")]
    assert ear.heard == heard and np.array_equal(first[0], first[2]) and np.array_equal(first[1], first[3])


def test_what_is_kept_cannot_be_written_in(family: Family, ear: Counting, data: Path) -> None:
    kept = RowEncoder(family, data, 10.0).vectors(("a.wav",))
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 1
