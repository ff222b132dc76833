"""Configs of codecs and audio encoders: a key that nobody reads is refused with its value, published ones are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import WhisperConfig

from conf.schema import ModelConfig
from speech.codecs import load_codec
from speech.codecs.whisper_vq import WhisperVQ
from speech.families import load_family
from tests.helpers import micro_kimi_audio as kimi_audio
from tests.helpers import micro_step_audio2 as step_audio2
from tests.helpers.codec_checkpoints import EXTRACTOR, GLM4, write_glm4_tokenizer, write_residual

PUBLISHED_GLM4 = {  # what transformers' WhisperConfig writes, and the tokenizer's own numbers
    **WhisperConfig().to_dict(),
    "quantize_commit_coefficient": 0.25,
    "quantize_ema_decay": 0.99,
    "quantize_loss_scale": 10.0,
    "quantize_restart_interval": 100,
    "skip_language_detection": True,
    "transformers_version": "4.44.1",
    **GLM4,
}


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))


def test_the_published_configs_are_read(tmp_path: Path) -> None:
    folder = write_glm4_tokenizer(tmp_path / "tokenizer")
    (folder / "config.json").write_text(json.dumps(PUBLISHED_GLM4))
    edit(
        folder / "preprocessor_config.json",
        nb_max_frames=3000,
        return_attention_mask=False,
        processor_class="x",
    )
    assert WhisperVQ(folder).size == 64
    mimi = write_residual(tmp_path / "mimi", "mimi")
    content = json.loads((mimi / "config.json").read_text())
    rotations = content.pop("rope_parameters")
    (mimi / "config.json").write_text(
        json.dumps(content | {"rope_theta": rotations["rope_theta"], "_frame_rate": 12.5})
    )
    assert load_codec(mimi).size == 64
    checkpoint = kimi_audio.write_checkpoint(tmp_path / "kimi")
    edit(checkpoint / "whisper-large-v3" / "preprocessor_config.json", **EXTRACTOR | {"feature_size": 128})
    edit(checkpoint / "whisper-large-v3" / "config.json", torch_dtype="float16", num_hidden_layers=32)
    assert load_family(ModelConfig(family="kimi_audio", path=checkpoint)).audio_encoder().sample_rate == 16_000


@pytest.mark.parametrize("kind", ["mimi", "encodec", "dac"])
def test_a_codec_with_a_key_that_nobody_reads(tmp_path: Path, kind: str) -> None:
    folder = write_residual(tmp_path / kind, kind)
    assert load_codec(folder).size == 64
    edit(folder / "config.json", output_gain=2.0)
    with pytest.raises(ValueError, match=r"config\.json: output_gain is not read and may change .*: got 2\.0"):
        load_codec(folder)


def test_a_dac_whose_hop_is_not_that_of_its_ratios(tmp_path: Path) -> None:
    folder = write_residual(tmp_path / "dac", "dac")
    edit(folder / "config.json", hop_length=3)
    with pytest.raises(ValueError, match=r"config\.json: hop_length must be \d+: got 3"):
        load_codec(folder)


TOKENIZER = [
    ("config.json", {"quantize_residual_books": 2}, "quantize_residual_books is not read"),
    ("config.json", {"quantization_config": {"bits": 8}}, "quantization_config must be null"),
    ("preprocessor_config.json", {"do_normalize": True}, "do_normalize must be false: got true"),
    ("preprocessor_config.json", {"padding_side": "left"}, 'padding_side must be "right": got "left"'),
    ("preprocessor_config.json", {"preemphasis": 0.97}, "preemphasis is not read"),
]


@pytest.mark.parametrize(("file", "changes", "rule"), TOKENIZER)
def test_a_tokenizer_that_computes_something_else(
    tmp_path: Path, file: str, changes: dict[str, Any], rule: str
) -> None:
    folder = write_glm4_tokenizer(tmp_path / "tokenizer")
    edit(folder / file, **changes)
    with pytest.raises(ValueError) as refused:
        WhisperVQ(folder)
    assert str(refused.value).startswith(f"{folder / file}: {rule}")


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return step_audio2.write_checkpoint(tmp_path_factory.mktemp("step") / "model")


STEP: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (
        lambda ear: ear.update(window="hann"),
        'audio_encoder_config.window is not read and may change .*: got "hann"',
    ),
    (lambda ear: ear.update(llm_dim=32), "audio_encoder_config.llm_dim must be 64: got 32"),
    (
        lambda ear: ear.update(n_audio_layer=1),
        "audio_encoder_config.n_audio_layer must be the weights' 2: got 1",
    ),
    (lambda ear: ear.update(n_audio_head=3), "n_audio_state must be a multiple of n_audio_head 3: got 32"),
]


@pytest.mark.parametrize(("change", "rule"), STEP)
def test_step_audios_encoder(step: Path, change: Callable[[dict[str, Any]], object], rule: str) -> None:
    file = step / "config.json"
    before = file.read_text()
    content = json.loads(before)
    change(content["audio_encoder_config"])
    file.write_text(json.dumps(content))
    try:
        with pytest.raises(ValueError, match=rf"config\.json: .*{rule}"):
            load_family(ModelConfig(family="step_audio2", path=step)).audio_encoder()
    finally:
        file.write_text(before)


def test_kimis_whisper_must_be_the_one_that_is_computed(tmp_path: Path) -> None:
    checkpoint = kimi_audio.write_checkpoint(tmp_path / "kimi")
    whisper = checkpoint / "whisper-large-v3"
    family = load_family(ModelConfig(family="kimi_audio", path=checkpoint))
    edit(whisper / "preprocessor_config.json", hop_length=80)
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: hop_length must be 160: got 80"):
        family.audio_encoder()
    (whisper / "preprocessor_config.json").unlink()
    edit(whisper / "config.json", post_norm=True)
    with pytest.raises(ValueError, match=r"config\.json: post_norm is not read"):
        load_family(ModelConfig(family="kimi_audio", path=checkpoint)).audio_encoder()
