"""A model that could not be run is refused by every command that runs one, in the same line."""

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.checks.model import CPU_HEAD_WIDTHS, check_attention_heads, check_ends
from commands.cli import main
from conf.load import load_config
from conf.schema import ModelConfig
from learner import export as exporting
from rollout.loading import load_language_model
from speech.checkpoints.copies import check_copies, unread_weights
from speech.checkpoints.finite import check_tensors_finite
from speech.checkpoints.folder import read_export_step, read_json, weight_files
from speech.codecs.cache import CodeCache
from speech.families import load_family
from tests.helpers import micro_glm4_voice as glm4_voice
from tests.helpers import micro_kimi_audio as kimi_audio
from tests.helpers import micro_step_audio2 as step_audio2
from tests.helpers import micro_vita_audio as vita_audio
from tests.helpers.sound_fixtures import write_micro_checkpoint

WRITE: dict[str, Callable[[Path], Path]] = {
    "tiny": write_micro_checkpoint,
    "vita_audio": vita_audio.write_checkpoint,
    "step_audio2": step_audio2.write_checkpoint,
    "kimi_audio": kimi_audio.write_checkpoint,
    "glm4_voice": glm4_voice.write_checkpoint,
}
Lines = Callable[..., set[str]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checked")
    return {name: write(root / name) for name, write in WRITE.items()}


@pytest.fixture
def lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], codecs: dict[str, Path]) -> Lines:
    """What each command says of a model; each exits with 2 and one line."""

    def refusals(name: str, folder: Path, **settings: object) -> set[str]:
        given = {"path": folder, "codec": codecs[name], "dtype": "float32", "max_length": 256} | settings
        options = [f"model={name}", "rollout.max_new_tokens=64"]
        options += [f"model.{key}={value}" for key, value in given.items()]
        actual = set()
        for command in (
            ["train", "--dry-run", f"run.root={tmp_path / 'runs'}"],
            ["train", f"run.root={tmp_path / 'runs'}"],
            ["say", "two", str(tmp_path / "out.wav")],
            ["eval"],
        ):
            assert main([*command, *options]) == 2
            line = capsys.readouterr().err
            assert line.count("\n") == 1, line
            actual.add(line.strip())
        assert not (tmp_path / "runs").exists() and not (tmp_path / "out.wav").exists()
        return actual

    return refusals


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("codecs")
    slow = glm4_voice.write_codec(root / "slow")
    return dict.fromkeys(WRITE, slow) | {"step_audio2": step_audio2.write_codec(root / "fast")}


def spoiled(folder: Path, value: float) -> str:
    """One number of one tensor of a folder's language model; the tensor's name."""
    file = sorted(folder.glob("model*.safetensors"))[0]
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    return f"{file}: weights must be finite: {name} holds a NaN or an infinity"


@pytest.mark.parametrize("name", WRITE)
def test_a_weight_that_is_no_number_is_refused_by_every_command(
    folders: dict[str, Path], tmp_path: Path, lines: Lines, name: str
) -> None:
    folder = Path(shutil.copytree(folders[name], tmp_path / name))
    rule = spoiled(folder, float("nan") if name == "tiny" else float("-inf"))
    assert lines(name, folder) == {f"model.path: {rule}"}


def test_a_weight_of_an_encoder_or_a_codec_that_is_no_number(
    folders: dict[str, Path], codecs: dict[str, Path], tmp_path: Path, lines: Lines
) -> None:
    folder = Path(shutil.copytree(folders["kimi_audio"], tmp_path / "kimi"))
    rule = spoiled(folder / "whisper-large-v3", float("nan"))
    assert lines("kimi_audio", folder) == {f"model.path: {rule}"}
    codec = Path(shutil.copytree(codecs["step_audio2"], tmp_path / "codec"))
    rule = spoiled(codec, float("inf"))
    assert lines("step_audio2", folders["step_audio2"], codec=codec) == {f"model.path: {rule}"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"num_attention_heads": 4, "num_key_value_heads": 2}, "must be one of 32, 64, 80"),
    "activation": ({"hidden_act": "gelu"}, 'hidden_act must be "silu": got "gelu"'),
    "quantisation": ({"quantization_config": {"bits": 4}}, "quantised weights cannot be trained"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_engine_runs_is_refused_by_every_command(
    folders: dict[str, Path], tmp_path: Path, lines: Lines, case: str
) -> None:
    folder = Path(shutil.copytree(folders["vita_audio"], tmp_path / "vita"))
    changes, rule = REFUSED[case]
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))
    (line,) = lines("vita_audio", folder)
    assert line.startswith(f"model.path: {folder / 'config.json'}: ") and rule in line


