"""VITA-Audio through vLLM and the learner: one distribution, before and after an update; exports like the folder."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conf.schema import Config
from learner import parity
from learner.ranks import join_process_group, leave_process_group
from learner.step import Learner
from learner.types import StepBatch, TrainingReply, example_to_anchor
from rollout.loading import load_language_model
from rollout.request import example_to_prompt
from rollout.types import Prompt, Sampling
from rollout.worker import read_reply
from speech.checkpoints.folder import weight_files
from speech.data.manifest import read_manifest
from speech.dataset import Example, RowEncoder
from speech.families import load_family
from speech.families.base import Family
from tests.helpers.learner_world import full_tensors
from tests.helpers.micro_vita_audio import Kind, write_checkpoint, write_codec
from tests.helpers.micro_world import write_data
from tests.helpers.processes import HANG_S
from tests.helpers.rollout_models import collect

ROWS = 6
FROZEN = {
    "boost": ("model.layers.2.", "model.layers.3.", "mtp_"),
    "plus": ("model.audio_model.", "model.audio_projection."),
}


class World:
    """A micro model: its folder, its rows as ids, an engine and a learner that start from the same weights."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        from rollout.vllm_engine import VllmEngine, VllmSettings

        self.kind = kind
        codec = write_codec(folder / "codec.safetensors")
        manifest = write_data(folder / "data", ROWS, reply_seconds=1.2)
        base = write_checkpoint(folder / "base", kind)
        self.config = config_of(base, codec, manifest)
        self.family: Family = load_family(self.config.model)
        encoder = RowEncoder(self.family, manifest.parent, max_seconds=60.0)
        self.examples: list[Example] = [encoder.encode(row) for row in read_manifest(manifest, 60.0)]
        heard = [example.prompt.features is not None for example in self.examples]
        assert any(heard) == (kind == "plus") and not all(heard)
        settings = VllmSettings(model=self.config.model, grammar=True, kv_cache_mb=32)
        self.engine: Any = VllmEngine(settings, self.family)


def config_of(base: Path, codec: Path, manifest: Path, **rollout: Any) -> Config:
    data = {split: str(manifest) for split in ("train", "validation", "test")}
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"family": "vita_audio", "path": str(base), "codec": str(codec), "max_length": 512},
            "data": data,
            "rollout": {"max_new_tokens": 64, **rollout},
            "learner": {"ranks": 1, "lr": 1e-2, "warmup_steps": 0, "tokens_per_microbatch": 1024},
        }
    )


@pytest.fixture(scope="module", params=["boost", "plus"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_process_group(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=HANG_S)
    made = World(tmp_path_factory.mktemp("vita") / "world", request.param)
    yield made
    made.engine.close()  # which ends the learner's group too
    leave_process_group()


def sampled(world: World, grammar: bool, seed: int) -> list[TrainingReply]:
    prompts: list[Prompt] = [example_to_prompt(example) for example in world.examples]
    by_id = {prompt.id: prompt for prompt in prompts}
    asked = Sampling(group_size=6, temperature=1.0, max_new_tokens=64, seed=seed, grammar=grammar)
    replies = collect(world.engine, prompts, asked).values()
    return [  # every position is compared, forced ones too
        TrainingReply(prompt=by_id[raw.prompt_id], reply=read_reply(world.family, raw, grammar=False)[0])
        for raw in replies
    ]


def anchors(world: World) -> tuple[TrainingReply, ...]:
    return tuple(map(example_to_anchor, world.examples))


def tensors_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {file.name: load_file(file) for file in weight_files(folder)}


def learn(learner: Learner, world: World, steps: int) -> None:
    for step in range(1, steps + 1):
        learner.step(StepBatch(step=step, weight=0.0, rollouts=(), anchors=anchors(world)))


@pytest.mark.parametrize("grammar", [False, True])
def test_engine_and_learner_give_the_same_log_probs_before_and_after_an_update(world: World, grammar: bool) -> None:
    """The first round is with the weights that the engine itself read from the folder."""
    rollout = world.config.rollout.model_copy(update={"grammar": grammar})
    learner = Learner(world.config.model_copy(update={"rollout": rollout}), 0, 1)
    for seed in (0, 1):
        if version := world.engine.version + (grammar or seed > 0):
            published = learner.weights(version)
            assert published is not None
            assert asyncio.run(world.engine.update_weights(*published)) == version
        rollouts = sampled(world, grammar, seed)
        actual = parity.compare_logprobs(rollouts, learner.score(rollouts))
        assert actual.passed and set(actual.channels) >= set("TAB" if grammar else "TABE"), actual
        learn(learner, world, 3)
        assert not parity.compare_logprobs(
            rollouts, learner.score(rollouts)
        ).passed  # the next round has other weights


def test_an_export_has_the_folders_names_shapes_and_types_and_its_frozen_tensors_bit_for_bit(
    world: World, tmp_path: Path
) -> None:
    learner = Learner(world.config, 0, 1)
    learn(learner, world, 2)
    learner.export(tmp_path / "out")
    before, after = tensors_of(world.family.path), tensors_of(tmp_path / "out")
    assert {file: {n: (t.shape, t.dtype) for n, t in held.items()} for file, held in before.items()} == {
        file: {n: (t.shape, t.dtype) for n, t in held.items()} for file, held in after.items()
    }
    for file, held in before.items():
        for name, tensor in held.items():
            same = torch.equal(tensor, after[file][name])
            assert same == name.startswith(FROZEN[world.kind]), name
    others = {p.name for p in world.family.path.iterdir()} - set(before)
    assert {p.name for p in (tmp_path / "out").iterdir()} == others | set(before)
    assert all((tmp_path / "out" / n).read_bytes() == (world.family.path / n).read_bytes() for n in others)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert {name: file for file, held in after.items() for name in held} == index
    again = load_language_model(load_family(moved(world.config, tmp_path / "out").model)).state_dict()
    for name, tensor in full_tensors(learner.policy):
        assert torch.equal(again[name], tensor.bfloat16().float()), name


def moved(config: Config, path: Path) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": path})})
