"""What no family can use is refused before anything starts: exit 2, and one line that names file and rule."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands.cli import main
from conf.schema import ModelConfig
from speech.families import family_names, load_family
from tests.helpers import micro_glm4_voice as glm4_voice
from tests.helpers import micro_kimi_audio as kimi_audio
from tests.helpers import micro_step_audio2 as step_audio2
from tests.helpers import micro_vita_audio as vita_audio
from tests.helpers.sound_fixtures import write_micro_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What differs between families. ``rows``: what config.json calls the rows of the embedding."""

    write: Callable[[Path], Path]
    tokenizer: tuple[str, ...]
    rows: str = "vocab_size"
    nested: str | None = None  # the part of config.json that has it
    shipped_codec: str | None = None  # in the checkpoint's own folder
    rate: float | None = 12.5  # codes per second that its models were trained with
    own_code: str | None = None  # a rule of config.json that the remote code could break
    heard: str | None = None  # what its audio encoder cannot do without


FAMILIES = {
    "tiny": Case(
        write=write_micro_checkpoint,
        tokenizer=("tokenizer.json",),
        shipped_codec="codec.safetensors",
        rate=None,
        own_code="auto_map",
    ),
    "glm4_voice": Case(
        write=glm4_voice.write_checkpoint,
        tokenizer=("tokenizer.model", "tokenizer_config.json"),
        rows="padded_vocab_size",
        own_code="original_rope",
    ),
    "step_audio2": Case(
        write=step_audio2.write_checkpoint,
        tokenizer=("tokenizer.json",),
        nested="text_config",
        heard="n_mels",
        shipped_codec="token2wav",
        rate=25.0,
    ),
    "kimi_audio": Case(write=kimi_audio.write_checkpoint, tokenizer=("tiktoken.model",), heard="whisper-large-v3"),
    "vita_audio": Case(
        write=partial(vita_audio.write_checkpoint, kind="plus"), tokenizer=("tokenizer.json",), heard="am.mvn"
    ),
}
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: case.write(root / name) for name, case in FAMILIES.items()}


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[float | None, Path]:
    """By codes per second; each has as many codes as every family's fixture."""
    root = tmp_path_factory.mktemp("codecs")
    slow, fast = glm4_voice.write_codec(root / "slow"), step_audio2.write_codec(root / "fast")
    return {None: slow, 12.5: slow, 25.0: fast}


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path, codecs: dict[float | None, Path]) -> Refusal:
    """The one line with which a dry run ends."""

    def refused(family: str, path: Path, **settings: object) -> str:
        codec = codecs[FAMILIES[family].rate]
        given = {"path": path, "codec": codec, "dtype": "float32", "max_length": 256} | settings
        options = [f"model.{name}={value}" for name, value in given.items() if value is not None]
        root = tmp_path / "runs"
        options += [f"run.root={root}", "rollout.max_new_tokens=160"]
        code = main(["train", "--dry-run", f"model={family}", *options])
        err = capsys.readouterr().err
        assert code == 2 and err.count("\n") == 1 and not root.exists(), err
        assert err.startswith("model.path: ")
        return err.removeprefix("model.path: ").strip()

    return refused


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def copy(checkpoints: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(checkpoints[name], tmp_path / name))


def test_every_family_is_here() -> None:
    assert sorted(FAMILIES) == family_names()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_checkpoint_is_taken(
    checkpoints: dict[str, Path], codecs: dict[float | None, Path], name: str
) -> None:
    codec = codecs[FAMILIES[name].rate]
    family = load_family(ModelConfig(family=name, path=checkpoints[name], codec=codec))
    assert family.codec().size == len(family.code_ids)


