"""A config.json is read whole: each key that is changed, in each spelling, is honoured as transformers' own class
has it, or refused with its name and value."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM, Qwen2Config, Qwen2ForCausalLM

from conf.schema import ModelConfig
from rollout.language_model import compute_hidden_states
from rollout.loading import load_language_model
from speech.families import load_family
from tests.helpers import micro_glm4_voice as glm4_voice
from tests.helpers import micro_kimi_audio as kimi_audio
from tests.helpers import micro_step_audio2 as step_audio2
from tests.helpers import micro_vita_audio as vita_audio
from tests.helpers.rollout_models import sharp_checkpoint

WRITE: dict[str, Callable[[Path], Path]] = {
    "tiny": partial(sharp_checkpoint, seed=0),
    "vita_audio": partial(vita_audio.write_checkpoint, kind="boost"),
    "step_audio2": step_audio2.write_checkpoint,
    "kimi_audio": kimi_audio.write_checkpoint,
    "glm4_voice": glm4_voice.write_checkpoint,
}
QWEN = [name for name in WRITE if name != "glm4_voice"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("configs")
    return {name: write(root / name) for name, write in WRITE.items()}


@pytest.fixture
def changed(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """The family's folder with other keys in the part of config.json that is its decoder's."""

    def change(name: str, keys: dict[str, Any]) -> Path:
        folder = Path(shutil.copytree(folders[name], tmp_path / name))
        content = json.loads((folder / "config.json").read_text())
        part = content["text_config"] if name == "step_audio2" else content
        if "rope_parameters" in keys or "rope_scaling" in keys or "rope_theta" in keys:
            for key in ("rope_theta", "rope_scaling", "rope_parameters"):
                part.pop(key, None)
        part |= keys
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return change


def logits(name: str, folder: Path) -> torch.Tensor:
    """What the learner's module makes of some ids, one after another."""
    family = load_family(ModelConfig(family=name, path=folder, max_length=64))
    lm = load_language_model(family)
    ids = torch.arange(3, 43) * 5 % 100
    with torch.no_grad():
        (hidden,) = compute_hidden_states(
            lm,
            ids[:, None],
            torch.zeros(0, 0),
            torch.zeros(0, dtype=torch.int64),
            position_ids=torch.arange(40)[None],
        )
        return torch.as_tensor(lm.get_output_embeddings()(hidden))


def reference(folder: Path, keys: dict[str, Any]) -> torch.Tensor:
    """The same by transformers' own class, from the folder's own config.json with no key left out."""
    family = load_family(ModelConfig(family="tiny", path=folder))
    content = json.loads((folder / "config.json").read_text())
    model = Qwen2ForCausalLM(Qwen2Config(**content)).eval()
    model.load_state_dict(load_language_model(family).state_dict())
    with torch.no_grad():
        return torch.as_tensor(model((torch.arange(3, 43) * 5 % 100)[None]).logits[0])


