"""Continuous audio through vLLM: the engine samples from what the learner scores, whoever shares a prefix."""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conf.schema import Config, ModelConfig
from learner import parity
from learner.ranks import join_process_group, leave_process_group
from learner.step import Learner
from learner.types import StepBatch, TrainingReply
from rollout.engine import RawReply
from rollout.loading import load_language_model
from rollout.torch_engine import TorchEngine
from rollout.types import Prompt, Sampling
from rollout.weights import pack_weights
from rollout.worker import read_reply
from speech.families import load_family
from speech.families.base import Family
from speech.features import AudioFeatures
from speech.turns import AudioPart, Turn
from tests.helpers.learner_world import config
from tests.helpers.micro_step_audio2 import write_checkpoint, write_codec
from tests.helpers.micro_world import clip
from tests.helpers.processes import HANG_S
from tests.helpers.rollout_models import collect
from tests.helpers.training_replies import as_written

BLOCK = 16  # ids that vLLM's prefix cache keeps together


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("heard")
    write_codec(root / "codec")
    return write_checkpoint(root / "model")


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return load_family(settings(folder).model)


def settings(folder: Path, **learner: Any) -> Config:
    model = ModelConfig(
        family="step_audio2", path=folder, codec=folder.parent / "codec", max_length=256, system="answer"
    )
    rollout = {"grammar": True, "temperature": 0.9, "max_new_tokens": 48}
    actual = config(folder, rollout=rollout, **{"tokens_per_microbatch": 1024, **learner})
    return actual.model_copy(update={"model": model})


@pytest.fixture(scope="module")
def engine(folder: Path, family: Family, learner: Learner) -> Iterator[Any]:
    """``learner``: joins its process group first, in which vLLM then takes part."""
    from rollout.vllm_engine import VllmEngine, VllmSettings

    engine = VllmEngine(VllmSettings(model=settings(folder).model, grammar=True, kv_cache_mb=32), family)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def learner(folder: Path) -> Iterator[Learner]:
    join_process_group(rank=0, world=1, address="127.0.0.1:0", timeout_s=HANG_S)
    yield Learner(settings(folder), 0, 1)
    leave_process_group()


def prompts(family: Family) -> list[Prompt]:
    """Spoken ones of unequal length, and a written one among them."""
    turns: list[list[Turn]] = [
        [Turn.from_parts("user", AudioPart(vectors=family.audio_encoder().encode(clip(seconds, seed=i))))]
        for i, seconds in enumerate((0.5, 1.7, 3.1))
    ]
    turns.append([Turn.from_parts("user", "what is two")])
    first, written = turns[1][0], Turn.from_parts("assistant", "the answer is two")
    turns.append(
        [first, written, Turn.from_parts("user", AudioPart(vectors=family.audio_encoder().encode(clip(0.9, seed=9))))]
    )
    encoded = [family.encode_prompt(turn) for turn in turns]
    return [Prompt(id=f"p{i}", ids=one.ids, features=one.features) for i, one in enumerate(encoded)]


def sampling(**changes: Any) -> Sampling:
    asked = Sampling(group_size=4, temperature=0.9, max_new_tokens=48, seed=3, grammar=True)
    return dataclasses.replace(asked, **changes)


def rollouts(family: Family, asked: Sequence[Prompt], replies: dict[Any, RawReply]) -> list[TrainingReply]:
    by_id = {prompt.id: prompt for prompt in asked}
    return [
        TrainingReply(prompt=by_id[raw.prompt_id], reply=read_reply(family, raw, grammar=True)[0])
        for raw in replies.values()
    ]