@pytest.mark.parametrize(("name", "other"), list(permutations(FAMILIES, 2)))
def test_a_checkpoint_of_another_family(checkpoints: dict[str, Path], refusal: Refusal, name: str, other: str) -> None:
    message = refusal(name, checkpoints[other])
    assert message.startswith(f"{checkpoints[other]}/") and "must" in message


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, c in FAMILIES.items() for file in c.tokenizer])
def test_a_tokenizer_file_that_is_not_there(
    copy: Callable[[str], Path], refusal: Refusal, name: str, file: str
) -> None:
    folder = copy(name)
    (folder / file).unlink()
    assert refusal(name, folder) == f"{folder / file}: a checkpoint folder must hold this file"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_vocabulary_that_ends_before_the_last_code(copy: Callable[[str], Path], refusal: Refusal, name: str) -> None:
    folder, rows, nested = copy(name), FAMILIES[name].rows, FAMILIES[name].nested
    last = load_family(ModelConfig(family=name, path=folder)).vocabulary.largest
    config = json.loads((folder / "config.json").read_text())
    edit(
        folder / "config.json",
        **({"vocab_size": last, rows: last} if nested is None else {nested: config[nested] | {rows: last}}),
    )
    rule = f"{rows} must exceed the tokenizer's largest id {last}: got {last}"
    assert refusal(name, folder) == f"{folder / 'config.json'}: {rule}"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_codec_with_another_number_of_codes(
    checkpoints: dict[str, Path], refusal: Refusal, tmp_path: Path, name: str
) -> None:
    small = glm4_voice.write_codec(tmp_path / "small", size=8)
    rule = "the codec must have as many codes as the tokenizer: got 8, tokenizer 32"
    assert refusal(name, checkpoints[name], codec=small) == f"{small}: {rule}"


@pytest.mark.parametrize("name", [name for name, case in FAMILIES.items() if case.rate])
def test_a_codec_of_another_rate(
    checkpoints: dict[str, Path], codecs: dict[float | None, Path], refusal: Refusal, name: str
) -> None:
    wanted = FAMILIES[name].rate
    other = 25.0 if wanted == 12.5 else 12.5
    rule = f"the codec must have {wanted:g} codes per second, as {name} models do: got {other:g}"
    assert refusal(name, checkpoints[name], codec=codecs[other]) == f"{codecs[other]}: {rule}"


@pytest.mark.parametrize("name", [name for name, case in FAMILIES.items() if not case.shipped_codec])
def test_no_codec(checkpoints: dict[str, Path], name: str) -> None:
    family = load_family(ModelConfig(family=name, path=checkpoints[name]))
    with pytest.raises(ValueError, match=f"model.codec must name a codec's local folder for {name}"):
        family.codec()


@pytest.mark.parametrize("name", [name for name, case in FAMILIES.items() if case.own_code])
def test_a_config_that_only_the_checkpoints_own_code_can_follow(
    copy: Callable[[str], Path], refusal: Refusal, name: str
) -> None:
    folder, rule = copy(name), FAMILIES[name].own_code
    assert rule is not None
    edit(folder / "config.json", **{rule: not json.loads((folder / "config.json").read_text()).get(rule)})
    message = refusal(name, folder)
    assert message.startswith(f"{folder / 'config.json'}: {rule} must ") and "own code" in message


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "glm4_voice"])
@pytest.mark.parametrize("setting", ["hidden_act", "rope_scaling"])
def test_a_config_that_no_known_class_can_follow(
    copy: Callable[[str], Path], refusal: Refusal, name: str, setting: str
) -> None:
    folder, nested = copy(name), FAMILIES[name].nested
    if (name, setting) == ("tiny", "rope_scaling"):
        setting = "rope_parameters"  # as transformers writes it now
    odd = {setting: "ours" if setting == "hidden_act" else {"rope_type": "ours"}}
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", **(odd if nested is None else {nested: config[nested] | odd}))
    rule = {
        "hidden_act": 'hidden_act must be "silu"',
    }.get(
        setting,
        f"{setting}.rope_type must be one of default, linear, llama3, yarn, which engine and learner both compute",
    )
    within = "" if nested is None else f"{nested}."
    assert refusal(name, folder) == f'{folder / "config.json"}: {within}{rule}: got "ours"'


@pytest.mark.parametrize("name", [name for name, case in FAMILIES.items() if case.heard])
def test_an_audio_encoder_that_cannot_hear(copy: Callable[[str], Path], refusal: Refusal, name: str) -> None:
    folder, heard = copy(name), FAMILIES[name].heard
    assert heard is not None
    if name == "step_audio2":
        config = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", audio_encoder_config=config["audio_encoder_config"] | {heard: 80})
    else:
        (folder / heard).rename(folder / "elsewhere")
    message = refusal(name, folder)
    assert heard in message and str(folder) in message


def test_an_encoder_of_its_own_for_a_model_that_hears_codes(refusal: Refusal, tmp_path: Path) -> None:
    folder = vita_audio.write_checkpoint(tmp_path / "boost", "boost")
    message = refusal("vita_audio", folder, ear="somewhere")
    assert message == f"model.ear: the model at {folder} hears codes only: got {Path.cwd() / 'somewhere'}"


