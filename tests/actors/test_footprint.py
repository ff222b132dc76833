"""The memory of a run is counted in numbers of the model, not in bytes of its files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.checks import memory as footprint
from actors.checks.memory import BYTES_PER_NUMBER, MIB, estimate_memory
from conf.load import load_config
from conf.schema import Config
from speech.families import load_family
from speech.families.base import Family
from tests.helpers import micro_glm4_voice as glm4_voice
from tests.helpers.micro_kimi_audio import write_checkpoint, write_codec


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    root = tmp_path_factory.mktemp("footprint")
    write_codec(root / "codec")
    return {dtype: write_checkpoint(root / str(dtype), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


def settings(folder: Path, *more: str) -> tuple[Config, Family]:
    config = load_config(["model=kimi_audio", f"model.path={folder}", f"model.codec={folder.parent / 'codec'}", *more])
    return config, load_family(config.model)


def numbers(folder: Path) -> tuple[int, int]:
    """(numbers of the language model, of the ear: Whisper's encoder and the adaptor)."""
    stored: dict[str, Any] = {k: v for f in folder.rglob("*.safetensors") for k, v in load_file(f).items()}
    ear = sum(t.numel() for name, t in stored.items() if "vq_adaptor" in name or "encoder." in name)
    unheard = sum(t.numel() for name, t in stored.items() if "decoder." in name)  # Whisper's
    assert ear and unheard
    return sum(t.numel() for t in stored.values()) - ear - unheard, ear


def test_masters_gradients_and_moments_are_float32_whatever_is_stored(
    folders: dict[torch.dtype, Path],
) -> None:
    actual = {dtype: estimate_memory(*settings(folder)) for dtype, folder in folders.items()}
    assert actual[torch.float32]["learner"] == actual[torch.bfloat16]["learner"]
    model, _ = numbers(folders[torch.float32])
    one, more = (
        estimate_memory(*settings(folders[torch.bfloat16], f"learner.ranks={ranks}"))["learner"] for ranks in (1, 2)
    )
    rank = more - one  # what a further rank costs: a process, its work, a model gathered, its gradients
    assert one - rank == model * (4 + 4 + 8 + 4) + 2 * 2 * model


def test_no_start_policy_is_counted_where_none_is_held(folders: dict[torch.dtype, Path]) -> None:
    folder = folders[torch.float32]
    held, none = (
        estimate_memory(*settings(folder, f"log.diagnose_every={every}", "algo=sft"))["learner"] for every in (5, 0)
    )
    assert held - none == 4 * numbers(folder)[0]


def test_engines_hold_the_model_in_its_type_and_a_cache_of_every_slot(
    folders: dict[torch.dtype, Path],
) -> None:
    folder = folders[torch.float32]
    model, ear = numbers(folder)
    codec = (folder.parent / "codec" / "codec.safetensors").stat().st_size
    slots = 5 * 2 * (3 + 2) * 32 * 256 // 2  # replies * (keys, values) * layers * width of a key * steps
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        how = [f"model.dtype={dtype}", "rollout.max_num_seqs=5", "model.max_length=256", "rollout.workers=2"]
        how += ["rollout.max_new_tokens=160"]
        memory = estimate_memory(*settings(folder, *how))
        assert memory["rollout"] == 2 * (700 * MIB + (model + slots) * size + 4 * ear + codec)
        assert memory["ray"] == 600 * MIB + model * size


def test_a_decoder_with_other_tensor_names_has_a_cache_too(tmp_path: Path) -> None:
    codec = glm4_voice.write_codec(tmp_path / "codec")
    model = glm4_voice.write_checkpoint(tmp_path / "model")
    how = ["model=glm4_voice", f"model.path={model}", f"model.codec={codec}", "rollout.engine=torch"]
    how += ["model.max_length=512", "rollout.max_new_tokens=160"]
    small, large = (
        estimate_memory(config, load_family(config.model))["rollout"]
        for config in (load_config([*how, f"rollout.max_num_seqs={n}"]) for n in (1, 2))
    )
    stored = glm4_voice.read_tensors(model)
    fused = sum(t.shape[0] for name, t in stored.items() if name.endswith("query_key_value.weight"))
    queries = sum(t.shape[1] for name, t in stored.items() if name.endswith("self_attention.dense.weight"))
    assert large - small == 512 * (fused - queries) * BYTES_PER_NUMBER["bfloat16"]


def test_a_container_has_no_more_memory_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = footprint.read_physical_memory()
    monkeypatch.setattr(footprint, "CONTAINER_LIMIT_FILE", tmp_path / "memory.max")
    collected = []
    for limit in ("1073741824", "max", str(1 << 60)):
        footprint.CONTAINER_LIMIT_FILE.write_text(f"{limit}\n")
        collected.append(footprint.read_physical_memory())
    assert collected[0] == 1 << 30 and collected[1] == collected[2] >= whole