def test_engine_and_learner_agree_on_every_channel_before_and_after_a_weight_update(
    engine: Any, learner: Learner, family: Family
) -> None:
    asked = prompts(family)
    before = None
    for version in range(2):
        replies = collect(engine, asked, sampling())
        sampled = rollouts(family, asked, replies)
        held = parity.compare_logprobs(sampled, learner.score(sampled))
        assert held.passed, held
        assert set(held.channels) >= {"T", "A", "B", "P"}
        assert all(difference.count >= 20 for letter, difference in held.channels.items() if letter in "TA")
        assert {v for reply in replies.values() for v in reply.versions} == {version}
        assert before != replies
        before = replies
        anchors = tuple(map(as_written, sampled))
        learner.step(StepBatch(step=version, weight=0.0, rollouts=(), anchors=anchors))
        published = learner.weights()
        assert published is not None
        assert asyncio.run(engine.update_weights(*published)) == version + 1


@torch.no_grad()
def greedy(model: Any, prompt: Prompt, family: Family, budget: int) -> tuple[int, ...]:
    """One id after another from whole embeddings, without grammar."""
    embedded: Tensor = model.get_input_embeddings()(torch.tensor(prompt.ids))
    if prompt.features is not None:
        embedded[list(prompt.features.steps)] = torch.from_numpy(prompt.features.vectors)
    ids: list[int] = []
    while len(ids) < budget and (not ids or ids[-1] not in family.stop_ids):
        logits = model(inputs_embeds=embedded[None]).logits[0, -1]
        ids.append(int(logits.argmax()))
        embedded = torch.cat([embedded, model.get_input_embeddings()(torch.tensor(ids[-1:]))])
    return tuple(ids)


def test_prompts_that_differ_in_their_vectors_alone_share_no_cached_prefix(engine: Any, family: Family) -> None:
    model = load_language_model(family).eval()
    asyncio.run(engine.update_weights(*pack_weights(model.named_parameters(), engine.version + 1)))
    heard = prompts(family)[2]
    assert heard.features is not None and len(heard.ids) > 3 * BLOCK
    vectors = heard.features.vectors
    changed = {"a": vectors, "b": -vectors, "c": vectors[::-1].copy(), "d": vectors.copy()}
    changed["d"][0] += 1.0  # in the middle of the prompt, one vector of forty
    asked = [
        Prompt(id=name, ids=heard.ids, features=AudioFeatures(heard.features.steps, one))
        for name, one in changed.items()
    ]
    expected = {prompt.id: greedy(model, prompt, family, 24) for prompt in asked}
    assert len(set(expected.values())) == len(asked)
    free = sampling(group_size=1, temperature=0.0, max_new_tokens=24, grammar=False)
    for order in (asked, asked[::-1], [*asked[2:], *asked[:2]]):
        for prompt in order:  # one at a time: each finds what those before it have left
            replies = collect(engine, [prompt], free)
            assert replies[prompt.id, 0].ids == expected[prompt.id]
    together = collect(engine, asked, free)
    assert {name: together[name, 0].ids for name in changed} == expected


def test_the_replies_to_a_prompt_share_what_is_built_of_it_and_leave_it_as_it_was(
    engine: Any, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollout import vllm_engine

    built: list[tuple[Prompt, Any]] = []
    plain = vllm_engine.build_vllm_prompt

    def counted(prompt: Prompt) -> Any:
        built.append((prompt, plain(prompt)))
        return built[-1][1]

    monkeypatch.setattr(vllm_engine, "build_vllm_prompt", counted)
    asked = prompts(family)
    assert len(collect(engine, asked, sampling())) == 4 * len(asked)
    assert [prompt.id for prompt, _ in built] == [prompt.id for prompt in asked]
    for prompt, given in built:
        whole = plain(prompt)
        assert given.keys() == whole.keys()
        assert all(torch.equal(torch.as_tensor(given[key]), torch.as_tensor(whole[key])) for key in whole)


def test_the_reference_engine_hears_the_same(family: Family) -> None:
    model = load_language_model(family).eval()
    free = sampling(group_size=2, temperature=0.0, max_new_tokens=12, grammar=False)
    replies = collect(TorchEngine(family, max_length=256, max_num_seqs=8), prompts(family), free)
    for prompt in prompts(family):
        assert replies[prompt.id, 0].ids == replies[prompt.id, 1].ids == greedy(model, prompt, family, 12)
