"""The worker turns sampled ids into replies with channels, words and a waveform, and never into an error."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf.schema import Config, ModelConfig
from rollout.engine import RawReply, WeightManifest
from rollout.torch_engine import TorchEngine
from rollout.types import Prompt, Reply, Sampling, Speech
from rollout.worker import RolloutWorker, build_rollout_worker
from speech.data.manifest import DialogueMessage, ManifestRow
from speech.families import load_family
from speech.families.base import Family
from speech.sound import audio
from speech.turns import ReplyChunk
from tests.helpers.rollout_models import prompts

SAMPLING = Sampling(group_size=2, temperature=1.0, max_new_tokens=30, seed=0)


class Scripted:
    """An engine that says what it is told to; ``closed`` tells how its iterator ended."""

    version = 3

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        self.replies = replies
        self.left = False
        self.calls: list[str] = []

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[RawReply]:
        try:
            for i, ids in enumerate(self.replies):
                yield RawReply(
                    prompt_id="p",
                    index=i,
                    ids=tuple(ids),
                    logps=(-1.0,) * len(ids),
                    versions=(3,) * len(ids),
                    finish="length",
                )
        finally:
            self.left = True

    async def pause(self) -> None:
        self.calls.append("pause")

    async def resume(self) -> None:
        self.calls.append("resume")

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        return manifest.version

    def health(self) -> Mapping[str, float]:
        return {"running": 0.0}

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture(scope="module")
def family(micro_checkpoint: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=micro_checkpoint))


def run(worker: RolloutWorker, sampling: Sampling = SAMPLING) -> list[tuple[Reply, Speech]]:
    async def scenario() -> list[tuple[Reply, Speech]]:
        return [pair async for pair in worker.generate(prompts(1), sampling)]

    return asyncio.run(scenario())


def test_a_reply_is_taken_apart_and_spoken(family: Family) -> None:
    ids = family.encode_target([ReplyChunk(text="three four", codes=(1, 2, 3)), ReplyChunk(text="nine", codes=(4,))])
    [(reply, speech)] = run(RolloutWorker(Scripted([ids]), family))
    assert reply.ids == ids and reply.channels == "TTBAAABTBABE"
    assert reply.text == "three four nine" and reply.well_formed and reply.policy_version == 3
    assert reply.sampled == (True,) * len(ids)
    assert speech.sample_rate == family.codec().sample_rate
    assert np.array_equal(speech.wave, family.codec().decode([1, 2, 3, 4]))


def test_a_reply_without_codes_is_silence(family: Family) -> None:
    stop = family.stop_ids[0]
    for ids in ([stop], list(family.encode_target([ReplyChunk(text="nine", codes=(1,))])[:2])):
        [(reply, speech)] = run(RolloutWorker(Scripted([ids]), family))
        assert len(speech.wave) == 0 and speech.wave.dtype == np.float32 and speech.seconds == 0
        assert not reply.well_formed and len(reply.channels) == len(ids)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_ids_make_a_reply(family: Family, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, family.channels.vocab - 1), max_size=12))
    for grammar in (False, True):
        sampling = Sampling(group_size=1, temperature=1.0, max_new_tokens=30, seed=0, grammar=grammar)
        [(reply, speech)] = run(RolloutWorker(Scripted([ids]), family), sampling)
        assert len(reply.ids) == len(reply.channels) == len(reply.sampled) == len(reply.logps)
        assert np.isfinite(speech.wave).all()
        assert (len(speech.wave) == 0) == (len(family.parse_reply(ids).codes) == 0)


def test_a_position_with_one_allowed_id_counts_as_forced_under_the_grammar_only(family: Family) -> None:
    ids = family.encode_target([ReplyChunk(text="nine", codes=(1, 2))])
    allowed = family.interleave.allowed_masks()
    masked = Sampling(group_size=1, temperature=1.0, max_new_tokens=30, seed=0, grammar=True)
    [(reply, _)] = run(RolloutWorker(Scripted([ids]), family), masked)
    assert reply.sampled == tuple(
        int(allowed[grammar_state].sum()) > 1 for grammar_state in family.interleave.grammar_states(ids)
    )


def test_leaving_early_closes_the_engines_iterator(family: Family) -> None:
    engine = Scripted([[1], [2], [3]])
    worker = RolloutWorker(engine, family)

    async def scenario() -> None:
        replies = worker.generate(prompts(1), SAMPLING)
        await anext(replies)
        assert not engine.left
        await replies.aclose()

    asyncio.run(scenario())
    assert engine.left


def test_rows_are_encoded_by_the_family_and_the_manifests_folder(family: Family, tmp_path: Path) -> None:
    rate = family.codec().sample_rate
    wave = np.sin(np.arange(rate // 2) / 20).astype(np.float32) * 0.3
    audio.write(tmp_path / "tone.wav", wave, rate)
    row = ManifestRow(
        id="r1",
        messages=(DialogueMessage(role="user", content="<|audio|>"),),
        audios=(("tone.wav",),),
        question_text="what is it",
        task_type="any",
        sft_target_text="nine",
        sft_target_audio=("tone.wav",),
    )
    [example] = RolloutWorker(Scripted([]), family).encode(tmp_path / "train.jsonl", [row])
    assert example.row_id == "r1" and family.interleave.well_formed(example.target.ids)
    codes = set(family.parse_reply(example.target.ids).codes)
    assert codes == set(family.parse_reply(example.prompt.ids[2:]).codes)


def test_the_config_chooses_the_engine_and_torch_needs_no_vllm(micro_checkpoint: Path) -> None:
    vllm_before = "vllm" in sys.modules
    config = Config.model_validate(
        {
            "run": {"name": "t"},
            "model": {"path": micro_checkpoint.name, "max_length": 64},
            "data": {"train": "a", "validation": "b", "test": "c"},
            "rollout": {"engine": "torch", "max_new_tokens": 30},
        }
    )
    worker = build_rollout_worker(config, micro_checkpoint.parent, version=4)
    assert worker.version == 4 and ("vllm" in sys.modules) == vllm_before
    pairs = run(worker)
    assert {(reply.prompt_id, reply.index) for reply, _ in pairs} == {("p0", 0), ("p0", 1)}
    with pytest.raises(ValueError, match=r"'long' is too long: 40 tokens \+ max_new_tokens=30 > max_length=64"):
        asyncio.run(anext(worker.generate([Prompt(id="long", ids=(1,) * 40)], SAMPLING)))  # type: ignore[arg-type]
    assert isinstance(worker._engine, TorchEngine)
    worker.close()


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "run": {"name": "t"},
            "model": {"path": "gone"},
            "data": {"train": "a", "validation": "b", "test": "c"},
        }
    )
    with pytest.raises(ValueError, match="gone"):
        build_rollout_worker(config, tmp_path)
