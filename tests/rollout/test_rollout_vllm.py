"""The vLLM engine samples from the distribution that the learner scores, whatever the weights (docs/design.md §5)."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.schema import ModelConfig
from rollout.engine import RawReply
from rollout.request import EngineDead, WeightsBroken
from rollout.torch_engine import TorchEngine
from rollout.types import Prompt, Sampling
from rollout.weights import pack_weights
from speech.families import load_family
from speech.families.base import Family
from tests.helpers.rollout_models import (
    collect,
    gather,
    greedy,
    largest_difference,
    load,
    prompts,
    replay,
    sharp_checkpoint,
)

TOLERANCE = 2e-4  # docs/design.md §5, invariant 5; about 1e-5 is what it measures


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharp_checkpoint(tmp_path_factory.mktemp("rollout") / "base", seed=0)


@pytest.fixture(scope="module")
def models(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two sets of weights; the engine starts with the first, and version v holds set v % 2."""
    return [load(base), load(sharp_checkpoint(tmp_path_factory.mktemp("rollout") / "other", seed=1))]


@pytest.fixture(scope="module")
def family(base: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=base))


@pytest.fixture(scope="module")
def engine(base: Path, family: Family) -> Iterator[Any]:
    from rollout.vllm_engine import VllmEngine, VllmSettings

    engine = VllmEngine(
        VllmSettings(model=ModelConfig(path=base, max_length=512), grammar=True, kv_cache_mb=32), family
    )
    yield engine
    engine.close()


def push(engine: Any, models: list[Any], version: int) -> int:
    """Odd versions are sent as parameters (no tied head), even ones as a state dict."""
    model = models[version % 2]
    tensors = model.named_parameters() if version % 2 else model.state_dict().items()
    return asyncio.run(engine.update_weights(*pack_weights(tensors, version)))


def sampling(**changes: Any) -> Sampling:
    return dataclasses.replace(Sampling(group_size=8, temperature=1.0, max_new_tokens=48, seed=3), **changes)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_log_probs_equal_a_plain_replay_before_and_after_weight_updates(
    engine: Any, models: list[Any], version: int
) -> None:
    if version:
        assert push(engine, models, version) == engine.version == version
    for temperature in (1.0, 0.7):
        replies = collect(engine, prompts(16), sampling(temperature=temperature)).values()
        assert sum(len(r.ids) for r in replies) >= 2000
        assert {v for r in replies for v in r.versions} == {version}
        assert largest_difference(models[version % 2], prompts(16), list(replies), temperature) <= TOLERANCE


def test_greedy_replies_equal_those_of_a_fresh_transformers_model(
    engine: Any, models: list[Any], family: Family
) -> None:
    for version in (engine.version + 1, engine.version + 2):
        push(engine, models, version)
        replies = collect(engine, prompts(8), sampling(group_size=1, temperature=0.0))
        for prompt in prompts(8):
            expected = greedy(models[version % 2], prompt.ids, family.stop_ids, 48)
            assert replies[prompt.id, 0].ids == expected
        assert largest_difference(models[version % 2], prompts(8), list(replies.values()), 1.0) <= TOLERANCE


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_the_grammar_is_never_broken_and_its_log_probs_are_masked(
    engine: Any, models: list[Any], family: Family, temperature: float
) -> None:
    asked = sampling(temperature=temperature, grammar=True)
    replies = list(collect(engine, prompts(8), asked).values())
    allowed = family.interleave.allowed_masks()
    assert all(
        allowed[grammar_state, token]
        for r in replies
        for grammar_state, token in zip(family.interleave.grammar_states(r.ids), r.ids, strict=True)
    )
    assert all(family.parse_reply(r.ids).well_formed == (r.finish == "stop") for r in replies)
    assert largest_difference(models[engine.version % 2], prompts(8), replies, temperature or 1.0, family) <= TOLERANCE


def test_masked_and_free_requests_share_a_batch(engine: Any, models: list[Any], family: Family) -> None:
    async def both() -> tuple[dict[Any, RawReply], dict[Any, RawReply]]:
        masked, free = await asyncio.gather(
            gather(engine.generate(prompts(4), sampling(grammar=True))),
            gather(engine.generate(prompts(4), sampling())),
        )
        return masked, free

    masked, free = asyncio.run(both())
    model = models[engine.version % 2]
    assert largest_difference(model, prompts(4), list(masked.values()), 1.0, family) <= TOLERANCE
    assert largest_difference(model, prompts(4), list(free.values()), 1.0) <= TOLERANCE


