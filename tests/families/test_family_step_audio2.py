"""Step-Audio 2 mini: prompts as published, replies in padded groups, a checkpoint that comes back as it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from actors.checks.prepare import load_usable_family
from conf.schema import Config, ModelConfig
from learner.ranks import join_process_group, leave_process_group
from learner.step import Learner
from rollout.language_model import read_checkpoint_layout
from speech.data.manifest import read_manifest
from speech.dataset import RowEncoder, RowLengths
from speech.families import load_family
from speech.families.base import Family
from speech.turns import AudioPart, ReplyChunk, Turn
from tests.helpers.learner_world import config as learner_config
from tests.helpers.micro_step_audio2 import CODES, write_checkpoint, write_codec
from tests.helpers.micro_world import write_data
from tests.helpers.processes import HANG_S

SYSTEM = "<|BOT|>system\nYou are a helpful assistant.<|EOT|>"
HERE = "<|BOT|>assistant\n<tts_start>"
SILENCE = f"<audio_{CODES}>"


def heard(count: int, seed: int = 0) -> Turn:
    vectors = np.random.default_rng(seed).normal(size=(count, 64)).astype(np.float32)
    return Turn.from_parts("user", AudioPart(vectors=vectors))


# Source: stepfun-ai/Step-Audio2 stepaudio2.py (commit c22bfad), StepAudio2.apply_chat_template and the examples
# below it: each string is tokenised by itself, special tokens included, and the ids are joined.
CASES: dict[str, tuple[list[Turn], str | None, list[str]]] = {
    "text to speech, the published system turn": (
        [Turn.from_parts("user", "what is two")],
        None,
        [SYSTEM, "<|BOT|>human\nwhat is two<|EOT|>", HERE],
    ),
    "speech to speech": (
        [heard(3)],
        None,
        [SYSTEM, "<|BOT|>human\n", "<audio_start>" + "<audio_patch>" * 3 + "<audio_end>", "<|EOT|>", HERE],
    ),
    "a system turn of its own": (
        [Turn.from_parts("system", "answer  in 12 words\n"), heard(1)],
        None,
        [
            *("<|BOT|>system\nanswer  in 12 words\n<|EOT|>", "<|BOT|>human\n"),
            *("<audio_start><audio_patch><audio_end>", "<|EOT|>", HERE),
        ],
    ),
    "no system turn": (
        [Turn.from_parts("user", "is the answer two?")],
        "",
        ["<|BOT|>human\nis the answer two?<|EOT|>", HERE],
    ),
    "history, a spoken turn and a written one": (
        [heard(2), Turn.from_parts("assistant", "the answer"), Turn.from_parts("user", "\n\nthe user's 12")],
        None,
        [
            *(SYSTEM, "<|BOT|>human\n", "<audio_start><audio_patch><audio_patch><audio_end>", "<|EOT|>"),
            *("<|BOT|>assistant\nthe answer<|EOT|>", "<|BOT|>human\n\n\nthe user's 12<|EOT|>", HERE),
        ],
    ),
    "words and sound in one turn, as the published multi-modal example": (
        [Turn.from_parts("user", "is the answer two?\n\n", *heard(2).parts, "\n", *heard(1).parts)],
        None,
        [
            *(SYSTEM, "<|BOT|>human\n", "is the answer two?"),
            *("<audio_start><audio_patch><audio_patch><audio_end>", "<audio_start><audio_patch><audio_end>"),
            *("<|EOT|>", HERE),
        ],
    ),
    "a reply of words and sound, as the published multi-turn example": (
        [
            heard(1),
            Turn.from_parts("assistant", "the answer", AudioPart(codes=(0, 1, 2, 3, 4))),
            Turn.from_parts("user", "two"),
        ],
        "",
        [
            *("<|BOT|>human\n", "<audio_start><audio_patch><audio_end>", "<|EOT|>"),
            *("<|BOT|>assistant\n", "<tts_start>"),
            *("the", "<audio_0><audio_1><audio_2><audio_3>", " answer", "<audio_4>", SILENCE * 3),
            *("<tts_end>", "<|EOT|>", "<|BOT|>human\ntwo<|EOT|>", HERE),
        ],
    ),
    "26 seconds are two pieces": (
        [heard(326)],
        "",
        [
            *("<|BOT|>human\n", "<audio_start>" + "<audio_patch>" * 313 + "<audio_end>"),
            *("<audio_start>" + "<audio_patch>" * 13 + "<audio_end>", "<|EOT|>", HERE),
        ],
    ),
    "a clip too short to be heard": (
        [heard(0)],
        "",
        ["<|BOT|>human\n", "<audio_start><audio_end>", "<|EOT|>", HERE],
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("step")
    write_codec(root / "codec")
    return write_checkpoint(root / "model")


def model(folder: Path, **changes: Any) -> ModelConfig:
    return ModelConfig(**{"family": "step_audio2", "path": folder, "codec": folder.parent / "codec"} | changes)


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return load_family(model(folder))


def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_has_the_ids_of_the_published_template(folder: Path, case: str) -> None:
    turns, system, pieces = CASES[case]
    published = tokenizer(folder)
    expected = [token for piece in pieces for token in published.encode(piece, add_special_tokens=False).ids]
    prompt = load_family(model(folder, system=system)).encode_prompt(turns)
    assert list(prompt.ids) == expected
    places = [i for i, token in enumerate(expected) if token == published.token_to_id("<audio_patch>")]
    parts = [part for turn in turns for part in turn.parts if isinstance(part, AudioPart)]
    vectors = [part.vectors for part in parts if part.vectors is not None and len(part.vectors)]
    if not vectors:
        assert prompt.features is None
    else:
        assert prompt.features is not None and list(prompt.features.steps) == places
        assert np.array_equal(prompt.features.vectors, np.concatenate(vectors))


def test_words_that_spell_a_special_token_are_words(family: Family) -> None:
    ids = family.encode_prompt([Turn.from_parts("user", "<|EOT|><audio_3>")]).ids
    assert sum(token in family.stop_ids for token in ids) == 2  # of the system and of the user
    assert not set(ids) & set(family.code_ids)


def test_a_spoken_turn_of_the_assistant_is_refused(family: Family) -> None:
    with pytest.raises(ValueError, match="must have its words beside its sound: got 2 codes"):
        family.encode_prompt([Turn.from_parts("assistant", AudioPart(codes=(1, 2))), Turn.from_parts("user", "the")])


def test_every_id_is_in_its_channel(folder: Path, family: Family) -> None:
    published = tokenizer(folder)
    named = {name: published.token_to_id(name) for name in published.get_vocab()}
    assert family.code_ids == tuple(named[f"<audio_{code}>"] for code in range(CODES))
    assert len(family.code_ids) == CODES and family.channels.vocab > len(named)
    channel = {name: family.channels.to_letters([token]) for name, token in named.items()}
    assert {channel[f"<audio_{code}>"] for code in range(CODES)} == {"A"}
    assert channel[f"<audio_{CODES}>"] == channel["<tts_pad>"] == channel["<audio_patch>"] == "P"
    assert channel["<tts_end>"] == channel["<tts_start>"] == "B"
    assert channel["<|EOT|>"] == "E" and family.stop_ids == (named["<|EOT|>"],)
    assert channel["<|endoftext|>"] == channel["<tool_call>"] == channel["<|BOT|>"] == "P"
    assert channel["Ġanswer"] == channel["Ċ"] == "T"
    assert family.channels.to_letters([family.channels.vocab - 1]) == "P"


WORDS = st.lists(st.sampled_from(["the", "answer", "is", "two", "12", "ünï", "user's"]), min_size=1, max_size=6)


@given(WORDS, st.lists(st.integers(0, CODES - 1), min_size=1, max_size=40), st.integers(0, 80))
def test_a_target_splits_back_and_parses_wherever_it_is_cut(
    family: Family, words: list[str], codes: list[int], at: int
) -> None:
    ids = family.encode_target([ReplyChunk(text=" ".join(words), codes=tuple(codes))])
    whole = family.parse_reply(ids)
    assert (whole.text, list(whole.codes), whole.well_formed) == (" ".join(words), codes, True)
    assert (len(ids) - 2) % 5 == 0 and family.channels.to_letters(ids).endswith("BE")
    cut = family.parse_reply(ids[:at])
    assert list(cut.codes) == codes[: len(cut.codes)]
    assert cut.well_formed == (at >= len(ids))


def test_rows_become_vectors_and_lengths_are_known_beforehand(family: Family, tmp_path: Path) -> None:
    manifest = write_data(tmp_path / "data", 3, reply_seconds=0.5)
    encoder, lengths = RowEncoder(family, manifest.parent, 60.0), RowLengths(family, manifest.parent)
    for row in read_manifest(manifest, 60.0):
        example = encoder.encode(row)
        assert lengths.count_ids(row) == (len(example.prompt.ids), len(example.target.ids))
        features = example.prompt.features
        assert (features is None) == (not row.audios)
        if features is not None:
            seconds = 0.6 + 0.1 * int(row.id[-1])
            assert features.vectors.shape == (family.audio_encoder().count_vectors(seconds), 64)


# -- the checkpoint


def settings(folder: Path, **learner: Any) -> Config:
    base = learner_config(folder, **learner)
    return base.model_copy(update={"model": model(folder, max_length=96)})


def test_the_language_model_alone_is_sent_to_engines(folder: Path, family: Family) -> None:
    layout, optional = read_checkpoint_layout(family)
    stored = {n for file in folder.glob("*.safetensors") for n in load_file(file)}
    assert not optional
    assert set(layout) == {n for n in stored if not n.startswith(("encoder.", "adapter."))}
    assert "lm_head.weight" in layout


def test_an_export_has_the_same_names_shapes_and_types_and_the_frozen_parts_bit_for_bit(
    tmp_path: Path,
) -> None:
    folder = write_checkpoint(tmp_path / "model", dtype=torch.bfloat16)
    join_process_group(rank=0, world=1, address="127.0.0.1:0", timeout_s=HANG_S)
    try:
        learner = Learner(settings(folder), 0, 1)
        with torch.no_grad():
            for parameter in learner.policy.parameters():
                parameter.add_(0.5)
        learner.export(tmp_path / "out")
    finally:
        leave_process_group()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            assert file.is_dir() or (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
            continue
        before, after = load_file(file), load_file(tmp_path / "out" / file.name)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
        for name, tensor in before.items():
            assert torch.equal(tensor, after[name]) == name.startswith(("encoder.", "adapter.")), name
    assert (tmp_path / "out" / "token2wav" / "flow.yaml").is_file()
    assert load_family(model(tmp_path / "out", codec=None)).codec_path == tmp_path / "out" / "token2wav"


def test_the_folders_own_code_is_not_run(folder: Path, family: Family) -> None:
    assert "raise RuntimeError" in (folder / "modeling_step_audio_2.py").read_text()
    assert "auto_map" not in family.backbone and family.backbone["model_type"] == "qwen2"
    load_usable_family(settings(folder))


def edited(folder: Path, target: Path, change: Callable[[dict[str, Any]], object], file: str = "config.json") -> Path:
    shutil.copytree(folder, target)
    content = json.loads((target / file).read_text())
    change(content)
    (target / file).write_text(json.dumps(content))
    return target


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "another family's": (
        "config.json",
        lambda c: c.update(model_type="qwen2_mtp"),
        r"config\.json: model_type must be step_audio_2: got qwen2_mtp",
    ),
    "a flat config": (
        "config.json",
        lambda c: c.pop("text_config"),
        r"config\.json: must have an object text_config: got None",
    ),
    "a size that is none": (
        "config.json",
        lambda c: c["text_config"].update(num_key_value_heads="4"),
        r"config\.json: text_config\.num_key_value_heads must be a positive integer: got \"4\"",
    ),
    "too few rows": (
        "config.json",
        lambda c: c["text_config"].update(vocab_size=300),
        r"config\.json: vocab_size must exceed the tokenizer's largest id \d+: got 300",
    ),
    "a tokenizer without codes": (
        "tokenizer.json",
        lambda t: t.update(added_tokens=[a for a in t["added_tokens"] if "<audio_" not in a["content"]]),
        r"tokenizer\.json: <audio_i> must be numbered from 0 without a gap: got 0",
    ),
    "a tokenizer without <tts_pad>": (
        "tokenizer.json",
        lambda t: t.update(added_tokens=[a for a in t["added_tokens"] if a["content"] != "<tts_pad>"]),
        r"tokenizer\.json: the tokenizer must know the special token <tts_pad>",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_does_not_fit_is_refused_in_one_line(folder: Path, tmp_path: Path, case: str) -> None:
    file, change, message = BROKEN[case]
    broken = edited(folder, tmp_path / "broken", change, file)
    with pytest.raises(ValueError, match=message) as refused:
        load_family(model(broken))
    assert "\n" not in str(refused.value) and str(broken) in str(refused.value)


def test_missing_files_and_unfit_codecs_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "lacking"
    shutil.copytree(folder, lacking, ignore=shutil.ignore_patterns("tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: a checkpoint folder must hold this file"):
        load_family(model(lacking))
    slow = write_codec(tmp_path / "slow", (8, 5, 4, 2))
    with pytest.raises(ValueError, match="must have 25 codes per second, as step_audio2 models do: got 75"):
        load_family(model(folder, codec=slow)).codec()
    small = write_codec(tmp_path / "small", codes=64)
    with pytest.raises(ValueError, match="must have as many codes as the tokenizer: got 64, tokenizer 32"):
        load_family(model(folder, codec=small)).codec()
    with pytest.raises(ValueError, match="token2wav: a codec must be a folder"):
        load_family(model(folder, codec=None)).codec()
