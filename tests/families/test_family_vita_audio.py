"""VITA-Audio: ids as its published code lays them out, replies cut as its training cuts them, bad folders refused.

The strings are what VITA-MLLM/VITA-Audio@0abaf17 gives its tokenizer: vita_audio/data/dataset_qwen2.py
(``preprocess``), evaluation/get_chat_template.py (``qwen2_chat_template``), tools/inference_sts.py (system turns).
"""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from conf.schema import ModelConfig
from speech.families import load_family
from speech.families.base import Family
from speech.grammar.channels import Channel
from speech.turns import AudioPart, ReplyChunk, Turn
from tests.helpers.micro_vita_audio import CODES, HIDDEN, write_checkpoint, write_codec

LUKE = (
    "<|im_start|>system\nYour Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner.<|im_end|>\n"
)
READY = "<|im_start|>assistant\n"

PROMPTS: dict[str, tuple[str | None, list[Turn], str]] = {
    "written": (
        "",
        [Turn.from_parts("user", "你叫什么名字？")],
        "<|im_start|>user\n你叫什么名字？<|im_end|>\n",
    ),
    "spoken": (
        None,
        [Turn.from_parts("user", AudioPart(codes=(7, 0, 31)))],
        LUKE + "<|im_start|>user\n<|begin_of_audio|><|audio_7|><|audio_0|><|audio_31|><|end_of_audio|><|im_end|>\n",
    ),
    "own system turn": (
        None,
        [Turn.from_parts("system", "You are Luke.\n\n"), Turn.from_parts("user", "Hello, how are you?")],
        "<|im_start|>system\nYou are Luke.\n\n<|im_end|>\n<|im_start|>user\nHello, how are you?<|im_end|>\n",
    ),
    "configured system turn": (
        "Your Name: Lucy",
        [Turn.from_parts("user", "Hi")],
        "<|im_start|>system\nYour Name: Lucy<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
    ),
    "a voice to imitate": (
        None,
        [
            Turn.from_parts("system", AudioPart(codes=(1, 2))),
            Turn.from_parts("user", "Convert the text to speech.\none two"),
        ],
        "<|im_start|>system\nYour Voice: <|begin_of_audio|><|audio_1|><|audio_2|><|end_of_audio|>\n<|im_end|>\n"
        "<|im_start|>user\nConvert the text to speech.\none two<|im_end|>\n",
    ),
    "words and sound in one turn: the string as given, its line breaks too": (
        "",
        [
            Turn.from_parts("user", "Convert the speech to text.\n", AudioPart(codes=(3, 1))),
            Turn.from_parts("assistant", "two"),
            Turn.from_parts("user", AudioPart(codes=(5,)), "\n\none", AudioPart(codes=(6,)), "\n"),
        ],
        "<|im_start|>user\nConvert the speech to text.\n"
        "<|begin_of_audio|><|audio_3|><|audio_1|><|end_of_audio|><|im_end|>\n"
        "<|im_start|>assistant\ntwo<|im_end|>\n"
        "<|im_start|>user\n<|begin_of_audio|><|audio_5|><|end_of_audio|>\n\none"
        "<|begin_of_audio|><|audio_6|><|end_of_audio|>\n<|im_end|>\n",
    ),
    "a voice to imitate, spelled out": (
        None,
        [Turn.from_parts("system", "Your Voice: ", AudioPart(codes=(1,)), "\n"), Turn.from_parts("user", "Hi")],
        "<|im_start|>system\nYour Voice: <|begin_of_audio|><|audio_1|><|end_of_audio|>\n<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n",
    ),
    "history": (
        "",
        [
            Turn.from_parts("user", AudioPart(codes=(3,))),
            Turn.from_parts("assistant", "One is the two.\n"),
            Turn.from_parts("user", " and  two?\n"),
        ],
        "<|im_start|>user\n<|begin_of_audio|><|audio_3|><|end_of_audio|><|im_end|>\n"
        "<|im_start|>assistant\nOne is the two.\n<|im_end|>\n"
        "<|im_start|>user\n and  two?\n<|im_end|>\n",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vita") / "boost")


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vita") / "plus", "plus")


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return family_of(folder)


def family_of(folder: Path, **settings: Any) -> Family:
    return load_family(ModelConfig(family="vita_audio", path=folder, **settings))


def ids_of(folder: Path, published: str) -> list[int]:
    """The published string through the tokenizer's file, without any code of ours."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode(published, add_special_tokens=False).ids)


@pytest.mark.parametrize("case", PROMPTS)
def test_a_prompt_has_the_ids_of_the_published_template(folder: Path, case: str) -> None:
    system, turns, published = PROMPTS[case]
    prompt = family_of(folder, system=system).encode_prompt(turns)
    assert list(prompt.ids) == ids_of(folder, published + READY)
    assert prompt.features is None


def test_an_earlier_reply_is_interleaved_as_in_the_training_data(folder: Path) -> None:
    """vita_audio/data/dataset_qwen2.py: the ids of "words\\n<|audio|>", cut by text_audio_interval."""
    text = ids_of(folder, "One is the two.\n")
    before, sound = ids_of(folder, "<|im_start|>assistant\n"), [f"<|audio_{i}|>" for i in range(10)]
    assert len(text) > 5
    first, second = (  # 1,10,4,10 with boundaries: eight codes behind one text, what is left behind the rest
        ids_of(folder, "".join(("<|begin_of_audio|>", *codes, "<|end_of_audio|>"))) for codes in (sound[:8], sound[8:])
    )
    after = ids_of(folder, "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n" + READY)
    expected = [*before, *text[:1], *first, *text[1:], *second, *after]
    for said in ("One is the two.\n", "One is the two."):
        turns = [Turn.from_parts("assistant", said, AudioPart(codes=tuple(range(10)))), Turn.from_parts("user", "Hi")]
        assert list(family_of(folder, system="").encode_prompt(turns).ids) == expected


def heard(vectors: int) -> NDArray[np.float32]:
    return np.random.default_rng(vectors).random((vectors, HIDDEN), np.float32)


PLUS_PROMPTS: dict[str, tuple[list[Turn], list[int | str]]] = {
    "words and sound in one turn": (
        [Turn.from_parts("user", "one\n", AudioPart(vectors=heard(5)), "\ntwo", AudioPart(vectors=heard(3)))],
        [
            *(LUKE + "<|im_start|>user\none\n<|begin_of_audio|>", 5),
            *("<|end_of_audio|>\ntwo<|begin_of_audio|>", 3, "<|end_of_audio|><|im_end|>\n"),
        ],
    ),
    "spoken": (
        [Turn.from_parts("user", AudioPart(vectors=heard(5)))],
        [LUKE + "<|im_start|>user\n<|begin_of_audio|>", 5, "<|end_of_audio|><|im_end|>\n"],
    ),
    "a voice to imitate, a spoken question, history": (
        [
            Turn.from_parts("system", AudioPart(vectors=heard(6))),
            Turn.from_parts("user", AudioPart(vectors=heard(7))),
            Turn.from_parts("assistant", "one two\n"),
            Turn.from_parts("user", "Hi"),
        ],
        [
            "<|im_start|>system\nYour Voice: <|begin_of_audio|>",
            6,
            "<|end_of_audio|>\n<|im_end|>\n<|im_start|>user\n<|begin_of_audio|>",
            7,
            "<|end_of_audio|><|im_end|>\n<|im_start|>assistant\none two\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n",
        ],
    ),
    "spoken history of the assistant is codes": (
        [
            Turn.from_parts("user", "Hi"),
            Turn.from_parts("assistant", AudioPart(codes=(4,))),
            Turn.from_parts("user", "Hi"),
        ],
        [
            LUKE + "<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n<|begin_of_audio|><|audio_4|><|end_of_audio|><|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n"
        ],
    ),
}


@pytest.mark.parametrize("case", PLUS_PROMPTS)
def test_a_plus_models_prompt_has_vectors_where_the_published_code_puts_them(plus: Path, case: str) -> None:
    turns, parts = PLUS_PROMPTS[case]
    published, at = "", []
    for part in parts:
        if isinstance(part, int):
            begin = len(ids_of(plus, published))
            at += range(begin, begin + part)
            part = "<|context_of_audio|>" * part
        published += part
    prompt = family_of(plus).encode_prompt(turns)
    assert list(prompt.ids) == ids_of(plus, published + READY)
    sounds = [part for turn in turns for part in turn.parts if isinstance(part, AudioPart)]
    given = [sound.vectors for sound in sounds if sound.vectors is not None]
    if not given:
        assert prompt.features is None
    else:
        assert prompt.features is not None and list(prompt.features.steps) == at
        assert np.array_equal(prompt.features.vectors, np.concatenate(given))


def test_a_plus_model_hears_users_and_voices_and_speaks_codes(plus: Path) -> None:
    family = family_of(plus)
    roles = [family.audio_input_of(role) for role in ("system", "user", "assistant")]
    assert roles == ["vectors", "vectors", "codes"]
    wave = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    prompt = family.encode_prompt([Turn.from_parts("user", AudioPart(vectors=family.audio_encoder().encode(wave)))])
    assert prompt.features is not None
    # 98 frames of 10 ms, every 6th: 17; the published length is frames + 4
    assert family.audio_encoder().count_vectors(1.0) == len(prompt.features.steps) == 17 + 4


def test_words_that_spell_a_special_token_stay_words(family: Family) -> None:
    ids = family.encode_prompt([Turn.from_parts("user", "<|im_end|><|audio_3|>")]).ids
    assert ids.count(family.stop_ids[0]) == 2  # of the system turn and of this one
    assert not set(ids) & set(family.code_ids)


def test_channels_come_from_the_tokenizer_and_all_else_is_no_part_of_a_reply(family: Family) -> None:
    table = family.channels.table_SV[0]
    assert table[list(family.code_ids)].tolist() == [Channel.AUDIO] * CODES
    at = {name: family.vocabulary.special_id(name) for name in family.vocabulary.specials}
    assert {name for name, i in at.items() if table[i] == Channel.STOP} == {"<|im_end|>", "<|endoftext|>"}
    bounds = {name for name, i in at.items() if table[i] == Channel.BOUNDARY}
    assert bounds == {"<|begin_of_audio|>", "<|end_of_audio|>"}
    assert {table[at["<|im_start|>"]], table[at["<|begin_of_image|>"]], table[-1]} == {Channel.PAD}
    assert (table == Channel.TEXT).sum() == len(family.vocabulary.ordinary)
    assert family.stop_ids[0] == at["<|im_end|>"]


def published_chunks(text: list[int], codes: list[int], ratios: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """``text_audio_interval`` told anew: both sides are cut by their counts, the last of which repeats; then the
    shorter side decides how many chunks there are, and the last takes what the longer has left."""
    sides = []
    for ids, counts in ((text, list(ratios[::2])), (codes, [count - 2 for count in ratios[1::2]])):
        cuts = [0]
        while cuts[-1] < len(ids):
            cuts.append(cuts[-1] + counts[min(len(cuts) - 1, len(counts) - 1)])
        sides.append([ids[a:b] for a, b in pairwise(cuts)])
    n = min(map(len, sides))
    texts, audios = ([*side[: n - 1], [i for part in side[n - 1 :] for i in part]] for side in sides)
    return list(zip(texts, audios, strict=True))


@given(
    words=st.text(st.sampled_from("abc one. "), min_size=1, max_size=40),
    codes=st.lists(st.integers(0, CODES - 1), min_size=1, max_size=60),
    ratios=st.sampled_from([(1, 4, 3, 8, 4, 10), (1, 10, 4, 10), (13, 26), (1, 10)]),
)
def test_a_reference_reply_is_cut_as_in_training_and_reads_back_whole(
    folder: Path, words: str, codes: list[int], ratios: tuple[int, ...]
) -> None:
    family = family_of(folder, ratios=ratios)
    begin, end = (family.vocabulary.special_id(f"<|{name}_of_audio|>") for name in ("begin", "end"))
    expected: list[int] = []
    spoken_ids = [family.code_ids[code] for code in codes]
    for text, audio in published_chunks(ids_of(folder, words + "\n"), spoken_ids, ratios):
        expected += [*text, begin, *audio, end]
    target = family.encode_target([ReplyChunk(text=words, codes=tuple(codes))])
    assert list(target) == [*expected, family.stop_ids[0]]
    spoken = family.parse_reply(target)
    assert (spoken.text, spoken.codes, spoken.well_formed) == (words + "\n", tuple(codes), True)


@given(data=st.data())
def test_a_reply_cut_anywhere_or_made_of_any_ids_still_parses(family: Family, data: st.DataObject) -> None:
    target = family.encode_target([ReplyChunk(text="One is the two.", codes=tuple(range(20)))])
    cut = data.draw(st.integers(0, len(target) - 1))
    spoken = family.parse_reply(target[:cut])
    assert not spoken.well_formed and spoken.codes == tuple(range(len(spoken.codes)))
    noise = data.draw(st.lists(st.integers(0, family.channels.vocab - 1), max_size=20))
    assert all(0 <= code < CODES for code in family.parse_reply(noise).codes)


@pytest.mark.parametrize(
    ("left", "settings", "pattern"),
    [
        ([1, 4, 3, 8, 4, 10], {}, ((1, 2), (3, 6), (4, 8))),  # Balance
        ([1, 10, 4, 10], {}, ((1, 8), (4, 8))),  # Boost
        ([8192, 0], {}, ((1, 8), (4, 8))),  # Vanilla: no MCTP, cut as its training script says
        (None, {}, ((1, 8), (4, 8))),
        ([1, 10, 4, 10], {"ratios": (13, 26)}, ((13, 24),)),
    ],
)
def test_ratios_are_configured_or_those_that_training_left_in_the_folder(
    tmp_path: Path, left: list[int] | None, settings: dict[str, Any], pattern: Any
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"mtp_inference_mode": left} if left else {}))
    assert family_of(folder, **settings).interleave.pattern == pattern


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def without_tokens(*names: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in names]
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize(
    ("spoil", "settings", "rule"),
    [
        (
            edited("config.json", model_type="chatglm"),
            {},
            r"config\.json: model_type must be .*: got chatglm",
        ),
        (without("config.json"), {}, r"config\.json: a checkpoint folder must hold this file"),
        (without("tokenizer.json"), {}, r"tokenizer\.json: a checkpoint folder must hold this file"),
        (edited("config.json", vocab_size=330), {}, r"config\.json: vocab_size must exceed .*: got 330"),
        (
            edited("config.json", num_nextn_predict_layers=4),
            {},
            r"num_hidden_layers must exceed .*: got 4 and 4",
        ),
        (without_tokens("<|begin_of_audio|>"), {}, r"tokenizer\.json: .* <\|begin_of_audio\|>"),
        (without_tokens("<|audio_5|>"), {}, r"<\|audio_i\|> must be numbered from 0 without a gap: got 31"),
        (
            edited("generation_config.json", mtp_inference_mode="off"),
            {},
            r"generation_config\.json: .*: got off",
        ),
        (without("modeling_qwen2.py"), {"ratios": (1, 4, 3)}, r"model\.ratios must be pairs .*: got 1,4,3"),
        (without("modeling_qwen2.py"), {"ratios": (1, 2)}, r"at least 3 .*: got 1,2"),
    ],
)
def test_an_unfit_folder_is_refused_in_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], settings: dict[str, Any], rule: str
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    spoil(folder)
    with pytest.raises(ValueError, match=rule) as caught:
        family_of(folder, **settings)
    assert "\n" not in str(caught.value)


def test_the_codec_must_have_the_models_codes_at_the_models_rate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"model\.codec must name a codec's local folder for vita_audio"):
        family_of(folder).codec()
    small = write_codec(tmp_path / "small.safetensors", codes=16)
    with pytest.raises(ValueError, match=r"small\.safetensors: the codec must have as many codes .*: got 16"):
        family_of(folder, codec=small).codec()
    right = write_codec(tmp_path / "right.safetensors")
    assert family_of(folder, codec=right).codec().frame_rate == 12.5
    monkeypatch.setattr("speech.codecs.mel.MEL_HOP", 80)  # 25 codes per second
    with pytest.raises(ValueError, match=r"right\.safetensors: .* 12\.5 codes per second, .*: got 25"):
        family_of(folder, codec=right).codec()
