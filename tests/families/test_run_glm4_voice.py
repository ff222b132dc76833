"""GLM-4-Voice through the command line: three steps of the whole loop, two ranks, vLLM, an export that loads back."""

import math
from pathlib import Path

import pytest
import torch

from actors.cluster import count_usable_cores
from conf.schema import ModelConfig
from learner.parity import FLOAT32_BOUND
from report.read import read_metric_rows, read_rollouts
from rollout.loading import load_language_model
from speech.families import load_family
from tests.helpers.micro_glm4_voice import BUFFER, read_tensors, write_checkpoint, write_codec
from tests.helpers.micro_world import trained, write_data

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(count_usable_cores() < 2, reason="two learner ranks need two cores"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm")
    base, codec = write_checkpoint(folder / "model"), write_codec(folder / "codec")
    return trained(
        folder, write_data(folder / "data", 4, reply_seconds=2.4),
        "model=glm4_voice", f"model.path={base}", f"model.codec={codec}", "model.max_length=512",
        "algo=grpo_all", "rollout.max_new_tokens=60", "log.diagnose_every=0", "judge.noise=1",
    )  # fmt: skip


def test_engine_and_learner_agree_on_every_reply_of_the_run(run: Path) -> None:
    rows = read_metric_rows(run / "metrics.jsonl").rows
    assert [row["policy_version"] for row in rows] == [1, 2, 3]
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    records = [item for step in (1, 2, 3) for item in read_rollouts(run / f"rollouts/step_{step:06d}.jsonl").rows]
    assert len(records) == 12
    assert all(item.channels.startswith("T") and set(item.channels) <= set("TAE") for item in records)
    gaps = [
        abs(a - b)
        for item in records
        for a, b in zip(item.behaviour_logps, item.learner_logps or (), strict=True)
        if a is not None and b is not None
    ]
    assert gaps and max(gaps) <= FLOAT32_BOUND


def test_the_export_loads_back_with_everything_learnt_but_the_buffer(run: Path) -> None:
    before, after = read_tensors(run.parent.parent / "model"), read_tensors(run / "final")
    assert before.keys() == after.keys()
    assert all((before[name].shape, before[name].dtype) == (t.shape, t.dtype) for name, t in after.items())
    assert {name for name in before if torch.equal(before[name], after[name])} == {BUFFER}
    load_language_model(load_family(ModelConfig(family="glm4_voice", path=run / "final")))
