"""What the two engines on plain torch have in common: seeds, weights under way, faulty updates, the end."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.schema import ModelConfig
from rollout import torch_engine
from rollout.hf_engine import HfEngine
from rollout.request import EngineDead, WeightsBroken
from rollout.torch_engine import TorchEngine
from rollout.types import Sampling
from rollout.weights import pack_weights
from speech.families import load_family
from tests.helpers.rollout_models import collect, gather, load, prompts, replay, sharp_checkpoint

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharp_checkpoint(tmp_path_factory.mktemp("alike") / "base", seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(sharp_checkpoint(tmp_path_factory.mktemp("alike") / "other", seed=1))


@pytest.fixture(params=["hf", "torch"])
def engine(request: pytest.FixtureRequest, folder: Path) -> HfEngine | TorchEngine:
    family = load_family(ModelConfig(family="tiny", path=folder))
    if request.param == "hf":
        return HfEngine(family, max_length=512)
    return TorchEngine(family, max_length=512, max_num_seqs=5)


def sampling(**changes: Any) -> Sampling:
    return dataclasses.replace(Sampling(group_size=4, temperature=0.8, max_new_tokens=40, seed=1), **changes)


def test_the_same_seed_gives_the_same_replies_alone_or_together(engine: Any) -> None:
    together = collect(engine, prompts(3), sampling())
    alone = collect(engine, prompts(1, first=2), sampling(group_size=2))
    assert all(raw.ids == together[key].ids for key, raw in alone.items())
    assert collect(engine, prompts(3), sampling(seed=2)) != together


def test_a_reply_under_way_goes_on_under_new_weights(
    engine: Any, folder: Path, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "THREAD_SLICE_S", 0.0)

    async def scenario() -> Any:
        running = asyncio.create_task(gather(engine.generate(prompts(1), sampling(max_new_tokens=200))))
        while engine.health()["busy_s"] == 0:
            await asyncio.sleep(0)
        await engine.pause()
        assert await engine.update_weights(*pack_weights(other.named_parameters(), 1)) == engine.version == 1
        await engine.resume()
        return await running

    replies = asyncio.run(scenario())
    mixed = [r for r in replies.values() if set(r.versions) == {0, 1}]
    assert mixed
    for reply in mixed:
        cut = reply.versions.index(1)
        parts = [
            replay(load(folder), prompts(1)[0].ids, reply.ids, 0.8)[:cut],
            replay(other, prompts(1)[0].ids, reply.ids, 0.8)[cut:],
        ]
        assert float((torch.cat(parts) - torch.tensor(reply.logps)).abs().max()) <= TOLERANCE


def test_a_faulty_update_is_refused_and_changes_nothing(engine: Any, other: Any) -> None:
    before = collect(engine, prompts(1), sampling())
    manifest, buffer = pack_weights(other.named_parameters(), 1)
    buffer[5] ^= 1
    with pytest.raises(ValueError, match="digest"):
        asyncio.run(engine.update_weights(manifest, buffer))
    with pytest.raises(ValueError, match="lacks 1"):
        asyncio.run(engine.update_weights(*pack_weights(list(other.named_parameters())[1:], 1)))
    assert engine.version == 0 and collect(engine, prompts(1), sampling()) == before


def test_a_load_that_fails_half_way_stops_generation_until_a_full_update(
    engine: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> Any:
        raise RuntimeError("no memory")

    update = pack_weights(other.named_parameters(), 1)
    with monkeypatch.context() as patch:
        patch.setattr(engine._lm, "named_parameters", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            asyncio.run(engine.update_weights(*update))
    with pytest.raises(WeightsBroken, match="version 1"):
        collect(engine, prompts(1), sampling())
    assert asyncio.run(engine.update_weights(*update)) == 1
    assert len(collect(engine, prompts(1), sampling())) == 4


def test_after_close_nothing_is_sampled(engine: Any) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineDead):
        engine.health()
    with pytest.raises(EngineDead):
        collect(engine, prompts(1), sampling())
