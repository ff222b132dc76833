"""The reference engine: its log-probs are those of a plain replay, its replies those of its seeds."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.schema import ModelConfig
from rollout.hf_engine import HfEngine
from rollout.request import derive_seed
from rollout.types import Sampling
from rollout.weights import pack_weights
from speech.families import load_family
from speech.families.base import Family
from tests.helpers.rollout_models import (
    collect,
    greedy,
    largest_difference,
    load,
    prompts,
    sharp_checkpoint,
)

TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharp_checkpoint(tmp_path_factory.mktemp("hf") / "base", seed=0, tied=False)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(sharp_checkpoint(tmp_path_factory.mktemp("hf") / "other", seed=1, tied=False))


@pytest.fixture
def family(folder: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=folder))


@pytest.fixture
def engine(family: Family) -> HfEngine:
    return HfEngine(family, max_length=512)


def sampling(**changes: Any) -> Sampling:
    return dataclasses.replace(Sampling(group_size=4, temperature=0.8, max_new_tokens=40, seed=1), **changes)


@pytest.mark.parametrize("grammar", [False, True])
def test_log_probs_are_those_of_the_processed_distribution(
    engine: HfEngine, family: Family, folder: Path, grammar: bool
) -> None:
    replies = list(collect(engine, prompts(6), sampling(grammar=grammar)).values())
    assert {(r.prompt_id, r.index) for r in replies} == {(p.id, i) for p in prompts(6) for i in range(4)}
    assert largest_difference(load(folder), prompts(6), replies, 0.8, family if grammar else None) <= TOLERANCE
    if grammar:
        assert all(family.parse_reply(r.ids).well_formed == (r.finish == "stop") for r in replies)
    for reply in replies:
        stops = [i for i, token in enumerate(reply.ids) if token in family.stop_ids]
        assert stops == ([len(reply.ids) - 1] if reply.finish == "stop" else [])
        assert reply.finish == "stop" or len(reply.ids) == 40


def test_seeds_are_stable_and_differ_by_seed_prompt_and_index() -> None:
    assert derive_seed(1, "a", 2) == 938383822073135179
    assert len({derive_seed(s, p, i) for s in range(3) for p in ("a", "b", "1") for i in range(3)}) == 27
    assert all(0 <= derive_seed(s, "x", 0) < 2**63 for s in range(100))


def test_new_weights_change_greedy_replies_to_those_of_the_new_model(
    engine: HfEngine, family: Family, other: Any
) -> None:
    assert asyncio.run(engine.update_weights(*pack_weights(other.state_dict().items(), 5))) == engine.version == 5
    replies = collect(engine, prompts(3), sampling(group_size=1, temperature=0.0))
    for prompt in prompts(3):
        assert replies[prompt.id, 0].ids == greedy(other, prompt.ids, family.stop_ids, 40)
        assert set(replies[prompt.id, 0].versions) == {5}


def test_bfloat16_weights_are_loaded_as_they_were_rounded(engine: HfEngine, other: Any) -> None:
    rounded = {name: p.detach().bfloat16() for name, p in other.named_parameters()}
    asyncio.run(engine.update_weights(*pack_weights(rounded.items(), 1)))
    held = dict(engine._lm.named_parameters())
    assert all(torch.equal(held[name], p.float()) for name, p in rounded.items())
