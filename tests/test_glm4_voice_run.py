"""GLM-4-Voice where it runs: vLLM against the learner, exports, and a whole training run on two ranks."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.cluster import cores
from conf.schema import Config, ModelConfig
from learner.parity import FLOAT32_BOUND, compare
from learner.ranks import connect, disconnect
from learner.step import Learner
from learner.types import Anchor, Rollout, StepBatch
from report.read import metric_rows, rollouts
from rollout.language_model import load_language_model
from rollout.types import Prompt, Sampling
from speech.families import load_family
from speech.families.base import Family
from speech.turns import Chunk, Heard, Turn
from tests.families import glm4_voice as micro
from tests.rollout_models import collect
from tests.test_learner_step import free_port

ROOT = Path(__file__).parent.parent
BUFFER = "transformer.rotary_pos_emb.inv_freq"  # in the folder, not in the learner


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    connect(rank=0, world=1, address=f"127.0.0.1:{free_port()}", timeout_s=30)
    yield
    disconnect()


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


def learn(one: Learner, family: Family) -> None:
    """Two steps on reference replies."""
    target = family.target([Chunk(text="the answer is two", codes=tuple(range(30)))])
    anchor = Anchor(
        prompt_id="a", prompt_ids=asked(family)[0].ids, ids=target, channels=family.channels.letters(target)
    )
    for step in (1, 2):
        one.step(StepBatch(step=step, weight=0.0, rollouts=(), anchors=(anchor,)))


def asked(family: Family) -> list[Prompt]:
    turns = [
        Turn.of("user", Heard(codes=tuple(range(n + 1)))) if n % 2 else Turn.of("user", "two " * (n + 1))
        for n in range(6)
    ]
    return [Prompt(id=f"p{n}", ids=family.prompt([turn]).ids) for n, turn in enumerate(turns)]


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
    prompts = {prompt.id: prompt.ids for prompt in asked(family)}
    rows = [
        Rollout(
            prompt_id=reply.prompt_id,
            index=reply.index,
            prompt_ids=prompts[reply.prompt_id],
            ids=reply.ids,
            logps=reply.logps,
            channels=family.channels.letters(reply.ids),
            sampled=(True,) * len(reply.ids),
        )
        for reply in replies
    ]
    found = compare(rows, mine.score(rows), bound=FLOAT32_BOUND)
    assert found.passed, found
    assert set("TAE") <= set(found.channels)
    if grammar:
        assert all(family.split(row.ids).well_formed == (row.ids[-1] in family.stop_ids) for row in rows)


def test_an_export_has_the_files_names_shapes_and_dtypes_of_its_start(tmp_path: Path) -> None:
    start = micro.write_checkpoint(tmp_path / "start", dtype=torch.bfloat16)
    family = load_family(ModelConfig(family="glm4_voice", path=start))
    mine = learner(start)
    mine.export(tmp_path / "same")
    learn(mine, family)
    mine.export(tmp_path / "learnt")
    before, same, after = (tensors(tmp_path / name) for name in ("start", "same", "learnt"))
    for found in (same, after):
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            name: (t.shape, t.dtype) for name, t in before.items()
        }
    assert all(torch.equal(before[name], same[name]) for name in before)
    assert {name for name in before if torch.equal(before[name], after[name])} == {BUFFER}
    others = {file.name for file in start.iterdir() if file.suffix != ".safetensors"}
    assert all((tmp_path / "learnt" / name).read_bytes() == (start / name).read_bytes() for name in others)
    again = load_language_model(load_family(ModelConfig(family="glm4_voice", path=tmp_path / "learnt")))
    held = dict(mine.policy.full_tensors())
    assert held.keys() == again.state_dict().keys()
    assert all(torch.equal(t, held[name].bfloat16().float()) for name, t in again.state_dict().items())


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = {file: load_file(folder / file) for file in set(index.values())}
    return {name: found[file][name] for name, file in index.items()}


@pytest.mark.skipif(cores() < 2, reason="two learner ranks need two cores")
def test_a_run_trains_and_exports(checkpoint: Path, tmp_path: Path) -> None:
    codec, data = micro.write_codec(tmp_path / "codec"), micro.write_data(tmp_path / "data")
    settings = [
        "model=glm4_voice", f"model.path={checkpoint}", f"model.codec={codec}", "model.dtype=float32",
        "model.max_length=512", "data=manifest",
        *(f"data.{split}={data / split}.jsonl" for split in ("train", "validation", "test")),
        "experiment=smoke", "run.name=glm", f"run.root={tmp_path}", "learner.ranks=2", "rollout.grammar=true",
        "rollout.max_new_tokens=60", "log.diagnose_every=0", "algo=grpo_all", "judge.noise=1",
    ]  # fmt: skip
    done = wavgate("train", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "glm"
    rows = metric_rows(run / "metrics.jsonl").rows
    assert [row["policy_version"] for row in rows] == [1, 2, 3]
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    records = [one for step in (1, 2, 3) for one in rollouts(run / f"rollouts/step_{step:06d}.jsonl").rows]
    assert len(records) == 12
    assert all(one.channels.startswith("T") and set(one.channels) <= set("TAE") for one in records)
    gaps = [
        abs(a - b)
        for one in records
        for a, b in zip(one.behaviour_logps, one.learner_logps or (), strict=True)
        if a is not None and b is not None
    ]
    assert gaps and max(gaps) <= FLOAT32_BOUND
    before, after = tensors(checkpoint), tensors(run / "final")
    assert before.keys() == after.keys()
    assert {name for name in before if torch.equal(before[name], after[name])} == {BUFFER}
    assert load_family(ModelConfig(family="glm4_voice", path=run / "final")).path == run / "final"


def wavgate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "actors.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
