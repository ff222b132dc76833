"""Kimi-Audio: prompts as the published code lays them out, two heads as it computes them, one reply grammar."""

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

from conf.schema import ModelConfig, RolloutConfig
from rollout.language_model import compute_hidden_states, read_checkpoint_layout
from rollout.loading import load_language_model
from rollout.sampling import check_sampling
from speech.checkpoints.folder import check_weights_fit_config, read_tensor_shapes
from speech.families import load_family
from speech.families.base import Family
from speech.turns import AudioPart, ReplyChunk, Turn
from tests.helpers import naive_kimi
from tests.helpers.micro_kimi_audio import (
    BASE,
    CODES,
    CONFIG,
    MERGES,
    OFFSET,
    WIDTH,
    write_checkpoint,
    write_codec,
)

BLANK, EOS, MSG_END = BASE + 23, BASE + 24, BASE + 2
THE, IS, TWO, AN, WHAT = (256 + MERGES.index(word) for word in ("the", " is", " two", " an", "what"))

# kimia_infer/api/prompt_manager.py (MoonshotAI/Kimi-Audio) with output_type="both": by hand, audio stream over
# text stream. U, A: user and assistant start; [ ]: media begin and end; c: ctd; .: msg_end; _: blank; a number: a code.
CASES: list[tuple[str, list[Turn], str, str]] = [
    ("written", [Turn.from_parts("user", "what is two")], "U _ _ _ . A", "_ what is two _ _"),
    (
        "spoken",
        [Turn.from_parts("user", AudioPart(codes=(5, 0, 31), vectors=np.ones((3, WIDTH), np.float32)))],
        "U [ 5 0 31 ] c . A",
        "_ _ _ _ _ _ _ _ _",
    ),
    (
        "an instruction, then its audio: one message of two parts",
        [Turn.from_parts("user", "what"), Turn.from_parts("user", AudioPart(codes=(7,)))],
        "U _ [ 7 ] c . A",
        "_ what _ _ _ _ _ _",
    ),
    (
        "audio, then words: no ctd, which only the last part of a message gets, and only audio",
        [Turn.from_parts("user", AudioPart(codes=(7,))), Turn.from_parts("user", "what")],
        "U [ 7 ] _ . A",
        "_ _ _ _ what _ _",
    ),
    (
        "history",
        [
            Turn.from_parts("user", AudioPart(codes=(1, 2))),
            Turn.from_parts("assistant", "the"),
            Turn.from_parts("user", "what"),
        ],
        "U [ 1 2 ] c . A _ . U _ . A",
        "_ _ _ _ _ _ _ _ the _ _ what _ _",
    ),
    (
        "a spoken reply in the history",
        [
            Turn.from_parts("user", "what"),
            Turn.from_parts("assistant", AudioPart(codes=(9,))),
            Turn.from_parts("user", "two"),
        ],
        "U _ . A [ 9 ] c . U _ _ . A",
        "_ what _ _ _ _ _ _ _ _ t wo _ _",
    ),
    (
        "an instruction and its audio in one turn are the same message",
        [Turn.from_parts("user", "what\n\n", AudioPart(codes=(7,)), "\n")],
        "U _ [ 7 ] c . A",
        "_ what _ _ _ _ _ _",
    ),
    (
        "audio and words in one turn",
        [Turn.from_parts("user", AudioPart(codes=(7,)), "\nwhat")],
        "U [ 7 ] _ . A",
        "_ _ _ _ what _ _",
    ),
    (  # message_type "audio-text", in later copies of prompt_manager.py: no end of the text, sound not fused
        "a reply of words and sound in the history",
        [
            Turn.from_parts("user", "what"),
            Turn.from_parts(
                "assistant", "what is two", AudioPart(codes=(9, 8), vectors=np.ones((2, WIDTH), np.float32))
            ),
            Turn.from_parts("user", "two"),
        ],
        "U _ . A _ _ _ _ _ _ 9 8 . U _ _ . A",
        "_ what _ _ what is two _ _ _ _ _ _ _ t wo _ _",
    ),
    (
        "a system turn is the user's first words",
        [Turn.from_parts("system", "what"), Turn.from_parts("user", AudioPart(codes=(7,)))],
        "U _ [ 7 ] c . A",
        "_ what _ _ _ _ _ _",
    ),
]
NAMES = {
    "U": BASE + 27,
    "A": BASE + 28,
    "[": BASE + 18,
    "]": BASE + 20,
    "c": BASE + 33,
    ".": MSG_END,
    "_": BLANK,
    "what": WHAT,
    "is": IS,
    "two": TWO,
    "the": THE,
    "t": ord("t"),
    "wo": 256 + MERGES.index("wo"),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kimi")
    write_codec(root / "codec")
    return write_checkpoint(root / "base")


def model(folder: Path, **changes: Any) -> ModelConfig:
    changes = {"codec": folder.parent / "codec", **changes}
    return ModelConfig.model_validate({"family": "kimi_audio", "path": folder, **changes})


@pytest.fixture(scope="session")
def family(folder: Path) -> Family:
    return load_family(model(folder))


@pytest.mark.parametrize(("name", "turns", "audio", "text"), CASES, ids=[case[0] for case in CASES])
def test_a_prompt_is_that_of_the_published_code(
    family: Family, name: str, turns: list[Turn], audio: str, text: str
) -> None:
    prompt = family.encode_prompt(turns)
    assert prompt.ids[0::2] == tuple(NAMES[word] for word in text.split())
    assert prompt.ids[1::2] == tuple(NAMES[word] if word in NAMES else OFFSET + int(word) for word in audio.split())


def test_a_reply_that_ends_before_its_words_is_refused(family: Family) -> None:
    long = Turn.from_parts("assistant", "what" + " two" * 8, AudioPart(codes=(9, 8)))
    with pytest.raises(ValueError, match="needs codes until its text is over: got 2 codes for 9 texts"):
        family.encode_prompt([long, Turn.from_parts("user", "two")])


def test_vectors_join_the_steps_of_their_codes(family: Family) -> None:
    first, second = (np.full((n, WIDTH), n, np.float32) for n in (2, 4))
    turns = [
        Turn.from_parts("user", AudioPart(codes=(1, 2), vectors=first)),
        Turn.from_parts("assistant", "what"),
        Turn.from_parts(
            "user", AudioPart(codes=(3, 4, 5), vectors=second)
        ),  # a vector more than codes: cut, as published
    ]
    prompt = family.encode_prompt(turns)
    assert prompt.features is not None
    assert [prompt.ids[2 * step + 1] - OFFSET for step in prompt.features.steps] == [1, 2, 3, 4, 5]
    assert prompt.features.vectors[:, 0].tolist() == [2, 2, 4, 4, 4]


def test_the_configs_system_text_stands_where_a_row_has_none(folder: Path) -> None:
    family_with_system = load_family(model(folder, system="what"))
    user, system = Turn.from_parts("user", "the"), Turn.from_parts("system", "what")
    assert family_with_system.encode_prompt([user]).ids == family_with_system.encode_prompt([system, user]).ids
    assert (
        load_family(model(folder, system="")).encode_prompt([user]).ids
        == load_family(model(folder)).encode_prompt([user]).ids
    )


def test_words_that_spell_a_special_token_are_words(family: Family) -> None:
    ids = family.encode_prompt([Turn.from_parts("user", "<|im_msg_end|>")]).ids
    assert MSG_END not in ids[0::2] and len(ids) == 2 * (len("<|im_msg_end|>") + 3)


def test_published_ids_follow_from_the_published_number_of_ranks() -> None:
    """vllm/tokenizers/kimi_audio.py and the published checkpoint: 151643 ranks."""
    from speech.families.kimi_audio import KIMI_RESERVED_IDS, KIMI_SPECIAL_OFFSETS

    published = {
        "<|im_msg_end|>": 151645,
        "<|im_media_begin|>": 151661,
        "<|im_media_end|>": 151663,
        "<|im_kimia_text_blank|>": 151666,
        "<|im_kimia_text_eos|>": 151667,
        "<|im_kimia_user_msg_start|>": 151670,
        "<|im_kimia_assistant_msg_start|>": 151671,
        "<|im_kimia_speech_ctd_id|>": 151676,
    }
    assert {name: 151643 + place for name, place in KIMI_SPECIAL_OFFSETS.items()} == published
    assert 151643 + KIMI_RESERVED_IDS == 152064  # kimia_token_offset


def test_a_target_is_words_and_late_codes(family: Family) -> None:
    target = family.encode_target([ReplyChunk(text="what is", codes=(1, 2)), ReplyChunk(text="two", codes=(3,))])
    assert target[0::2] == (WHAT, IS, TWO, EOS, *[BLANK] * 6)
    assert target[1::2] == (*[BLANK] * 6, OFFSET + 1, OFFSET + 2, OFFSET + 3, MSG_END)
    assert family.channels.to_letters(target) == "TPTPTPEPPPPPPAPAPAPB"
    spoken = family.parse_reply(target)
    assert (spoken.text, spoken.codes, spoken.well_formed) == ("what is two", (1, 2, 3), True)


@given(data=st.data())
def test_a_target_splits_back_and_a_cut_one_parses(family: Family, data: st.DataObject) -> None:
    text = data.draw(st.text(min_size=1, max_size=6))
    codes = tuple(data.draw(st.lists(st.integers(0, CODES - 1), min_size=20, max_size=30)))
    target = family.encode_target([ReplyChunk(text=text, codes=codes)])
    assert (family.parse_reply(target).text, family.parse_reply(target).codes) == (text, codes)
    cut = family.parse_reply(target[: data.draw(st.integers(0, len(target) - 1))])
    assert not cut.well_formed and cut.codes == codes[: len(cut.codes)]


# -- the module


@torch.no_grad()
def test_both_heads_compute_what_the_published_code_computes(folder: Path, family: Family) -> None:
    rng = torch.Generator().manual_seed(0)
    ids_TS = torch.randint(0, OFFSET + CODES, (17, 2), generator=rng)
    at_K, features_KH = torch.tensor([2, 3, 9]), torch.randn(3, WIDTH, generator=rng)
    stored = {k: v for file in folder.glob("model-*.safetensors") for k, v in load_file(file).items()}
    expected = naive_kimi.logits(stored, ids_TS[:, 0], ids_TS[:, 1], at_K, features_KH)
    lm = load_language_model(family)
    hidden_states = compute_hidden_states(lm, ids_TS, features_KH, at_K, position_ids=torch.arange(17)[None])
    for head, hidden, wanted in zip(lm.heads(), hidden_states, expected, strict=True):
        assert torch.allclose(head(hidden), wanted, atol=1e-4)
    without = compute_hidden_states(lm, ids_TS, features_KH[:0], at_K[:0], position_ids=torch.arange(17)[None])
    assert float((without[0] - hidden_states[0])[2:].abs().max()) > 0.1


def test_all_tensors_but_the_adaptor_are_the_models(folder: Path, family: Family) -> None:
    layout, optional = read_checkpoint_layout(family)
    adaptor = {name for name in read_tensor_shapes(folder) if "vq_adaptor" in name}
    assert set(layout) == set(read_tensor_shapes(folder)) - adaptor and len(adaptor) == 6 and not optional
    check_weights_fit_config(folder, 512, family.backbone, family.tensor_names.module_names)


# -- what is refused


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))

    return edit