def test_a_reply_depends_on_its_seed_alone_not_on_company_or_order(engine: Any) -> None:
    together = collect(engine, prompts(8), sampling())
    backwards = collect(engine, prompts(8)[::-1], sampling())
    alone = [collect(engine, [prompt], sampling(group_size=4)) for prompt in prompts(8)]
    assert {key: r.ids for key, r in backwards.items()} == {key: r.ids for key, r in together.items()}
    assert all(r.ids == together[key].ids for item in alone for key, r in item.items())
    other = collect(engine, prompts(8), sampling(seed=4))
    assert sum(other[key].ids != r.ids for key, r in together.items()) > 56  # of 64
    assert len({r.ids for r in together.values() if r.prompt_id == "p0"}) == 8


def test_a_reply_ends_at_its_stop_id_or_at_the_budget(engine: Any, family: Family) -> None:
    replies = collect(engine, prompts(16), sampling()).values()
    assert {r.finish for r in replies} == {"stop", "length"}
    for reply in replies:
        stops = [i for i, token in enumerate(reply.ids) if token in family.stop_ids]
        assert stops == ([len(reply.ids) - 1] if reply.finish == "stop" else [])
        assert reply.finish == "stop" or len(reply.ids) == 48
        assert len(reply.logps) == len(reply.versions) == len(reply.ids)


def test_vllm_and_the_torch_engine_agree_greedily(engine: Any, family: Family, models: list[Any]) -> None:
    reference = TorchEngine(family, max_length=512, max_num_seqs=8)
    asyncio.run(reference.update_weights(*pack_weights(models[engine.version % 2].named_parameters(), 7)))
    for grammar in (False, True):
        asked = sampling(group_size=2, temperature=0.0, grammar=grammar)
        ours, theirs = collect(engine, prompts(6), asked), collect(reference, prompts(6), asked)
        assert {key: r.ids for key, r in ours.items()} == {key: r.ids for key, r in theirs.items()}
        assert {key: r.finish for key, r in ours.items()} == {key: r.finish for key, r in theirs.items()}
        worst = max(abs(a - b) for key in ours for a, b in zip(ours[key].logps, theirs[key].logps, strict=True))
        assert worst <= TOLERANCE


@pytest.mark.parametrize("fault", ["digest", "name", "shape", "missing", "bit", "nan"])
def test_a_faulty_update_is_refused_and_the_engine_goes_on_with_its_old_weights(
    engine: Any, models: list[Any], fault: str
) -> None:
    version = engine.version
    tensors = {name: p.detach().clone() for name, p in models[(version + 1) % 2].named_parameters()}
    if fault == "name":
        tensors["model.layers.9.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"]
    if fault == "shape":
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    if fault == "missing":
        del tensors["model.norm.weight"]
    if fault == "nan":
        tensors["model.norm.weight"][3] = float("nan")
    manifest, buffer = pack_weights(tensors.items(), version + 1)
    if fault == "digest":
        manifest = dataclasses.replace(manifest, digest="0" * 64)
    if fault == "bit":
        buffer[1000] ^= 1
    with pytest.raises(
        ValueError,
        match={"bit": "digest", "name": "layers.9", "nan": "norm"}.get(fault, fault if fault == "digest" else "norm"),
    ):
        asyncio.run(engine.update_weights(manifest, buffer))
    assert engine.version == version
    replies = list(collect(engine, prompts(4), sampling()).values())
    assert {v for r in replies for v in r.versions} == {version}
    assert largest_difference(models[version % 2], prompts(4), replies, 1.0) <= TOLERANCE


def test_prompts_that_do_not_fit_are_refused_by_id_and_lengths(engine: Any) -> None:
    long = Prompt(id="long", ids=(1,) * 480)
    with pytest.raises(ValueError, match=r"'long' is too long: 480 tokens \+ max_new_tokens=48 > max_length=512"):
        collect(engine, [long], sampling())
    with pytest.raises(ValueError, match="'p0' came twice"):
        collect(engine, [*prompts(1), *prompts(1)], sampling())
    with pytest.raises(ValueError, match="'none' is empty"):
        collect(engine, [Prompt(id="none", ids=())], sampling())


def test_a_paused_engine_makes_no_step(engine: Any) -> None:
    async def scenario() -> int:
        await engine.pause()
        waiting = asyncio.create_task(gather(engine.generate(prompts(2), sampling())))
        while engine.health()["running"] < 16:
            await engine.pause()  # a round trip through the step thread
        before = engine.health()["busy_s"]
        await engine.pause()
        assert engine.health()["busy_s"] == before and not waiting.done()
        await engine.resume()
        return len(await waiting)

    assert asyncio.run(scenario()) == 16


