"""Codes are kept between runs: a clip is encoded once per codec, and only whole, plausible entries are believed."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conf.schema import ModelConfig
from speech.codecs.base import Wave
from speech.codecs.cache import cache_root
from speech.codecs.mel import MelCodec
from speech.data.manifest import ManifestRow
from speech.dataset import RowEncoder
from speech.families import load_family
from speech.families.base import Family
from speech.sound import audio
from tests.helpers.processes import HANG_S

ROOT = Path(__file__).parents[2]


class Counting(MelCodec):
    """A mel codec that counts what it encodes."""

    encoded = 0

    def encode(self, wave: Wave) -> list[int]:
        self.encoded += 1
        return super().encode(wave)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WAVGATE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two clips, and a row that names them."""
    folder = tmp_path / "data"
    folder.mkdir()
    for n in range(2):
        tone = np.sin(np.arange(4000) * (0.1 + 0.1 * n)) / 4
        audio.write(folder / f"{n}.wav", tone.astype(np.float32), 16_000)
    return folder


ROW = ManifestRow.model_validate(
    {
        "id": "row",
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [["0.wav"]],
        "question_text": "what",
        "task_type": "arithmetic",
        "sft_target_text": "two",
        "sft_target_audio": ["1.wav"],
    }
)


@pytest.fixture
def run(micro_checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, object]]:
    """One run's encoding of the row: (clips encoded, the example)."""

    def once(codec: Path = micro_checkpoint / "codec.safetensors") -> tuple[int, object]:
        family: Family = load_family(ModelConfig(family="tiny", path=micro_checkpoint))
        counting = Counting.load(codec)
        monkeypatch.setitem(vars(family), "_codec", counting)  # where it is kept once it is made
        example = RowEncoder(family, data, 60.0).encode(ROW)
        return counting.encoded, example

    return once


def entries(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_second_run_encodes_nothing_and_has_the_same_ids(run, root: Path) -> None:  # type: ignore[no-untyped-def]
    first, example = run()
    assert first == 2
    assert run() == (0, example)
    assert len(entries(root)) == 2


def test_another_codec_finds_nothing(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run()
    noise = [np.random.default_rng(1).normal(0, 0.1, 1280 * 64).astype(np.float32)]
    MelCodec.fit(noise, size=32, seed=1, rounds=1).save(tmp_path / "other.safetensors")
    assert run(tmp_path / "other.safetensors")[0] == 2


def body(codes: list[int]) -> bytes:
    """An entry that says so of itself."""
    content = np.array(codes, "<i4").tobytes()
    return hashlib.sha256(content).digest() + content


DAMAGE = {
    "empty": lambda whole: b"",
    "cut short": lambda whole: whole[:-4],
    "cut in its hash": lambda whole: whole[:20],
    "one bit changed": lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    "out of range": lambda whole: body([1, 32]),
    "negative": lambda whole: body([-1]),
    "not whole numbers": lambda whole: hashlib.sha256(b"abc").digest() + b"abc",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_encoded_again_and_replaced(run, root: Path, damage) -> None:  # type: ignore[no-untyped-def]
    _, example = run()
    file = entries(root)[0]
    file.write_bytes(damage(file.read_bytes()))
    assert run() == (1, example)
    assert run() == (0, example)


def test_a_clip_that_is_too_long_is_refused_also_when_its_codes_are_kept(
    run,  # type: ignore[no-untyped-def]
    micro_checkpoint: Path,
    data: Path,
) -> None:
    run()
    with pytest.raises(ValueError, match=r"row row: .*at most 0\.1 s"):
        RowEncoder(load_family(ModelConfig(family="tiny", path=micro_checkpoint)), data, 0.1).encode(ROW)


def test_a_folder_that_cannot_be_written_is_told_once_and_ends_nothing(run, root: Path) -> None:  # type: ignore[no-untyped-def]
    root.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="codes are not kept") as warned:
        assert run()[0] == 2
    assert len(warned) == 1


def test_off_keeps_nothing(run, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("WAVGATE_CACHE", "off")
    run()
    assert run()[0] == 2
    assert not root.exists()


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ({"XDG_CACHE_HOME": "/x", "WAVGATE_CACHE": ""}, Path("/x/wavgate")),
        ({"XDG_CACHE_HOME": "", "WAVGATE_CACHE": ""}, Path.home() / ".cache/wavgate"),
        ({"XDG_CACHE_HOME": "/x", "WAVGATE_CACHE": "/y"}, Path("/y")),
        ({"WAVGATE_CACHE": "off"}, None),
    ],
)
def test_the_cache_is_where_the_environment_says(
    message: dict[str, str], place: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in message.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == place


WRITER = """
import sys
from pathlib import Path
import numpy as np
from speech.codecs.cache import CodeCache
cache = CodeCache(Path(sys.argv[1]), 1000)
codes = np.arange(1000, dtype=np.int32)
for _ in range(200):
    cache.put("ab" * 32, codes)
    found = cache.get("ab" * 32)
    assert found is not None and np.array_equal(found, codes)
"""


def test_several_processes_that_write_one_entry_never_see_a_part_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "codes")]
    started = [subprocess.Popen(command, cwd=ROOT, env=os.environ) for _ in range(3)]
    assert [process.wait(HANG_S) for process in started] == [0, 0, 0]
    assert len(entries(tmp_path / "codes")) == 1