def test_heads_are_those_of_the_engine_and_the_machine(folders: dict[str, Path]) -> None:
    family = load_family(ModelConfig(family="kimi_audio", path=folders["kimi_audio"]))
    assert 64 // 4 not in CPU_HEAD_WIDTHS
    check_attention_heads(load_config(["rollout.engine=torch"]), family)
    check_attention_heads(load_config(["cluster=gpu1"]), family)  # a multiple of 8
    with pytest.raises(ValueError, match="got 16"):
        check_attention_heads(load_config([]), family)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_every_type_of_weights_is_looked_at(tmp_path: Path, dtype: torch.dtype, value: float | None) -> None:
    file = tmp_path / "model.safetensors"
    limits = torch.finfo(dtype)
    tensor = torch.tensor([[limits.max, limits.min], [limits.tiny, -0.0]], dtype=dtype)
    tensor[1, 1] = -limits.smallest_normal if value is None else value
    save_file({"w": tensor}, file)
    if value is None:
        check_tensors_finite(file)
        return
    with pytest.raises(ValueError, match="weights must be finite: w holds"):
        check_tensors_finite(file)


def test_a_pointer_in_place_of_weights_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    with pytest.raises(ValueError, match=f"{file}: must be a whole safetensors file"):
        check_tensors_finite(file)


def test_json_that_is_nested_too_deep_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ValueError, match=f"{file}: must be JSON"):
        read_json(file)


def test_large_numbers_are_numbers_and_scalars_are_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    wide = {
        "large": torch.full((8, 8), 3e38),
        "one": torch.tensor(2.0),
        "int": torch.ones(2, dtype=torch.int8),
    }
    save_file(wide | {"none": torch.zeros(0, 4)}, file)
    check_tensors_finite(file)
    save_file(wide | {"one": torch.tensor(float("nan"))}, file)
    with pytest.raises(ValueError, match="one holds a NaN"):
        check_tensors_finite(file)


def test_words_that_are_none_are_no_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("", "  \n"):
        assert main(["say", words, str(tmp_path / "out.wav")]) == 2
        assert capsys.readouterr().err == "prompt: must be words, or name a sound file: got nothing\n"


def test_eval_tells_what_it_cannot_do_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, rule in (
        (["--limit", "0"], "--limit: must be at least 1: got 0"),
        (["--json", str(tmp_path / "no" / "out.json")], "--json: must be a file in a folder that is there"),
        (["rollout.max_new_tokens=500"], "prompt + rollout.max_new_tokens must fit model.max_length=512"),
        (["--model", str(tmp_path), "model.path=x"], "model.path: is what --model names as well"),
        (["no.such=1"], "no.such: "),
        (["no-such.jsonl"], "no-such.jsonl"),
    ):
        assert main(["eval", *flags]) == 2
        assert rule in capsys.readouterr().err


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def exported(folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch, step: int = 0) -> Path:
    """By one rank without a process group."""
    family = load_family(ModelConfig(family="tiny", path=folder))
    monkeypatch.setattr(exporting, "barrier", lambda: None)
    policy: Any = SimpleNamespace(lm=load_language_model(family))
    exporting.export_policy(policy, family, target, rank=0, step=step)
    return target


@pytest.mark.usefixtures("umask")
def test_an_export_and_kept_codes_have_the_modes_of_new_files(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folders["tiny"], tmp_path / "start"))
    for file in folder.iterdir():
        file.chmod(0o600)
    folder.chmod(0o700)
    target = exported(folder, tmp_path / "out", monkeypatch)
    cache = CodeCache(tmp_path / "codes", size=4)
    cache.put("ab12", torch.zeros(2, dtype=torch.int32).numpy())
    made = [path for root in (target, tmp_path / "codes") for path in (root, *root.rglob("*"))]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert modes == {path: 0o750 if path.is_dir() else 0o640 for path in made}


def test_an_export_holds_no_weights_but_its_own_and_names_its_step(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(folders["tiny"], tmp_path / "start"))
    stale = (
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        *("model.fp16.safetensors", "consolidated.00.pth", "model.gguf", "flax_model.msgpack"),
        *("ema.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"),
        *("checkpoint-10/model.safetensors", "original/consolidated.00.pth", "onnx/model.onnx"),
    )
    for name in stale:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"old")
    assert set(unread_weights(folder)) == {name.partition("/")[0] for name in stale}
    (folder / ".git" / "lfs").mkdir(parents=True)
    (folder / ".git" / "lfs" / "blob").write_bytes(b"old")
    (folder / "vocoder").mkdir()
    (folder / "vocoder" / "model.pt").write_bytes(b"another model's")
    target = exported(folder, tmp_path / "out", monkeypatch, step=7)
    actual = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    before = {path.name for path in folders["tiny"].iterdir()}
    assert actual == before | {"vocoder/model.pt"}
    assert read_export_step(target) == 7 and read_export_step(folder) == 0


