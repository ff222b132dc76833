"""Kimi-Audio in the engine and in the learner: two streams, one distribution; objectives by stream; export."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from learner.batch import Microbatch, pack_microbatch
from learner.export import engine_tensors, export_policy
from learner.grammar import Grammar
from learner.model import Policy
from learner.parity import compare_logprobs
from learner.ranks import join_process_group, leave_process_group
from learner.rows import SamplingSetup, build_training_row, build_weight_table, letters_to_channels
from learner.types import LogpsByReply, TrainingReply
from rollout.engine import RawReply
from rollout.request import EngineDead
from rollout.torch_engine import TorchEngine
from rollout.types import Prompt, Sampling
from rollout.weights import pack_weights
from rollout.worker import read_reply
from speech.families import load_family
from speech.families.base import Family
from speech.grammar.channels import Channel
from speech.turns import AudioPart, Turn
from tests.families.test_family_kimi_audio import model
from tests.helpers.learner_world import perturb
from tests.helpers.micro_kimi_audio import write_checkpoint, write_codec
from tests.helpers.micro_world import clip
from tests.helpers.processes import HANG_S
from tests.helpers.rollout_models import collect, gather

HOW = Sampling(group_size=3, temperature=0.8, max_new_tokens=70, seed=1, grammar=True)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp("kimi")
    write_codec(root / "codec")
    return load_family(model(write_checkpoint(root / "base")))


@pytest.fixture(scope="module")
def asked(family: Family) -> list[Prompt]:
    """A spoken prompt through codec and ear, and a written one."""
    wave = clip(0.7, 3)
    heard = Turn.from_parts(
        "user", AudioPart(codes=tuple(family.codec().encode(wave)), vectors=family.audio_encoder().encode(wave))
    )
    collected = [family.encode_prompt([heard]), family.encode_prompt([Turn.from_parts("user", "what is two")])]
    assert collected[0].features is not None and collected[1].features is None
    return [Prompt(id=f"p{i}", ids=one.ids, features=one.features) for i, one in enumerate(collected)]


@pytest.fixture(scope="module")
def engine(family: Family) -> TorchEngine:
    return TorchEngine(family, max_length=128, max_num_seqs=4)


@pytest.fixture
def policy(family: Family) -> Policy:
    policy = Policy.load(family, chunk=16, allowed_GV=torch.from_numpy(family.interleave.allowed_masks().copy()))
    policy.fill(policy)
    return policy


def rollouts(family: Family, asked: list[Prompt], replies: dict[tuple[str, int], RawReply]) -> list[TrainingReply]:
    by_id = {prompt.id: prompt for prompt in asked}
    return [
        TrainingReply(prompt=by_id[raw.prompt_id], reply=read_reply(family, raw, grammar=True)[0])
        for raw in replies.values()
    ]


def packed(family: Family, actual: list[TrainingReply], *, only: str = "TABEP") -> Microbatch:
    grammar = Grammar(family.interleave.allowed_masks(), family.interleave.grammar_states)
    how = SamplingSetup(max_new_tokens=70, temperature=0.8, grammar=grammar)
    rows = [
        build_training_row(r, build_weight_table(po=np.array([letter in only for letter in r.reply.channels])), how)
        for r in actual
    ]
    return pack_microbatch(rows, family.streams)


def score(policy: Policy, family: Family, actual: list[TrainingReply]) -> LogpsByReply:
    with torch.no_grad():
        logps = iter(policy(packed(family, actual))[0].tolist())
    return {r.reply.key: [next(logps) for _ in r.reply.ids] for r in actual}


def test_engine_and_learner_agree_on_every_channel_before_and_after_an_update(
    family: Family, asked: list[Prompt], engine: TorchEngine, policy: Policy
) -> None:
    for version in (0, 1):
        actual = rollouts(family, asked, collect(engine, asked, HOW))
        result = compare_logprobs(actual, score(policy, family, actual))
        assert set(result.channels) >= {"T", "A", "B", "E"} and result.passed, result
        perturb(policy.lm.parameters())
        tensors = list(engine_tensors(policy, family))
        assert not any("vq_adaptor" in name for name, _ in tensors)
        assert asyncio.run(engine.update_weights(*pack_weights(tensors, version + 1))) == version + 1


def test_replies_keep_to_the_grammar_and_blanks_are_not_sampled(
    family: Family, asked: list[Prompt], engine: TorchEngine
) -> None:
    for temperature in (0.8, 0.0):
        replies = collect(engine, asked, dataclasses.replace(HOW, temperature=temperature))
        for raw in replies.values():
            assert family.interleave.well_formed(raw.ids) == (raw.finish == "stop")
            assert raw.finish == "stop" or len(raw.ids) == 70
            allowed = family.interleave.allowed_masks()[family.interleave.grammar_states(raw.ids), raw.ids]
            assert allowed.all()
            pads = family.channels.channels_of(raw.ids) == Channel.PAD
            assert [not flag for flag in family.interleave.sampled_flags(raw.ids)] == pads.tolist()
            assert all(logp == 0.0 for logp, pad in zip(raw.logps, pads, strict=True) if pad)


def test_a_step_that_fails_in_the_second_head_ends_the_engine_for_everyone(
    family: Family, asked: list[Prompt]
) -> None:
    """Text was drawn and audio was not: no reply goes on from there."""
    engine = TorchEngine(family, max_length=128, max_num_seqs=8)
    steps = iter(range(5))

    def full(*_: Any) -> None:
        if next(steps, None) is None:
            raise torch.OutOfMemoryError("no memory for the logits")

    engine._lm.mimo_output.register_forward_pre_hook(full)

    async def scenario() -> list[BaseException | dict[Any, RawReply]]:
        calls = [gather(engine.generate([prompt], HOW)) for prompt in asked]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), HANG_S)

    actual = asyncio.run(scenario())
    assert [type(item) for item in actual] == [EngineDead, EngineDead]
    assert all("OutOfMemoryError: no memory for the logits" in str(item) for item in actual)
    with pytest.raises(EngineDead, match="no memory"):
        engine.health()
    with pytest.raises(EngineDead, match="no memory"):
        collect(engine, asked, HOW)


def test_a_budget_may_end_inside_a_step(family: Family, asked: list[Prompt], engine: TorchEngine) -> None:
    whole = collect(engine, asked, HOW)
    for key, raw in collect(engine, asked, dataclasses.replace(HOW, max_new_tokens=21)).items():
        assert raw.ids == whole[key].ids[:21]
        assert family.parse_reply(raw.ids).well_formed == (raw.finish == "stop") == (len(raw.ids) < 21)


def test_what_is_heard_decides_what_is_said(family: Family, asked: list[Prompt], engine: TorchEngine) -> None:
    deaf = [dataclasses.replace(prompt, features=None) for prompt in asked]
    first, second = collect(engine, asked, HOW), collect(engine, deaf, HOW)
    assert first["p0", 0].ids != second["p0", 0].ids and first["p1", 0].ids == second["p1", 0].ids


@pytest.mark.parametrize(("only", "silent"), [("TE", "mimo"), ("AB", "lm_head|model.norm|layers.2")])
def test_an_objective_on_one_stream_gives_the_others_own_layers_no_gradient(
    family: Family, asked: list[Prompt], engine: TorchEngine, policy: Policy, only: str, silent: str
) -> None:
    """Each stream takes part all the same: every parameter has a gradient, the other stream's is 0."""
    actual = rollouts(family, asked, collect(engine, asked, HOW))
    policy(packed(family, actual, only=only))[0].sum().backward()
    for name, parameter in policy.lm.named_parameters():
        assert parameter.grad is not None, name
        other = any(part in name for part in silent.split("|")) and "mimo_layers.2" not in name
        other = other and not (only == "AB" and "mimo" in name)
        assert (float(parameter.grad.abs().max()) == 0.0) == other, name