def with_a_gap(folder: Path) -> None:
    lines = (folder / "tiktoken.model").read_text().splitlines()
    (folder / "tiktoken.model").write_text("\n".join(lines[:-2] + lines[-1:]))


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("config.json", edited(architectures=["Qwen2ForCausalLM"]), "must have MoonshotKimiaForCausalLM"),
    ("config.json", edited(vocab_size=OFFSET), "kimia_token_offset must lie in"),
    ("config.json", edited(vocab_size=BASE), "vocab_size must exceed"),
    ("config.json", edited(kimia_token_offset=BASE + 100), "behind the tokenizer's ids: got"),
    ("config.json", edited(kimia_media_begin=151661), "kimia_media_begin must be the tokenizer's"),
    ("config.json", edited(tie_word_embeddings=True), "must be false"),
    (
        "config.json",
        edited(vocab_size=10**12),
        "vocab_size must not exceed the weights' 722 rows: got 10{12}",
    ),
    ("config.json", edited(num_hidden_layers=10**9), "num_hidden_layers must be the weights' 3: got 10{9}"),
    ("config.json", edited(kimia_mimo_layers="two"), "kimia_mimo_layers must be the weights' 2: got two"),
    ("config.json", edited(kimia_mimo_layers=6), "kimia_mimo_layers must be the weights' 2: got 6"),
    (
        "config.json",
        edited(kimia_mimo_transformer_from_layer_index=3),
        r"index must be an integer in \[0, 2\]",
    ),
    ("config.json", edited(kimia_mimo_transformer_from_layer_index=-1), r"in \[0, 2\]: got -1"),
    (
        "config.json",
        edited(kimia_mimo_audiodelaytokens=10**9),
        r"delaytokens must be an integer in \[0, 1023\]",
    ),
    ("config.json", edited(kimia_mimo_audiodelaytokens=1.5), r"in \[0, 1023\]: got 1\.5"),
    ("config.json", lambda f: (f / "config.json").unlink(), "must hold this file"),
    ("tiktoken.model", lambda f: (f / "tiktoken.model").unlink(), "must hold this file"),
    (
        "tiktoken.model",
        lambda f: (f / "tiktoken.model").write_text("not base64"),
        "one `base64 rank` per line",
    ),
    ("tiktoken.model", with_a_gap, "without a gap"),
]