ONE, OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a single file beside an index": (
        lambda folder: save_file({"a": torch.ones(1)}, folder / "model.safetensors"),
        "model.safetensors: must not lie here unread: model.safetensors.index.json does not name it",
    ),
    "a shard that the index does not name": (
        lambda folder: save_file({"a": torch.ones(1)}, folder / "model-00003-of-00003.safetensors"),
        "model-00003-of-00003.safetensors: must not lie here unread",
    ),
    "an adapter": (
        lambda folder: save_file({"a": torch.ones(1)}, folder / "adapter_model.safetensors"),
        "adapter_model.safetensors: must not lie here unread: merge the adapter into the weights",
    ),
    "an adapter in another form": (
        lambda folder: torch.save({"a": torch.ones(1)}, folder / "adapter_model.bin"),
        "adapter_model.bin: must not lie here unread: merge the adapter into the weights",
    ),
    "an adapter's config": (
        lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        "adapter_config.json: must not lie here unread: merge the adapter into the weights",
    ),
    "the model again, later": (
        lambda folder: torch.save(
            {"model.norm.weight": torch.full((64,), 3.0)}, folder / "pytorch_model-00001-of-00001.bin"
        ),
        "pytorch_model-00001-of-00001.bin: must hold the same weights as ",
    ),
    "the model again, cut short": (
        lambda folder: half_an_archive(folder / "pytorch_model.bin"),
        "pytorch_model.bin: must be readable beside the weights that are read, or removed: ",
    ),
    "a shard that is not there": (
        lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
        "a checkpoint must hold model-00002-of-00002.safetensors",
    ),
    "a tensor in another shard than the index says": (
        lambda folder: moved(folder, lambda name, file: ONE if name == "lm_head.weight" else OTHER),
        f"must be in the file that model.safetensors.index.json names: it names {OTHER}",
    ),
    "a tensor that the index does not name": (
        lambda folder: moved(folder, lambda name, file: None if name == "lm_head.weight" else file),
        "lm_head.weight must be in the file that model.safetensors.index.json names: it names none",
    ),
}


def half_an_archive(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"cut")


def moved(folder: Path, place: Callable[[str, str], str | None]) -> None:
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    new = {name: place(name, file) for name, file in weight_map.items()}
    index.write_text(json.dumps({"weight_map": {name: file for name, file in new.items() if file}}))


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_whose_weight_files_say_two_things(
    folders: dict[str, Path], tmp_path: Path, lines: Lines, case: str
) -> None:
    change, rule = FOLDERS[case]
    folder = Path(shutil.copytree(folders["vita_audio"], tmp_path / "vita"))
    change(folder)
    (line,) = lines("vita_audio", folder)
    assert line.startswith("model.path: ") and rule in line


def test_the_same_model_in_another_form_may_lie_beside_it(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["vita_audio"], tmp_path / "vita"))
    tensors = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    wider = {name: tensor.double() for name, tensor in tensors.items()}
    torch.save(wider | {"rotary.inv_freq": torch.ones(2)}, folder / "pytorch_model.bin")
    check_copies(folder)
    tensors["model.norm.weight"].view(-1)[0] += 1
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.norm\.weight differs; remove the older one"):
        check_copies(folder)


def test_an_index_that_names_a_tensor_of_no_file(folders: dict[str, Path], tmp_path: Path, lines: Lines) -> None:
    folder = Path(shutil.copytree(folders["vita_audio"], tmp_path / "vita"))
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"extra": "model-00001-of-00002.safetensors"}}))
    rule = "names 1 tensors that its files do not hold: extra"
    assert lines("vita_audio", folder) == {f"model.path: {index}: {rule}"}


def test_a_tied_head_with_values_of_its_own_is_refused_and_one_that_is_the_same_is_not(
    tmp_path: Path,
) -> None:
    folder = write_micro_checkpoint(tmp_path / "tied")
    tensors = load_file(folder / "model.safetensors")
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, folder / "model.safetensors")
    family = load_family(ModelConfig(family="tiny", path=folder))
    lm = load_language_model(family)
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    table[-1, -1] += 1
    save_file(
        tensors | {"lm_head.weight": load_file(folder / "model.safetensors")["lm_head.weight"]},
        folder / "model.safetensors",
    )
    with pytest.raises(ValueError, match=r"tie_word_embeddings must be false: lm_head\.weight differs"):
        load_language_model(family)


@pytest.mark.parametrize("name", WRITE)
def test_an_id_that_ends_a_reply_elsewhere_and_not_here_is_refused(
    name: str, folders: dict[str, Path], codecs: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / name
    shutil.copytree(folders[name], folder)
    family = load_family(ModelConfig(family=name, path=folder, codec=codecs[name]))
    check_ends(family)
    (other,) = {0, 1} - set(family.stop_ids) - {1}
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": list(family.stop_ids)}))
    check_ends(family)
    file.write_text(json.dumps({"eos_token_id": [*family.stop_ids, other]}))
    if name in ("step_audio2", "kimi_audio"):  # whose published code does not read it
        check_ends(family)
        return
    with pytest.raises(ValueError, match=rf"generation_config.json: eos_token_id must be .*: got {other}$"):
        check_ends(family)
    for wrong in ([[other]], {"a": 1}, True):  # ids that are none
        file.write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(ValueError, match="eos_token_id must be of the ids that end a reply"):
            check_ends(family)
    file.unlink()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        before = file.read_text() if file.is_file() else "{}"
        for token in ("</s>", {"content": "<|begin_of_audio|>"}):
            file.write_text(json.dumps(json.loads(before) | {"eos_token": token}))
            with pytest.raises(ValueError, match=rf"{name}: eos_token must be of the tokens that end a reply"):
                check_ends(family)
        file.write_text(before)
    check_ends(family)
