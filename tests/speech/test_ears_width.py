"""An ear whose vectors the model cannot take is refused when it is made, whatever its family."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from conf.schema import ModelConfig
from speech.checkpoints.folder import weight_files
from speech.families import load_family
from tests.helpers import micro_kimi_audio as kimi_audio
from tests.helpers import micro_step_audio2 as step_audio2
from tests.helpers import micro_vita_audio as vita_audio
from tests.helpers.micro_world import clip

LAST = {  # the layer that the vectors come out of
    "kimi_audio": "model.vq_adaptor.layers.4",
    "step_audio2": "adapter.linear2",
    "vita_audio": "model.audio_projection.mlp.2",
}
WRITERS: dict[str, Callable[[Path], Path]] = {
    "kimi_audio": kimi_audio.write_checkpoint,
    "step_audio2": step_audio2.write_checkpoint,
    "vita_audio": lambda path: vita_audio.write_checkpoint(path, "plus"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("ears")
    return {name: write(made / name) for name, write in WRITERS.items()}


def refusal(name: str, folder: Path) -> str:
    with pytest.raises(ValueError) as refused:
        load_family(ModelConfig(family=name, path=folder)).audio_encoder()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    index = {}
    for file in weight_files(folder):
        tensors = change(load_file(file))
        index |= dict.fromkeys(tensors, file.name)
        save_file(tensors, file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("name", LAST)
def test_the_width_is_that_of_the_models_embeddings(folders: dict[str, Path], name: str) -> None:
    family = load_family(ModelConfig(family=name, path=folders[name]))
    assert family.audio_encoder().width == family.backbone["hidden_size"]
    assert family.audio_encoder().encode(clip(0.5, 1)).shape[1] == family.audio_encoder().width


@pytest.mark.parametrize("name", LAST)
def test_vectors_of_another_width_are_refused(tmp_path: Path, name: str) -> None:
    folder = WRITERS[name](tmp_path / "model")
    last = LAST[name]

    def narrow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t[:-2].clone() if n.startswith(f"{last}.") else t for n, t in tensors.items()}

    rewrite(folder, narrow)
    rule = "the audio encoder's vectors must have the model's hidden_size"
    hidden = json.loads((folder / "config.json").read_text())
    hidden = hidden.get("hidden_size") or hidden["text_config"]["hidden_size"]
    assert refusal(name, folder) == f"{folder}: {rule} {hidden}: got {hidden - 2}"


@pytest.mark.parametrize("name", LAST)
def test_a_checkpoint_without_that_layer_is_refused(tmp_path: Path, name: str) -> None:
    folder = WRITERS[name](tmp_path / "model")
    rewrite(folder, lambda tensors: {n: t for n, t in tensors.items() if not n.startswith(LAST[name])})
    assert refusal(name, folder) == f"{folder}: lacks the audio encoder's tensor {LAST[name]}.weight"