SPELLINGS: dict[str, dict[str, Any]] = {
    "theta beside": {"rope_theta": 500.0},
    "theta inside, as transformers writes it now": {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    "theta inside rope_scaling": {"rope_scaling": {"rope_theta": 500.0, "type": "default"}},
    "linear, the old name of its type": {
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_theta": 500.0,
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}},
    "yarn": {"rope_scaling": YARN, "rope_theta": 500.0},
    "yarn with all its numbers": {
        "rope_parameters": YARN
        | {"rope_theta": 500.0, "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.3, "truncate": False}
    },
    "llama3": {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
    "llama3, its length beside": {
        "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
        "original_max_position_embeddings": 64,
        "rope_theta": 500.0,
    },
    "a larger eps": {"rms_norm_eps": 0.3},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_a_config_says_is_what_transformers_own_class_computes(
    changed: Callable[..., Path], folders: dict[str, Path], spelling: str
) -> None:
    keys = SPELLINGS[spelling]
    folder = changed("tiny", keys)
    actual, before = logits("tiny", folder), logits("tiny", folders["tiny"])
    assert torch.allclose(actual, reference(folder, keys), atol=1e-5)
    assert not torch.allclose(actual, before, atol=1e-3)


@pytest.mark.parametrize("name", QWEN)
def test_one_rotation_is_one_model_however_it_is_spelt(
    changed: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    spelt: tuple[dict[str, Any], ...] = (
        {"rope_scaling": YARN, "rope_theta": 500},
        {"rope_scaling": {**YARN, "type": "yarn", "rope_theta": 500.0}},
        {"rope_parameters": YARN | {"rope_theta": 500.0}},
        {"rope_parameters": YARN | {"rope_theta": 500.0}, "rope_theta": 500.0, "rope_scaling": None},
    )
    collected = []
    for keys in spelt:
        folder = changed(name, keys)
        collected.append(load_family(ModelConfig(family=name, path=folder, max_length=64)).backbone)
        shutil.rmtree(folder)
    assert all(backbone == collected[0] for backbone in collected)
    assert collected[0]["rope_parameters"] == YARN | {"rope_theta": 500.0}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a scaling of embeddings": ({"embedding_multiplier": 12.0}, "embedding_multiplier must be 1.0: got 12.0"),
    "a scaling of logits": ({"logits_scaling": 8.0}, "logits_scaling must be 1.0: got 8.0"),
    "a scaling of residuals": ({"residual_multiplier": 0.2}, "residual_multiplier must be 1.0: got 0.2"),
    "a scaling of attention": (
        {"attention_multiplier": 0.1},
        "attention_multiplier is not read and may change",
    ),
    "a cap of logits": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping must be null: got 30.0"),
    "a cap of attention": ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be null: got 50.0"),
    "a key of tomorrow": ({"gated_residual": True}, "gated_residual is not read and may change"),
    "two keys of tomorrow": ({"gated_residual": 1, "other": 2}, "got 1 (and 1 more)"),
    "no bias": ({"attention_bias": False}, "attention_bias must be true: got false"),
    "no bias, spelt otherwise": ({"qkv_bias": False}, "qkv_bias must be true: got false"),
    "an mlp with a bias": ({"mlp_bias": True}, "mlp_bias must be false: got true"),
    "another head": ({"head_dim": 8}, "head_dim must be"),
    "another activation": ({"hidden_act": "gelu"}, 'hidden_act must be "silu": got "gelu"'),
    "another activation, spelt otherwise": (
        {"hidden_activation": "gelu"},
        'hidden_activation must be "silu"',
    ),
    "another name of the eps": ({"layernorm_epsilon": 1e-3}, "layernorm_epsilon is not read"),
    "an eps that is none": ({"rms_norm_eps": "small"}, 'rms_norm_eps must be a positive number: got "small"'),
    "an infinite eps": (
        {"rms_norm_eps": float("inf")},
        "rms_norm_eps must be a positive number: got Infinity",
    ),
    "half a rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1: got 0.5"),
    "half a rotation, inside": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "rope_parameters.partial_rotary_factor must be 1: got 0.5",
    ),
    "two thetas": (
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}},
        "rope_parameters.rope_theta must be the same wherever it stands: got 1000000.0 and 10000.0",
    ),
    "two types": ({"rope_scaling": YARN | {"type": "linear"}}, "must be the same wherever it stands"),
    "two places": ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}}, "must be the same"),
    "a rotation by length": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_type must be one of",
    ),
    "a rotation in sections": (
        {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
        "rope_scaling.mrope_section is no number of rope_type default: got [16, 24, 24]",
    ),
    "no factor": (
        {"rope_scaling": {"type": "linear"}},
        "rope_scaling.factor must be a positive number: got null",
    ),
    "a factor of nothing": (
        {"rope_scaling": {"factor": 4.0}},
        "factor is no number of rope_type default: got 4.0",
    ),
    "rotations that are no object": (
        {"rope_scaling": "yarn"},
        'rope_scaling must be an object or null: got "yarn"',
    ),
    "another base of rotations": ({"rotary_emb_base": 500.0}, "rotary_emb_base is not read"),
    "a window": ({"use_sliding_window": True}, "use_sliding_window must be false: got true"),
    "a window in a layer": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types must all be full_attention",
    ),
    "attention over chunks": (
        {"dual_chunk_attention_config": {"chunk_size": 8}},
        "dual_chunk_attention_config is not",
    ),
    "both ways": ({"is_causal": False}, "is_causal must be true: got false"),
    "norms of queries": ({"qk_norm": True}, "qk_norm must be false: got true"),
    "an encoder": ({"is_encoder_decoder": True}, "is_encoder_decoder must be false: got true"),
    "quantised": (
        {"quantization_config": {"quant_method": "awq", "bits": 4}},
        "quantization_config must be null, quantised weights cannot be trained: got",
    ),
    "heads that do not divide": (
        {"num_attention_heads": 3},
        "hidden_size must be a multiple of num_attention_heads",
    ),
    "an epsilon of null": ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number: got null"),
    "an epsilon beyond all numbers": ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a positive number"),
    "a factor beyond all positions": (
        {"rope_parameters": YARN | {"rope_theta": 500.0, "factor": 1e300}},
        "factor must give at most 2147483647 positions",
    ),
    "a tie that is none": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be"),
}


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_with_its_key(changed: Callable[..., Path], name: str, case: str) -> None:
    keys, message = REFUSED[case]
    folder = changed(name, keys)
    with pytest.raises(ValueError) as refused:
        load_family(ModelConfig(family=name, path=folder, max_length=64))
    line = str(refused.value)
    assert line.startswith(f"{folder / 'config.json'}: ") and message in line and "\n" not in line
    if name == "step_audio2":
        assert "text_config." in line