@pytest.mark.parametrize("name", ["vita_audio", "kimi_audio"])
def test_attention_over_a_window(copy: Callable[[str], Path], refusal: Refusal, name: str) -> None:
    folder = copy(name)
    edit(folder / "config.json", use_sliding_window=True)
    message = refusal(name, folder)
    assert message.startswith(f"{folder / 'config.json'}: ") and "use_sliding_window must be false" in message


@pytest.mark.parametrize("name", FAMILIES)
def test_quantised_weights(copy: Callable[[str], Path], refusal: Refusal, name: str) -> None:
    folder = copy(name)
    names = load_family(ModelConfig(family=name, path=folder)).tensor_names
    shard, tensors, one = next(
        (file, tensors, one)
        for file in sorted(folder.glob("model*.safetensors"))
        for tensors in [load_file(file)]
        for one in sorted(tensors)
        if tensors[one].dim() == 2 and names.module_names(one)
    )
    save_file(tensors | {one: tensors[one].to(torch.int8)}, shard)
    rule = "must be one of F64, F32, F16, BF16, quantised weights cannot be trained"
    assert refusal(name, folder) == f"{folder}: {one} {rule}: got I8"
    save_file(tensors | {f"{one}_scale": torch.ones(1)}, shard)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        edit(index, weight_map=json.loads(index.read_text())["weight_map"] | {f"{one}_scale": shard.name})
    assert f"has not: {one}_scale" in refusal(name, folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_length_beyond_the_models_positions(checkpoints: dict[str, Path], refusal: Refusal, name: str) -> None:
    family = load_family(ModelConfig(family=name, path=checkpoints[name]))
    reach = family.backbone["max_position_embeddings"] * family.streams  # a position has an id of each stream
    message = refusal(name, checkpoints[name], max_length=reach + 1)
    assert message == f"{checkpoints[name]}: reaches {reach} tokens: model.max_length={reach + 1} is more"


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_another_format(copy: Callable[[str], Path], refusal: Refusal, name: str) -> None:
    folder = copy(name)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    rule = "a checkpoint must hold model.safetensors (other weight formats are not read)"
    assert refusal(name, folder) == f"{folder}: {rule}"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_setting_that_the_family_would_ignore(checkpoints: dict[str, Path], refusal: Refusal, name: str) -> None:
    known = import_module(f"speech.families.{name}").OPTIONS
    foreign = {"ear": "somewhere", "system": "hello", "ratios": "[1,4]", "mtp": "trained"}
    for option, value in foreign.items():
        if option not in known:
            message = refusal(name, checkpoints[name], **{option: value})
            assert message.startswith(f"model.{option} is no setting of {name}: got ")


GLM: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"model_type": "qwen2"}, 'model_type must be "chatglm"'),
    ("config.json", {"add_bias_linear": True}, "add_bias_linear must be false"),
    ("config.json", {"num_layers": None}, "num_layers must be a positive integer: got null"),
    (
        "config.json",
        {"kv_channels": 64},
        "kv_channels must be hidden_size / num_attention_heads = 32: got 64",
    ),
    ("config.json", {"seq_length": 128}, "reaches 128 tokens: model.max_length=256 is more"),
    ("tokenizer_config.json", {"added_tokens_decoder": {}}, "must give an id to [gMASK]"),
    ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "must give an id to [gMASK]"),
]


@pytest.mark.parametrize(("file", "changes", "rule"), GLM)
def test_glm4_voice_names_what_it_cannot_use(
    copy: Callable[[str], Path], refusal: Refusal, file: str, changes: dict[str, Any], rule: str
) -> None:
    folder = copy("glm4_voice")
    edit(folder / file, **changes)
    message = refusal("glm4_voice", folder)
    assert rule in message and str(folder) in message


def test_glm4_voice_needs_every_code_and_a_tiktoken_file(copy: Callable[[str], Path], refusal: Refusal) -> None:
    folder = copy("glm4_voice")
    file = folder / "tokenizer_config.json"
    tokens = json.loads(file.read_text())["added_tokens_decoder"]
    edit(file, added_tokens_decoder={i: t for i, t in tokens.items() if t["content"] != "<|audio_7|>"})
    assert "<|audio_i|> must be numbered from 0 without a gap" in refusal("glm4_voice", folder)
    (folder / "tokenizer.model").write_text("no ranks here\n")
    assert refusal("glm4_voice", folder).startswith(f"{folder / 'tokenizer.model'}: must hold one")