def test_a_text_objective_needs_no_step_behind_the_text(
    family: Family, asked: list[Prompt], engine: TorchEngine
) -> None:
    actual = rollouts(family, asked, collect(engine, asked, HOW))
    text, everything = packed(family, actual, only="TE"), packed(family, actual)
    assert sum(text.lengths) < sum(everything.lengths)
    spoken = [int((letters_to_channels(r.reply.channels) == Channel.AUDIO).sum()) for r in actual]
    assert max(spoken) > 0 and not text.audio_N.any()


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_process_group(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=HANG_S)
    yield
    leave_process_group()


def test_an_export_has_the_published_names_and_the_frozen_parts_bit_for_bit(
    family: Family, policy: Policy, tmp_path: Path, alone: None
) -> None:
    perturb(policy.lm.parameters())
    target = tmp_path / "export"
    export_policy(policy, family, target, rank=0)
    files = {str(file.relative_to(family.path)) for file in family.path.rglob("*") if file.is_file()}
    assert files == {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    for name in files:
        before, after = family.path / name, target / name
        if not name.startswith("model-"):
            assert before.read_bytes() == after.read_bytes()
            continue
        old, new = load_file(before), load_file(after)
        assert {k: (v.shape, v.dtype) for k, v in old.items()} == {k: (v.shape, v.dtype) for k, v in new.items()}
        for tensor in old:
            assert torch.equal(old[tensor], new[tensor]) == ("vq_adaptor" in tensor), tensor
    again: Any = Policy.load(load_family(model(target, codec=family.codec_path)), chunk=16)
    again.fill(again)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(policy.lm.parameters(), again.lm.parameters(), strict=True)
    )