@pytest.mark.parametrize(("file", "damage", "rule"), BROKEN)
def test_a_damaged_checkpoint_is_refused_by_file_and_rule(
    folder: Path, tmp_path: Path, file: str, damage: Callable[[Path], Any], rule: str
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ValueError, match=rule) as caught:
        load_family(model(copy))
    assert str(copy / file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_codec_of_another_size_or_none_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="as many codes as the tokenizer: got 16, tokenizer 32"):
        load_family(model(folder, codec=write_codec(tmp_path / "small", 16))).codec()
    with pytest.raises(ValueError, match=r"model\.codec must name a codec's local folder"):
        load_family(model(folder, codec=None)).codec()


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"engine": "vllm", "grammar": True}, "rollout.engine must be torch for kimi_audio.*got vllm"),
        ({"engine": "torch"}, "rollout.grammar must be true for kimi_audio.*got false"),
    ],
)
def test_two_streams_need_the_torch_engine_and_the_grammar(
    family: Family, settings: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        check_sampling(RolloutConfig.model_validate(settings), family)
    check_sampling(RolloutConfig(engine="torch", grammar=True), family)


def test_the_config_is_that_of_the_published_class() -> None:
    assert CONFIG["vocab_size"] - CONFIG["kimia_token_offset"] == CODES
