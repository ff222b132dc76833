"""Kimi-Audio through the command line: three steps of the whole loop, two ranks, both streams, spoken questions."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.cluster import count_usable_cores
from report.read import read_metric_rows, read_rollouts
from rollout.loading import load_language_model
from speech.families import load_family
from tests.families.test_family_kimi_audio import model
from tests.helpers.micro_kimi_audio import write_checkpoint, write_codec
from tests.helpers.micro_world import trained, write_data

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(count_usable_cores() < 2, reason="two learner ranks need two cores"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kimi")
    write_codec(folder / "codec")
    write_checkpoint(folder / "base")
    return trained(
        folder, write_data(folder / "data", 6, reply_seconds=2.0),
        "model=kimi_audio", f"model.path={folder / 'base'}", f"model.codec={folder / 'codec'}", "model.max_length=256",
        "data.eval_prompts=2", "algo=grpo_all", "rollout.max_new_tokens=64", "judge.semantic=0", "judge.acoustic=1",
        "learner.tokens_per_microbatch=512",
    )  # fmt: skip


def test_both_streams_are_sampled_under_the_grammar_and_scored_by_the_learner(run: Path) -> None:
    family = load_family(model(run.parent.parent / "base"))
    rows = read_metric_rows(run / "metrics.jsonl").rows
    assert [row["step"] for row in rows] == [1, 2, 3]
    spoken = 0
    for step in (1, 2, 3):
        records = read_rollouts(run / "rollouts" / f"step_{step:06d}.jsonl").rows
        assert records
        for record in records:
            assert family.channels.to_letters(record.ids) == record.channels
            assert family.interleave.allowed_masks()[family.interleave.grammar_states(record.ids), record.ids].all()
            assert record.channels[1:12:2] == "P" * 6
            spoken += "A" in record.channels
    assert spoken
    known = [value for row in rows for name, value in row.items() if name.startswith("mismatch/")]
    assert known and all(value is not None and value <= 2e-4 for value in known)


def test_the_export_loads_back_and_what_hears_is_untouched(run: Path) -> None:
    start, final = run.parent.parent / "base", run / "final"
    for file in start.glob("*.safetensors"):
        before, after = load_file(file), load_file(final / file.name)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
        assert all(torch.equal(before[n], after[n]) == ("vq_adaptor" in n) for n in before)
    ear = Path("whisper-large-v3") / "model.safetensors"
    assert (start / ear).read_bytes() == (final / ear).read_bytes()
    load_language_model(load_family(model(final, codec=start.parent / "codec")))
