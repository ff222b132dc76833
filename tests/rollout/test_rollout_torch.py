"""The torch engine on one stream, where others can be asked too: its replies are those of the reference."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conf.schema import ModelConfig
from rollout import decoder
from rollout.draw import draw_token_ids
from rollout.hf_engine import HfEngine
from rollout.torch_engine import TorchEngine
from rollout.types import Prompt, Sampling
from speech.families import load_family
from speech.families.base import Family
from speech.features import AudioFeatures
from tests.helpers.rollout_models import collect, gather, largest_difference, load, prompts, sharp_checkpoint

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharp_checkpoint(tmp_path_factory.mktemp("torch") / "base", seed=0)


@pytest.fixture
def family(folder: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=folder))


@pytest.fixture
def engine(family: Family) -> TorchEngine:
    return TorchEngine(family, max_length=512, max_num_seqs=5)


def sampling(**changes: Any) -> Sampling:
    return dataclasses.replace(Sampling(group_size=4, temperature=0.8, max_new_tokens=40, seed=1), **changes)


@pytest.mark.parametrize("settings", [{}, {"grammar": True}, {"group_size": 1, "temperature": 0.0}])
def test_replies_are_those_of_the_reference_engine(
    engine: TorchEngine, family: Family, settings: dict[str, Any]
) -> None:
    """Fourteen or more replies through five slots: gaps are closed and filled again."""
    asked, how = prompts(6), sampling(**settings)
    found, expected = collect(engine, asked, how), collect(HfEngine(family, max_length=512), asked, how)
    assert found.keys() == expected.keys()
    for key, raw in found.items():
        assert (raw.ids, raw.finish, raw.versions) == (
            expected[key].ids,
            expected[key].finish,
            expected[key].versions,
        )
        assert raw.logps == pytest.approx(expected[key].logps, abs=TOLERANCE)


def test_calls_at_the_same_time_share_the_slots(engine: TorchEngine) -> None:
    async def scenario() -> Any:
        hot, masked = sampling(temperature=1.3), sampling(grammar=True, seed=3)
        calls = [(prompts(2), hot), (prompts(2, first=2), masked)]
        return await asyncio.gather(*(gather(engine.generate(*call)) for call in calls))

    first, second = asyncio.run(scenario())
    assert {raw.ids for raw in first.values()} == {
        raw.ids for raw in collect(engine, prompts(2), sampling(temperature=1.3)).values()
    }
    again = collect(engine, prompts(2, first=2), sampling(grammar=True, seed=3))
    assert {raw.ids for raw in second.values()} == {raw.ids for raw in again.values()}


def test_a_call_left_early_frees_its_slots(engine: TorchEngine) -> None:
    async def scenario() -> None:
        replies = engine.generate(prompts(4), sampling())
        async for _ in replies:
            break
        await replies.aclose()  # type: ignore[attr-defined]
        await engine.pause()  # behind whatever is queued
        assert engine.health()["running"] == 0
        await engine.resume()

    asyncio.run(scenario())
    assert len(collect(engine, prompts(1), sampling())) == 4


def test_vectors_take_the_place_of_embeddings(engine: TorchEngine, folder: Path) -> None:
    """A prompt whose vectors are the embeddings of other ids is a prompt of those ids."""
    table = load(folder).get_input_embeddings().weight.detach().numpy()
    said = Prompt(id="p", ids=(9, 10, 11, 12, 13))
    vectors = AudioFeatures(steps=(1, 3), vectors=np.asarray(table[[10, 12]], np.float32))
    heard = Prompt(id="p", ids=(9, 0, 11, 0, 13), features=vectors)
    how = sampling(group_size=2)
    assert {k: r.ids for k, r in collect(engine, [heard], how).items()} == {
        k: r.ids for k, r in collect(engine, [said], how).items()
    }


def test_bfloat16_runs_near_float32(family: Family, folder: Path) -> None:
    engine = TorchEngine(family, max_length=512, max_num_seqs=8, dtype="bfloat16")
    replies = list(collect(engine, prompts(2), sampling(group_size=2)).values())
    assert {p.dtype for p in engine._lm.parameters()} == {torch.bfloat16}
    assert all(buffer.dtype == torch.float32 for buffer in engine._lm.buffers())
    assert TOLERANCE < largest_difference(load(folder), prompts(2), replies, 0.8) < 1.0


def test_while_paused_nothing_is_sampled(engine: TorchEngine) -> None:
    async def scenario() -> None:
        await engine.pause()
        running = asyncio.create_task(gather(engine.generate(prompts(1), sampling())))
        while engine.health()["running"] < 4:
            await asyncio.sleep(0.01)
        assert engine.health()["tokens"] == 0
        await engine.resume()
        assert len(await running) == 4

    asyncio.run(scenario())


def test_equal_prompts_are_read_once(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    real = decoder.Decoder._prefill_slot
    monkeypatch.setattr(
        decoder.Decoder,
        "_prefill_slot",
        lambda self, reply, ids, slot: passes.append(slot) or real(self, reply, ids, slot),
    )
    collect(engine, prompts(1), sampling(max_new_tokens=2))
    assert passes == [0]
    passes.clear()
    heard = [AudioFeatures(steps=(1,), vectors=np.full((1, 64), i, np.float32)) for i in range(2)]
    asked = [Prompt(id=f"p{i}", ids=(9, 0, 11), features=one) for i, one in enumerate(heard)]
    collect(engine, asked, sampling(group_size=2, max_new_tokens=2))
    assert passes == [0, 2]  # the ids are those of the other, the vectors are not


def test_draws_follow_the_probabilities_and_never_an_impossible_id() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    generators = [torch.Generator().manual_seed(i) for i in range(8000)]
    drawn = draw_token_ids(probabilities.log().expand(8000, -1), generators)
    shares = torch.bincount(drawn, minlength=6) / 8000
    assert float((shares - probabilities).abs().max()) < 0.02
    assert set(drawn.tolist()) == {1, 3, 4}
