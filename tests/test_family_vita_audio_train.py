"""`wavgate train` on a micro Plus model: two ranks, vLLM, written and spoken prompts, three steps, an export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from actors.cluster import cores
from speech.checkpoint import weight_files
from tests.families.vita_audio import write_checkpoint, write_codec, write_manifest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(cores() < 2, reason="two learner ranks need two cores")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained: runs/plus. The encoder's audio is in two of three prompts; one rank may have none of it."""
    folder = tmp_path_factory.mktemp("vita")
    manifest = write_manifest(folder / "data", 6)
    settings = [
        "experiment=smoke", "model=vita_audio", f"model.path={write_checkpoint(folder / 'base', 'plus')}",
        f"model.codec={write_codec(folder / 'codec.safetensors')}", "model.dtype=float32",
        "model.max_length=512", "data=manifest", "data.eval_prompts=1", "algo=grpo_all", "algo.fixed_lambda=0.5",
        "algo.kl={text: 0.1, audio: 0.1}", "rollout.max_new_tokens=48", "rollout.grammar=true", "run.name=plus",
        "learner.ranks=2", "learner.timeout_s=60", f"run.root={folder / 'runs'}",
        *(f"data.{split}={manifest}" for split in ("train", "validation", "test")),
    ]  # fmt: skip
    command = [sys.executable, "-m", "actors.cli", "train", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_engine_and_learner_agree_on_every_step_of_the_run(world: Path) -> None:
    steps = [json.loads(line) for line in (world / "runs/plus/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert 0 < step["mismatch/text"] <= 2e-4
        assert step["loss/sft"] > 0


def test_records_hold_replies_in_the_models_grammar(world: Path) -> None:
    files = sorted((world / "runs/plus/rollouts").glob("*.jsonl"))
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(records) == 3 * 2 * 2
    for record in records:
        letters = record["channels"]
        assert letters.startswith("T") and set(letters) <= set("TABE") and len(letters) == len(record["ids"])
        assert record["well_formed"] == (record["finish"] == "stop")


def test_the_final_folder_has_the_encoder_bit_for_bit_and_a_decoder_that_learnt(world: Path) -> None:
    final = world / "runs/plus/final"
    for file in weight_files(world / "base"):
        before, after = load_file(file), load_file(final / file.name)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            heard = name.startswith(("model.audio_model.", "model.audio_projection."))
            assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
            assert not heard or bool((after[name] == tensor).all())
        assert any(not bool((after[name] == tensor).all()) for name, tensor in before.items())
    assert (final / "am.mvn").read_bytes() == (world / "base" / "am.mvn").read_bytes()