HARMLESS: dict[str, dict[str, Any]] = {
    "the notes of transformers": {
        "_name_or_path": "x",
        "_attn_implementation_autoset": True,
        "use_cache": False,
    },
    "a type": {"torch_dtype": "float16", "dtype": "float16"},
    "a program's version": {"transformers_version": "4.41.0", "unsloth_version": "2025.1"},
    "what generation would take": {
        "temperature": 0.1,
        "top_k": 5,
        "eos_token_ids": [1, 2],
        "pad_token_id": 3,
    },
    "what training would take": {"attention_dropout": 0.5, "initializer_range": 0.5},
    "a window that is not used": {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
    "nothing": {
        "gated_residual": None,
        "quantization_config": None,
        "rope_scaling": None,
        "layer_types": None,
    },
    "what leaves the model as it is": {
        "use_mrope": False,
        "logits_scaling": 1,
        "residual_multiplier": 1.0,
        "partial_rotary_factor": 1.0,
    },
}


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("case", HARMLESS)
def test_what_changes_nothing_may_be_there(
    changed: Callable[..., Path], folders: dict[str, Path], name: str, case: str
) -> None:
    keys = dict(HARMLESS[case])
    content = json.loads((folders[name] / "config.json").read_text())
    part = content.get("text_config", content)
    keys |= {key: part[key] for key in ("rope_theta", "rope_parameters") if key in part}
    family = load_family(ModelConfig(family=name, path=changed(name, keys), max_length=64))
    before = load_family(ModelConfig(family=name, path=folders[name], max_length=64))
    assert family.backbone == before.backbone and family.engine_config == before.engine_config


def test_a_text_config_and_what_lies_beside_it_must_agree(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["step_audio2"], tmp_path / "step"))
    content = json.loads((folder / "config.json").read_text())

    def refused(**keys: Any) -> str:
        (folder / "config.json").write_text(json.dumps(content | keys))
        with pytest.raises(ValueError) as error:
            load_family(ModelConfig(family="step_audio2", path=folder))
        return str(error.value).removeprefix(f"{folder / 'config.json'}: ")

    assert refused(rope_theta=1e4) == "rope_theta must be 1000000.0: got 10000.0"
    assert refused(use_sliding_window=True) == "use_sliding_window must be false: got true"
    assert refused(logits_scaling=2.0).startswith("logits_scaling is not read")
    text = content["text_config"] | {"tie_word_embeddings": False}
    assert refused(tie_word_embeddings=True, text_config=text) == "tie_word_embeddings must be false: got true"
    text = content["text_config"] | {"num_attention_groups": 2}
    assert refused(text_config=text) == "text_config.num_attention_groups must be 1: got 2"


GLM: dict[str, tuple[dict[str, Any], str | None]] = {
    "rope_ratio": ({"rope_ratio": 500}, None),
    "an eps": ({"layernorm_epsilon": 0.3}, None),
    "an eps in another spelling": ({"rms_norm_eps": 0.3}, "rms_norm_eps is not read"),
    "a theta": ({"rope_theta": 1e6}, "rope_theta is not read"),
    "rotations": ({"rope_scaling": YARN}, "rope_scaling is not read"),
    "a rotation of the whole head": ({"partial_rotary_factor": 1.0}, "partial_rotary_factor is not read"),
    "an activation": ({"hidden_act": "gelu"}, "hidden_act is not read"),
    "other rotations": (
        {"original_rope": False},
        "original_rope must be true",
    ),
    "residuals of another type": (
        {"fp32_residual_connection": True},
        "fp32_residual_connection must be false",
    ),
    "quantised": ({"quantization_bit": 4}, "quantization_bit must be 0"),
    "layers said twice": ({"num_hidden_layers": 3}, "num_hidden_layers must be 2: got 3"),
    "rows said twice": ({"vocab_size": 1}, "vocab_size must be "),
    "groups of another name": ({"num_key_value_heads": 2}, "num_key_value_heads is not read"),
    "a ratio that is none": ({"rope_ratio": 0}, "rope_ratio must be a positive number: got 0"),
    "a prefix": ({"pre_seq_len": 8}, "pre_seq_len is not read"),
}


@pytest.mark.parametrize("case", GLM)
def test_glm_is_honoured_or_refused(changed: Callable[..., Path], folders: dict[str, Path], case: str) -> None:
    keys, message = GLM[case]
    folder = changed("glm4_voice", keys)
    if message is not None:
        with pytest.raises(ValueError) as refused:
            load_family(ModelConfig(family="glm4_voice", path=folder))
        assert message in str(refused.value)
        return
    family = load_family(ModelConfig(family="glm4_voice", path=folder))
    model = GlmForCausalLM(GlmConfig(**family.backbone)).eval()
    assert family.engine_config is not None
    assert {key: family.engine_config[key] for key in keys} == keys
    model.load_state_dict(load_language_model(family).state_dict())
    actual, before = logits("glm4_voice", folder), logits("glm4_voice", folders["glm4_voice"])
    assert not torch.allclose(actual, before, atol=1e-3)


def test_a_config_says_each_key_once(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["tiny"], tmp_path / "twice"))
    text = (folder / "config.json").read_text().strip()
    (folder / "config.json").write_text(text[:-1] + ', "rms_norm_eps": 0.1}')
    with pytest.raises(ValueError, match="must be JSON: rms_norm_eps must be there once"):
        load_family(ModelConfig(family="tiny", path=folder))