def test_replies_under_way_go_on_under_new_weights_with_a_version_per_token(engine: Any, models: list[Any]) -> None:
    old = engine.version
    asked = prompts(4)

    async def scenario() -> list[RawReply]:
        replies = []
        async for raw in engine.generate(asked, sampling(max_new_tokens=400)):
            replies.append(raw)
            if len(replies) == 1:
                await engine.pause()
                await engine.update_weights(*pack_weights(models[(old + 1) % 2].named_parameters(), old + 1))
                await engine.resume()
        return replies

    replies = asyncio.run(scenario())
    mixed = [r for r in replies if set(r.versions) == {old, old + 1}]
    assert mixed and len(replies) == 32
    for reply in mixed:
        assert list(reply.versions) == sorted(reply.versions)
        cut = reply.versions.index(old + 1)
        prompt = next(p.ids for p in asked if p.id == reply.prompt_id)
        before = replay(models[old % 2], prompt, reply.ids, 1.0)[:cut]
        after = replay(models[(old + 1) % 2], prompt, reply.ids, 1.0)[cut:]  # caches computed again, not kept
        assert float((torch.cat([before, after]) - torch.tensor(reply.logps)).abs().max()) <= TOLERANCE


def test_leaving_the_iterator_early_frees_the_requests(engine: Any) -> None:
    async def scenario() -> float:
        replies = engine.generate(prompts(4), sampling(max_new_tokens=400))
        await anext(replies)
        await replies.aclose()
        await engine.resume()  # a round trip: the drop was queued before it
        return float(engine.health()["running"])

    assert asyncio.run(scenario()) == 0
    assert len(collect(engine, prompts(2), sampling())) == 16


def test_a_load_that_fails_half_way_stops_generation_until_a_full_update(
    engine: Any, models: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollout.vllm_worker import ObjectStoreEngine
    from rollout.weights import view_tensors

    version = engine.version

    def half(self: Any, update: Any) -> None:
        tensors = list(view_tensors(update.manifest, update.payload))
        self.model.load_weights(iter(tensors[: len(tensors) // 2]))
        raise RuntimeError("the link is gone")

    async def scenario() -> None:
        waiting = asyncio.create_task(gather(engine.generate(prompts(4), sampling(max_new_tokens=400))))
        while not engine.health()["running"]:
            await asyncio.sleep(0)
        with pytest.raises(WeightsBroken, match="the link is gone"):
            await engine.update_weights(*pack_weights(models[(version + 1) % 2].named_parameters(), version + 1))
        with pytest.raises(WeightsBroken, match="the link is gone"):
            await waiting
        with pytest.raises(WeightsBroken, match="the link is gone"):
            await gather(engine.generate(prompts(1), sampling()))

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStoreEngine, "receive_weights", half)
        asyncio.run(scenario())
    assert engine.version == version
    assert push(engine, models, version + 1) == version + 1
    replies = list(collect(engine, prompts(8), sampling()).values())
    assert largest_difference(models[(version + 1) % 2], prompts(8), replies, 1.0) <= TOLERANCE


def test_each_engine_of_a_transfer_gets_its_own_ranks() -> None:
    from rollout.vllm_transfer import TransferClient

    calls: list[Any] = []
    client = TransferClient(lambda *call: calls.append(call), engines=3, tensor_parallel=2)
    client.version = 5
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    client.finish_weight_update()
    assert [info["rank_offset"] for info in calls[0][1]] == [1, 3, 5]
    assert calls[1] == ("finish", [None, None, None], 5)


def test_when_the_step_thread_dies_every_waiter_hears_of_it(
    engine: Any, models: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test here: it ends the module's engine."""

    def broken() -> None:
        raise MemoryError("no block left")

    async def scenario() -> None:
        await engine.pause()
        first = asyncio.create_task(gather(engine.generate(prompts(2), sampling())))
        second = asyncio.create_task(gather(engine.generate(prompts(2, first=2), sampling())))
        while engine.health()["running"] < 32:
            await engine.pause()
        monkeypatch.setattr(engine._engine, "step", broken)
        await engine.resume()
        for waiting in (first, second):
            with pytest.raises(EngineDead, match="MemoryError: no block left"):
                await waiting
        for ask in (engine.pause(), engine.resume(), gather(engine.generate(prompts(1), sampling()))):
            with pytest.raises(EngineDead):
                await ask
        with pytest.raises(EngineDead):
            await engine.update_weights(*pack_weights(models[0].named_parameters(), 99))

    asyncio.run(scenario())
    with pytest.raises(EngineDead):
        engine.health()
    engine.close()
    engine.close()
