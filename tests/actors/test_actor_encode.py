"""A rollout actor encodes rows beside its event loop, one call after another."""

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.handles import RolloutActor
from conf.schema import Config
from speech.codecs.mel import MelCodec
from speech.data.manifest import ManifestRow
from speech.dataset import Example
from speech.sound import audio
from speech.sound.audio import Wave
from tests.helpers.processes import HANG_S


class Held(MelCodec):
    """A codec that encodes when it is let; ``most``: how many threads were in it at once."""

    def __init__(self, *settings: Any) -> None:
        super().__init__(*settings)
        self.free, self.within, self.most = threading.Event(), 0, 0

    def encode(self, wave: Wave) -> list[int]:
        self.within += 1
        self.most = max(self.most, self.within)
        assert self.free.wait(HANG_S), "the event loop never came to let it"
        time.sleep(0.02)  # whoever else is let in comes now
        self.within -= 1
        return super().encode(wave)


@pytest.fixture
def actor(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RolloutActor, Held]]:
    shutil.copytree(micro_checkpoint, tmp_path / "model")
    config = Config.model_validate(
        {
            "run": {"name": "t"},
            "model": {"path": str(tmp_path / "model"), "max_length": 64},
            "data": {"train": "a", "validation": "b", "test": "c"},
            "rollout": {"engine": "torch", "max_new_tokens": 30},
        }
    )
    actor = RolloutActor(config)
    codec = Held.load(tmp_path / "model/codec.safetensors")
    assert isinstance(codec, Held)
    monkeypatch.setitem(vars(actor._worker._family), "_codec", codec)  # where it is kept once it is made
    yield actor, codec
    actor._worker.close()


def rows(folder: Path) -> list[ManifestRow]:
    collected = []
    for n in range(3):
        noise = np.random.default_rng(n).normal(0, 0.1, 4000).astype(np.float32)
        audio.write(folder / f"{n}.wav", noise, 16_000)
        content = {
            "id": f"row-{n}",
            "messages": [{"role": "user", "content": "<|audio|>"}],
            "audios": [[f"{n}.wav"]],
            "question_text": "what",
            "task_type": "any",
            "sft_target_text": "two",
            "sft_target_audio": [f"{n}.wav"],
        }
        collected.append(ManifestRow.model_validate(content))
    return collected


def test_the_event_loop_goes_on_while_rows_are_encoded_one_call_at_a_time(
    actor: tuple[RolloutActor, Held], tmp_path: Path
) -> None:
    engine, codec = actor
    wanted, manifest = rows(tmp_path), tmp_path / "rows.jsonl"

    async def scenario() -> list[list[Example]]:
        asked = [asyncio.create_task(engine.encode(manifest, [row])) for row in wanted]
        while not codec.within:
            await asyncio.sleep(0.001)
        assert await engine.version() == 0  # answers meanwhile
        codec.free.set()
        return await asyncio.gather(*asked)

    actual = asyncio.run(scenario())
    assert [[example.row_id for example in each] for each in actual] == [["row-0"], ["row-1"], ["row-2"]]
    assert codec.most == 1
    assert actual == [engine._worker.encode(manifest, [row]) for row in wanted]
