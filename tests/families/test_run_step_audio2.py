"""Step-Audio 2 through the command line: three steps of the whole loop, two ranks, vLLM, spoken questions."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.cluster import count_usable_cores
from conf.schema import ModelConfig
from report.read import read_metric_rows, read_rollouts
from rollout.loading import load_language_model
from speech.families import load_family
from tests.helpers.micro_step_audio2 import write_checkpoint, write_codec
from tests.helpers.micro_world import trained, write_data

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(count_usable_cores() < 2, reason="two learner ranks need two cores"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step")
    write_codec(folder / "codec")
    write_checkpoint(folder / "model")
    return trained(
        folder, write_data(folder / "data", 6, reply_seconds=0.5),
        "model=step_audio2", f"model.path={folder / 'model'}", f"model.codec={folder / 'codec'}", "model.max_length=256",
        "data.eval_prompts=2", "algo=grpo_text", "rollout.max_new_tokens=64", "judge.semantic=0", "judge.acoustic=1",
    )  # fmt: skip


def test_replies_to_heard_prompts_keep_the_grammar_and_agree_with_the_learner(run: Path) -> None:
    family = load_family(ModelConfig(family="step_audio2", path=run.parent.parent / "model"))
    rows = read_metric_rows(run / "metrics.jsonl").rows
    assert [row["step"] for row in rows] == [1, 2, 3]
    for step in (1, 2, 3):
        records = read_rollouts(run / "rollouts" / f"step_{step:06d}.jsonl").rows
        assert records
        for record in records:
            assert family.channels.to_letters(record.ids) == record.channels
            grammar_states = family.interleave.grammar_states(record.ids)
            assert family.interleave.allowed_masks()[grammar_states, record.ids].all()
    known = [value for row in rows for name, value in row.items() if name.startswith("mismatch/")]
    assert known and all(value is not None and value <= 2e-4 for value in known)


def test_the_export_loads_back_and_its_encoder_is_untouched(run: Path) -> None:
    model, final = run.parent.parent / "model", run / "final"
    for file in model.glob("*.safetensors"):
        before, after = load_file(file), load_file(final / file.name)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
        frozen = {n for n in before if n.startswith(("encoder.", "adapter."))}
        assert all(torch.equal(before[n], after[n]) for n in frozen)
        assert not any(torch.equal(before[n], after[n]) for n in set(before) - frozen)
    load_language_model(load_family(ModelConfig(family="step_audio2", path=final)))
