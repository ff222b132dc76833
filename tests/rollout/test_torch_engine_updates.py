"""The torch engine's seeds, new weights (also under way), faulty updates, and its end."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.schema import ModelConfig
from rollout import torch_engine
from rollout.request import EngineDead, WeightsBroken, derive_seed
from rollout.torch_engine import TorchEngine
from rollout.types import Sampling
from rollout.weights import pack_weights
from speech.families import load_family
from speech.families.base import Family
from tests.helpers.rollout_models import collect, gather, greedy, load, prompts, replay, sharp_checkpoint

TOLERANCE = 2e-4


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tied: bool) -> Path:
    return sharp_checkpoint(tmp_path_factory.mktemp("start") / "base", seed=0, tied=tied)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tied: bool) -> Any:
    return load(sharp_checkpoint(tmp_path_factory.mktemp("other") / "base", seed=1, tied=tied))


@pytest.fixture
def family(folder: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=folder))


@pytest.fixture
def engine(family: Family) -> TorchEngine:
    return TorchEngine(family, max_length=512, max_num_seqs=5)


def sampling(**changes: Any) -> Sampling:
    return dataclasses.replace(Sampling(group_size=4, temperature=0.8, max_new_tokens=40, seed=1), **changes)


def test_the_same_seed_gives_the_same_replies_alone_or_together(engine: TorchEngine) -> None:
    together = collect(engine, prompts(3), sampling())
    alone = collect(engine, prompts(1, first=2), sampling(group_size=2))
    assert all(raw.ids == together[key].ids for key, raw in alone.items())
    assert collect(engine, prompts(3), sampling(seed=2)) != together


def test_a_reply_under_way_goes_on_under_new_weights(
    engine: TorchEngine, folder: Path, other: Any, monkeypatch: pytest.MonkeyPatch
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


def test_a_faulty_update_is_refused_and_changes_nothing(engine: TorchEngine, other: Any) -> None:
    before = collect(engine, prompts(1), sampling())
    manifest, buffer = pack_weights(other.named_parameters(), 1)
    buffer[5] ^= 1
    with pytest.raises(ValueError, match="digest"):
        asyncio.run(engine.update_weights(manifest, buffer))
    with pytest.raises(ValueError, match="lacks 1"):
        asyncio.run(engine.update_weights(*pack_weights(list(other.named_parameters())[1:], 1)))
    assert engine.version == 0 and collect(engine, prompts(1), sampling()) == before


def test_a_load_that_fails_half_way_stops_generation_until_a_full_update(
    engine: TorchEngine, other: Any, monkeypatch: pytest.MonkeyPatch
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


def test_after_close_nothing_is_sampled(engine: TorchEngine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineDead):
        engine.health()
    with pytest.raises(EngineDead):
        collect(engine, prompts(1), sampling())


def test_seeds_are_stable_and_differ_by_seed_prompt_and_index() -> None:
    assert derive_seed(1, "a", 2) == 938383822073135179
    assert len({derive_seed(s, p, i) for s in range(3) for p in ("a", "b", "1") for i in range(3)}) == 27
    assert all(0 <= derive_seed(s, "x", 0) < 2**63 for s in range(100))


def test_new_weights_change_greedy_replies_to_those_of_the_new_model(
    engine: TorchEngine, family: Family, other: Any
) -> None:
    assert asyncio.run(engine.update_weights(*pack_weights(other.state_dict().items(), 5))) == engine.version == 5
    replies = collect(engine, prompts(3), sampling(group_size=1, temperature=0.0))
    for prompt in prompts(3):
        assert replies[prompt.id, 0].ids == greedy(other, prompt.ids, family.stop_ids, 40)
        assert set(replies[prompt.id, 0].versions) == {5}


def test_bfloat16_weights_are_loaded_as_they_were_rounded(engine: TorchEngine, other: Any) -> None:
    rounded = {name: p.detach().bfloat16() for name, p in other.named_parameters()}
    asyncio.run(engine.update_weights(*pack_weights(rounded.items(), 1)))
    held = dict(engine._lm.named_parameters())
    assert all(torch.equal(held[name], p.float()) for name, p in rounded.items())
