"""GLM-4-Voice through vLLM and the learner: one distribution, before and after an update; exports like the folder."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.schema import Config, ModelConfig
from learner.parity import FLOAT32_BOUND, compare_logprobs
from learner.ranks import join_process_group, leave_process_group
from learner.step import Learner
from learner.types import StepBatch, TrainingReply
from rollout.loading import load_language_model
from rollout.types import Prompt, Sampling
from rollout.worker import read_reply
from speech.families import load_family
from speech.families.base import Family
from speech.turns import AudioPart, ReplyChunk, Turn
from tests.helpers import micro_glm4_voice as micro
from tests.helpers.learner_world import full_tensors
from tests.helpers.processes import HANG_S
from tests.helpers.rollout_models import collect
from tests.helpers.training_replies import written_reply
from tests.learner.test_learner_step import free_port


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    join_process_group(rank=0, world=1, address=f"127.0.0.1:{free_port()}", timeout_s=HANG_S)
    yield
    leave_process_group()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro.write_checkpoint(tmp_path_factory.mktemp("glm") / "base")


@pytest.fixture(scope="module")
def family(checkpoint: Path) -> Family:
    return load_family(ModelConfig(family="glm4_voice", path=checkpoint))


def learner(path: Path, *, grammar: bool = False) -> Learner:
    return Learner(
        Config.model_validate(
            {
                "run": {"name": "test"},
                "model": {"family": "glm4_voice", "path": str(path), "max_length": 512},
                "data": {"train": "x", "validation": "x", "test": "x"},
                "rollout": {"max_new_tokens": 90, "grammar": grammar},
                "learner": {"warmup_steps": 0, "lr": 1e-2, "tokens_per_microbatch": 1024},
                "log": {"diagnose_every": 0},
            }
        ),
        rank=0,
        world=1,
    )


def learn(item: Learner, family: Family) -> None:
    """Two steps on reference replies."""
    target = family.encode_target([ReplyChunk(text="the answer is two", codes=tuple(range(30)))])
    anchor = written_reply("a", asked(family)[0].ids, target, family.channels.to_letters(target))
    for step in (1, 2):
        item.step(StepBatch(step=step, weight=0.0, rollouts=(), anchors=(anchor,)))


def asked(family: Family) -> list[Prompt]:
    turns = [
        Turn.from_parts("user", AudioPart(codes=tuple(range(n + 1))))
        if n % 2
        else Turn.from_parts("user", "two " * (n + 1))
        for n in range(6)
    ]
    return [Prompt(id=f"p{n}", ids=family.encode_prompt([turn]).ids) for n, turn in enumerate(turns)]


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Any]:
    from rollout.vllm_engine import VllmEngine, VllmSettings

    model = ModelConfig(family="glm4_voice", path=family.path, max_length=512)
    engine = VllmEngine(VllmSettings(model=model, grammar=True, kv_cache_mb=32), family)
    yield engine
    engine.close()


@pytest.mark.parametrize("grammar", [False, True])
def test_engine_and_learner_agree_on_every_channel_before_and_after_an_update(
    engine: Any, family: Family, grammar: bool
) -> None:
    mine = learner(family.path, grammar=grammar)
    if grammar:
        push(engine, mine)
    check_parity(engine, mine, family, grammar)
    learn(mine, family)
    push(engine, mine)
    check_parity(engine, mine, family, grammar)


def push(engine: Any, mine: Learner) -> None:
    sent = mine.weights()
    assert sent is not None
    assert asyncio.run(engine.update_weights(*sent)) == mine.version


def check_parity(engine: Any, mine: Learner, family: Family, grammar: bool) -> None:
    sampling = Sampling(group_size=4, temperature=1.0, max_new_tokens=90, seed=3, grammar=grammar)
    replies = collect(engine, asked(family), sampling).values()
    prompts = {prompt.id: prompt for prompt in asked(family)}
    rows = [
        TrainingReply(prompt=prompts[raw.prompt_id], reply=read_reply(family, raw, grammar=False)[0])
        for raw in replies
    ]
    parity = compare_logprobs(rows, mine.score(rows), bound=FLOAT32_BOUND)
    assert parity.passed, parity
    assert set("TAE") <= set(parity.channels)
    if grammar:
        assert all(family.parse_reply(raw.ids).well_formed == (raw.ids[-1] in family.stop_ids) for raw in replies)


def test_an_export_has_the_files_names_shapes_and_dtypes_of_its_start(tmp_path: Path) -> None:
    start = micro.write_checkpoint(tmp_path / "start", dtype=torch.bfloat16)
    family = load_family(ModelConfig(family="glm4_voice", path=start))
    mine = learner(start)
    mine.export(tmp_path / "same")
    learn(mine, family)
    mine.export(tmp_path / "learnt")
    before, same, after = (micro.read_tensors(tmp_path / name) for name in ("start", "same", "learnt"))
    for item in (same, after):
        assert {name: (t.shape, t.dtype) for name, t in item.items()} == {
            name: (t.shape, t.dtype) for name, t in before.items()
        }
    assert all(torch.equal(before[name], same[name]) for name in before)
    assert {name for name in before if torch.equal(before[name], after[name])} == {micro.BUFFER}
    others = {file.name for file in start.iterdir() if file.suffix != ".safetensors"}
    assert all((tmp_path / "learnt" / name).read_bytes() == (start / name).read_bytes() for name in others)
    again = load_language_model(load_family(ModelConfig(family="glm4_voice", path=tmp_path / "learnt")))
    held = dict(full_tensors(mine.policy))
    assert held.keys() == again.state_dict().keys()
    assert all(torch.equal(t, held[name].bfloat16().float()) for name, t in again.state_dict().items())
