"""Continuous audio in the learner: a rank without any takes part, and the gradient is that of one plain model."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from learner.batch import plan_microbatches
from learner.objectives import build_training_rows
from learner.rows import SamplingSetup
from rollout.loading import load_language_model
from speech.families import load_family
from speech.families.base import Family
from tests.helpers import micro_kimi_audio as kimi_audio
from tests.helpers import micro_step_audio2 as step_audio2
from tests.helpers import micro_vita_audio as vita_audio
from tests.helpers.learner_world import relative_error
from tests.helpers.processes import HANG_S
from tests.helpers.vector_prompt_ranks import batch, settings

ROOT = Path(__file__).parents[2]


WRITE: dict[str, Callable[[Path], Path]] = {
    "step_audio2": step_audio2.write_checkpoint,
    "kimi_audio": kimi_audio.write_checkpoint,
    "vita_audio": partial(vita_audio.write_checkpoint, kind="plus"),
}
FROZEN = ("encoder.", "adapter.", "model.vq_adaptor.", "model.audio_model.", "model.audio_projection.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sessions have run in them: of one rank and of two."""
    root = tmp_path_factory.mktemp("heard")
    for name, write in WRITE.items():
        (root / name).mkdir()
        write(root / name / "model")
    for world in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "tests.helpers.vector_prompt_ranks", str(root)]
        ranks = [subprocess.Popen([*command, str(rank), str(world), str(port)], cwd=ROOT) for rank in range(world)]
        assert [rank.wait(HANG_S) for rank in ranks] == [0] * world
    return root


@pytest.fixture(scope="module", params=WRITE)
def folder(request: pytest.FixtureRequest, folders: Path) -> Path:
    """Of each family that hears vectors."""
    return folders / str(request.param)


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return load_family(settings(folder).model)


def read_figures(folder: Path, world: int) -> Any:
    return json.loads((folder / f"found_by_{world}.json").read_text())


def test_one_of_two_ranks_has_no_audio(folder: Path, family: Family) -> None:
    rows = build_training_rows(batch(family), settings(folder).algo, SamplingSetup(max_new_tokens=64, temperature=1.0))
    held = plan_microbatches(rows, ranks=2, budget=256, streams=family.streams)
    heard = [[rows[i].features is not None for micro in part for i in micro] for part in held]
    assert heard == [[True], [False, False]]


def test_the_number_of_ranks_changes_nothing(folder: Path) -> None:
    one, two = read_figures(folder, 1), read_figures(folder, 2)
    for step in ("mixed", "sft"):
        for name in ("loss/total", "loss/sft", "grad_norm"):
            assert two[step][name] == pytest.approx(one[step][name], rel=1e-5), name
    assert two["logps"]["r/0"] == pytest.approx(one["logps"]["r/0"], rel=1e-5)
    gradients = [load_file(folder / f"gradient_by_{world}.safetensors") for world in (1, 2)]
    assert relative_error(gradients[1], gradients[0]) < 1e-5


def test_the_gradient_is_that_of_a_plain_model_over_embeddings(folder: Path, family: Family) -> None:
    if family.streams > 1:
        pytest.skip("two tables make its embeddings: tests/families/test_family_kimi_audio.py")
    model = load_language_model(family).double()
    losses = []
    for anchor in batch(family, rollouts=False).anchors:
        embedded = model.get_input_embeddings()(torch.tensor(anchor.prompt.ids + anchor.reply.ids))
        if anchor.prompt.features is not None:
            vectors = torch.from_numpy(anchor.prompt.features.vectors).double()
            embedded = embedded.index_copy(0, torch.tensor(anchor.prompt.features.steps), vectors)
        logits = model(inputs_embeds=embedded[None]).logits[0, len(anchor.prompt.ids) - 1 : -1]
        counted = torch.tensor([letter != "P" for letter in anchor.reply.channels])
        losses.append(F.cross_entropy(logits[counted], torch.tensor(anchor.reply.ids)[counted]))
    torch.stack(losses).mean().backward()
    gradient = load_file(folder / "gradient_by_2.safetensors")
    expected = {name: torch.zeros_like(p) if p.grad is None else 0.1 * p.grad for name, p in model.named_parameters()}
    assert relative_error(gradient, expected) < 1e-5
    heard = next(anchor.prompt for anchor in batch(family).anchors if anchor.prompt.features is not None)
    assert heard.features is not None
    place = heard.ids[heard.features.steps[0]]
    table = gradient["model.embed_tokens.weight"]
    assert table.abs().sum(1)[place] == 0 < table.abs().sum(1)[family.stop_ids[0]]


def test_frozen_parts_are_bit_identical_after_training(folder: Path) -> None:
    learnt: dict[str, bool] = {}
    for file in (folder / "model").glob("*.safetensors"):
        before, after = load_file(file), load_file(folder / "exported_by_2" / file.name)
        learnt |= {name: not torch.equal(tensor, after[name]) for name, tensor in before.items()}
    frozen = {name for name in learnt if name.startswith(FROZEN)}
    assert frozen and not any(learnt[name] for name in frozen)
    assert all(learnt[name] for name in learnt.keys() - frozen if not name.endswith("norm.weight"))
