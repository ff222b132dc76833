"""`wavgate train` on micro Plus and Boost models: two ranks, vLLM, written and spoken prompts, three steps, an export."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from actors.cluster import count_usable_cores
from conf.schema import ModelConfig
from rollout.loading import load_language_model
from speech.checkpoints.folder import weight_files
from speech.families import load_family
from tests.helpers.micro_vita_audio import write_checkpoint, write_codec
from tests.helpers.micro_world import trained, write_data

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(count_usable_cores() < 2, reason="two learner ranks need two cores"),
]


@pytest.fixture(scope="module", params=["plus", "boost"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of three prompts are heard: through the encoder by Plus, as codes by Boost."""
    folder = tmp_path_factory.mktemp("vita")
    base, codec = write_checkpoint(folder / "base", request.param), write_codec(folder / "codec.safetensors")
    return trained(
        folder, write_data(folder / "data", 6, reply_seconds=1.2),
        "model=vita_audio", f"model.path={base}", f"model.codec={codec}", "model.max_length=512",
        "data.eval_prompts=1", "algo=grpo_all", "algo.fixed_lambda=0.5", "algo.kl={text: 0.1, audio: 0.1}",
        "rollout.max_new_tokens=48",
    )  # fmt: skip


def test_engine_and_learner_agree_on_every_step_of_the_run(run: Path) -> None:
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert 0 < step["mismatch/text"] <= 2e-4
        assert step["loss/sft"] > 0


def test_records_hold_replies_in_the_models_grammar(run: Path) -> None:
    files = sorted((run / "rollouts").glob("*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(records) == 3 * 2 * 2
    for record in records:
        letters = record["channels"]
        assert letters.startswith("T") and set(letters) <= set("TABE") and len(letters) == len(record["ids"])
        assert record["well_formed"] == (record["finish"] == "stop")


def test_the_final_folder_loads_and_has_what_is_frozen_bit_for_bit_and_a_decoder_that_learnt(
    run: Path,
) -> None:
    base, final = run.parent.parent / "base", run / "final"
    family = load_family(ModelConfig(family="vita_audio", path=final))
    load_language_model(family)
    for file in weight_files(base):
        before, after = load_file(file), load_file(final / file.name)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
            assert family.tensor_names.module_names(name) or bool((after[name] == tensor).all())
        assert any(not bool((after[name] == tensor).all()) for name, tensor in before.items())
    others = [file for file in base.iterdir() if file.is_file() and file.suffix != ".safetensors"]
    assert all((final / file.name).read_bytes() == file.read_bytes() for file in others)
