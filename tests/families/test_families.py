"""The tiny family and its encoder: ids come from the checkpoint, a reply comes back as it went in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import ModelConfig
from speech.codecs.mel import MelCodec
from speech.data import manifest
from speech.data.manifest import ManifestRow
from speech.dataset import RowEncoder, RowLengths
from speech.families import load_family
from speech.families.base import Family
from speech.grammar.channels import Channel
from speech.sound import audio
from speech.turns import AudioPart, ReplyChunk, Turn
from tests.helpers.sound_fixtures import WORDS

WORD = st.sampled_from(WORDS)
CHUNK = st.builds(
    lambda words, codes: ReplyChunk(text=" ".join(words), codes=tuple(codes)),
    st.lists(WORD, min_size=1, max_size=3),
    st.lists(st.integers(0, 31), min_size=1, max_size=5),
)


@pytest.fixture(scope="session")
def family(micro_checkpoint: Path) -> Family:
    return load_family(ModelConfig(family="tiny", path=micro_checkpoint))


def tokens(family: Family) -> dict[str, int]:
    return dict(json.loads((family.path / "tokenizer.json").read_text())["model"]["vocab"])


def test_channels_follow_the_tokenizer_and_cover_the_whole_embedding(family: Family) -> None:
    ids = tokens(family)
    channels = family.channels
    assert channels.vocab == json.loads((family.path / "config.json").read_text())["vocab_size"] > len(ids)
    assert set(np.flatnonzero(channels.table_SV[0] == Channel.TEXT)) == {ids[word] for word in WORDS}
    assert set(np.flatnonzero(channels.table_SV[0] == Channel.AUDIO)) == {ids[f"<|audio_{i}|>"] for i in range(32)}
    assert set(np.flatnonzero(channels.table_SV[0] == Channel.BOUNDARY)) == {
        ids["<|begin_of_audio|>"],
        ids["<|end_of_audio|>"],
    }
    assert set(np.flatnonzero(channels.table_SV[0] == Channel.STOP)) == {ids["<|im_end|>"]} == set(family.stop_ids)


def test_a_prompt_is_laid_out_as_documented(family: Family) -> None:
    ids = tokens(family)
    turns = [
        Turn.from_parts("system", "say it slowly"),
        Turn.from_parts("user", AudioPart(codes=(3, 3, 31))),
        Turn.from_parts("assistant", "the answer is two"),
        Turn.from_parts("user", "what is one plus two"),
    ]
    expected = (
        "<|im_start|> system say it slowly <|im_end|> "
        "<|im_start|> user <|begin_of_audio|> <|audio_3|> <|audio_3|> <|audio_31|> <|end_of_audio|> "
        "<|im_end|> "
        "<|im_start|> assistant the answer is two <|im_end|> "
        "<|im_start|> user what is one plus two <|im_end|> "
        "<|im_start|> assistant"
    )
    assert family.encode_prompt(turns).ids == tuple(ids[token] for token in expected.split())


def test_a_target_is_laid_out_as_documented(family: Family) -> None:
    target = family.encode_target([ReplyChunk(text="the answer", codes=(1, 2)), ReplyChunk(text="two", codes=(5,))])
    assert family.channels.to_letters(target) == "TTBAABTBABE"


@given(chunks=st.lists(CHUNK, min_size=1, max_size=4))
def test_a_target_splits_back_into_its_words_and_codes(family: Family, chunks: list[ReplyChunk]) -> None:
    spoken = family.parse_reply(family.encode_target(chunks))
    assert spoken.well_formed
    assert spoken.text == " ".join(chunk.text for chunk in chunks)
    assert spoken.codes == tuple(code for chunk in chunks for code in chunk.codes)


@given(data=st.data())
def test_any_ids_split_and_only_whole_replies_are_well_formed(family: Family, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, family.channels.vocab - 1), max_size=20))
    spoken = family.parse_reply(ids)
    assert all(0 <= code < 32 for code in spoken.codes)
    assert spoken.well_formed == family.interleave.well_formed(ids)
    target = family.encode_target([ReplyChunk(text="two", codes=(1,))])
    assert not any(family.parse_reply(target[:n]).well_formed for n in range(len(target)))


@pytest.mark.parametrize(
    ("use", "rule"),
    [
        (lambda f: f.encode_prompt([Turn.from_parts("user", "what is pi")]), "not in the model's vocabulary: pi"),
        (lambda f: f.encode_prompt([Turn.from_parts("user", "user")]), "not in the model's vocabulary: user"),
        (lambda f: f.encode_target([ReplyChunk(text="One", codes=(1,))]), "not in the model's vocabulary: One"),
        (lambda f: f.encode_target([ReplyChunk(text="<|audio_1|>", codes=(1,))]), "vocabulary: <|audio_1|>"),
        (
            lambda f: f.encode_prompt([Turn.from_parts("user", AudioPart(codes=(32,)))]),
            r"code must lie in \[0, 32\): got 32",
        ),
        (lambda f: f.encode_prompt([Turn.from_parts("user", AudioPart(codes=(-1,)))]), "got -1"),
        (lambda f: f.encode_prompt([]), "at least one turn"),
        (lambda f: f.encode_target([]), "at least one: got 0 and 0"),
        (lambda f: f.encode_target([ReplyChunk(text="", codes=(1,))]), "at least one TEXT id"),
    ],
)
def test_what_has_no_ids_is_refused(family: Family, use: Callable[[Family], Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule.replace("|", r"\|")):
        use(family)


def test_a_turn_has_something_and_words_do_not_follow_words() -> None:
    for parts in ((), ("one", "two")):
        with pytest.raises(ValueError, match="each stretch of words one part"):
            Turn.from_parts("user", *parts)
    with pytest.raises(ValueError, match="sound is codes, vectors, or both: got neither"):
        AudioPart()


def test_words_and_sound_of_a_turn_stand_in_their_order(family: Family) -> None:
    turn = Turn.from_parts("user", "say \n", AudioPart(codes=(3, 31)), "\n", AudioPart(codes=(4,)), " slowly")
    expected = (
        "<|im_start|> user say <|begin_of_audio|> <|audio_3|> <|audio_31|> <|end_of_audio|> "
        "<|begin_of_audio|> <|audio_4|> <|end_of_audio|> slowly <|im_end|> <|im_start|> assistant"
    )
    ids = tokens(family)
    assert family.encode_prompt([turn]).ids == tuple(ids[name] for name in expected.split())


def test_an_earlier_reply_has_the_ids_of_a_reference_reply(family: Family) -> None:
    asked, opened = (
        Turn.from_parts("user", "what is two"),
        family.encode_prompt([Turn.from_parts("user", "what is two")]).ids,
    )
    first, second = AudioPart(codes=(3, 4)), AudioPart(codes=(5,))
    pairs = [ReplyChunk(text="the", codes=(3, 4)), ReplyChunk(text="answer", codes=(5,))]
    whole = [ReplyChunk(text="the answer", codes=(3, 4, 5))]
    for parts, chunks in (
        (("the ", first, " answer\n", second), pairs),
        (("the answer", first, second), whole),
        ((first, second, "the answer"), whole),
        ((first, "the", second, "answer"), whole),
    ):
        prompt = family.encode_prompt([asked, Turn.from_parts("assistant", *parts), asked])
        assert prompt.ids == (*opened, *family.encode_target(chunks), *opened)


def test_the_codec_has_a_code_for_every_audio_token_and_is_loaded_once(family: Family) -> None:
    assert family.codec().size == int((family.channels.table_SV[0] == Channel.AUDIO).sum())
    assert family.codec() is family.codec()


def test_an_unknown_family_lists_the_known_ones(micro_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"must be one of .*tiny.*: got tinny"):
        load_family(ModelConfig(family="tinny", path=micro_checkpoint))


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file in a checkpoint folder."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return edit


def without_token(token: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["added_tokens"] = [item for item in content["added_tokens"] if item["content"] != token]
        del content["model"]["vocab"][token]
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return edit


def other_codec(folder: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 1280 * 32).astype(np.float32)
    MelCodec.fit([noise], size=16, seed=0, rounds=1).save(folder / "codec.safetensors")


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("wavgate.json", lambda f: (f / "wavgate.json").unlink(), "must hold this file"),
    ("tokenizer.json", lambda f: (f / "tokenizer.json").unlink(), "must hold this file"),
    ("config.json", lambda f: (f / "config.json").unlink(), "must hold this file"),
    ("config.json", lambda f: (f / "config.json").write_text("{"), "must be JSON"),
    ("config.json", lambda f: (f / "config.json").write_text("[]"), "must be a JSON object: got list"),
    ("config.json", edited("config.json", vocab_size=10), "vocab_size must exceed"),
    ("wavgate.json", edited("wavgate.json", family="vita_audio"), "family must be tiny: got vita_audio"),
    ("wavgate.json", edited("wavgate.json", codec="../codec.safetensors"), "a file of this folder"),
    ("wavgate.json", lambda f: (f / "codec.safetensors").unlink(), "a file of this folder"),
    ("tokenizer.json", edited("tokenizer.json", model={"type": "BPE"}), "WordLevel model: got BPE"),
    ("tokenizer.json", lambda f: (f / "tokenizer.json").write_text("{}"), "WordLevel model: got None"),
    (
        "tokenizer.json",
        edited("tokenizer.json", model={"type": "WordLevel"}),
        "must have a vocabulary of words and ids",
    ),
    ("tokenizer.json", without_token("assistant"), "must know the special token assistant"),
    ("tokenizer.json", without_token("<|end_of_audio|>"), r"must know the special token <\|end_of_audio\|>"),
    ("tokenizer.json", without_token("<|audio_7|>"), "numbered from 0 without a gap"),
    ("codec.safetensors", other_codec, "as many codes as the tokenizer: got 16, tokenizer 32"),
    ("codec.safetensors", lambda f: (f / "codec.safetensors").write_bytes(b"short"), "safetensors"),
]


@pytest.mark.parametrize(("file", "damage", "rule"), BROKEN)
def test_a_damaged_checkpoint_is_refused_by_file_and_rule(
    micro_checkpoint: Path, tmp_path: Path, file: str, damage: Callable[[Path], Any], rule: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(micro_checkpoint, folder)
    damage(folder)
    with pytest.raises(ValueError, match=rule) as caught:
        load_family(ModelConfig(family="tiny", path=folder)).codec()
    assert str(folder / file) in str(caught.value) and "\n" not in str(caught.value)


# -- rows as ids


class CountingCodec:
    """A code per 1280 samples; counts what it is asked to encode."""

    input_sample_rate, sample_rate, frame_rate, size = 16_000, 16_000, 12.5, 32
    fingerprint = "0" * 64

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, wave: np.ndarray[Any, Any]) -> list[int]:
        self.encoded += 1
        return [round(float(block[0]) * 10) for block in wave.reshape(-1, 1280)]

    def decode(self, codes: Any) -> Any:
        raise AssertionError("encoding rows never decodes")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Clips 0.wav .. 4.wav, of one block each, that encode to their own number; 9.wav is a copy of 1.wav."""
    for n in range(5):
        audio.write(tmp_path / f"{n}.wav", np.tile(np.float32([n / 10, 0]), 640), 16_000)
    shutil.copy(tmp_path / "1.wav", tmp_path / "9.wav")
    return tmp_path


def row(**changes: Any) -> ManifestRow:
    content: dict[str, Any] = {
        "id": "row-1",
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [["0.wav", "1.wav"]],
        "question_text": "what is one plus one",
        "task_type": "arithmetic",
        "sft_target_text": "the answer is two",
        "sft_target_audio": ["1.wav", "2.wav", "3.wav", "4.wav"],
    }
    return ManifestRow.model_validate(content | changes)


@pytest.fixture
def codec(family: Family, monkeypatch: pytest.MonkeyPatch) -> CountingCodec:
    counting = CountingCodec()
    monkeypatch.setitem(vars(family), "_codec", counting)  # where it is kept once it is made
    return counting


def test_a_target_with_a_clip_per_word_is_word_aligned(family: Family, data: Path, codec: CountingCodec) -> None:
    example = RowEncoder(family, data, 10.0).encode(row())
    assert example.row_id == "row-1"
    assert example.prompt == family.encode_prompt([Turn.from_parts("user", AudioPart(codes=(0, 1)))])
    words = zip("the answer is two".split(), (1, 2, 3, 4), strict=True)
    assert example.target.ids == family.encode_target([ReplyChunk(text=word, codes=(code,)) for word, code in words])


def test_a_target_with_other_clips_is_one_chunk(family: Family, data: Path, codec: CountingCodec) -> None:
    example = RowEncoder(family, data, 10.0).encode(row(sft_target_audio=["1.wav", "2.wav"]))
    assert example.target.ids == family.encode_target([ReplyChunk(text="the answer is two", codes=(1, 2))])


def test_written_and_spoken_turns_mix_in_order(family: Family, data: Path, codec: CountingCodec) -> None:
    messages = [
        {"role": "user", "content": "<|audio|>"},
        {"role": "assistant", "content": "the answer is two"},
        {"role": "user", "content": "<|audio|>"},
    ]
    example = RowEncoder(family, data, 10.0).encode(row(messages=messages, audios=[["3.wav"], ["4.wav"]]))
    turns = [
        Turn.from_parts("user", AudioPart(codes=(3,))),
        Turn.from_parts("assistant", "the answer is two"),
        Turn.from_parts("user", AudioPart(codes=(4,))),
    ]
    assert example.prompt == family.encode_prompt(turns)


def test_a_manifests_mixed_turns_are_encoded_and_measured(family: Family, data: Path, codec: CountingCodec) -> None:
    messages = [
        {"role": "user", "content": "what is <|audio|> plus\n<|audio|>"},
        {"role": "assistant", "content": "the answer\n<|audio|>"},
        {"role": "user", "content": "say it slowly\n\n<|audio|>"},
        {"role": "assistant", "content": "<|audio|>two"},
        {"role": "user", "content": "\n<|audio|>"},
    ]
    audios = [["4.wav"], ["1.wav", "2.wav"], ["3.wav", "4.wav"], ["3.wav"], ["1.wav", "2.wav"], ["4.wav"]]
    content = row().model_dump(mode="json", exclude_none=True) | {"messages": messages, "audios": audios}
    (data / "manifest.jsonl").write_text(json.dumps(content) + "\n")
    (read,) = manifest.read_manifest(data / "manifest.jsonl", 10.0, deep=True)
    example = RowEncoder(family, data, 10.0).encode(read)
    turns = [
        Turn.from_parts("user", "what is", AudioPart(codes=(4,)), "plus", AudioPart(codes=(1, 2))),
        Turn.from_parts("assistant", "the", AudioPart(codes=(3,)), "answer", AudioPart(codes=(4,))),  # a clip per word
        Turn.from_parts("user", "say it slowly", AudioPart(codes=(3,))),
        Turn.from_parts("assistant", "two", AudioPart(codes=(1, 2))),
        Turn.from_parts("user", AudioPart(codes=(4,))),
    ]
    assert example.prompt == family.encode_prompt(turns)
    assert RowLengths(family, data).count_ids(read) == (len(example.prompt.ids), len(example.target.ids))


def test_equal_clips_are_encoded_once_whatever_their_name(family: Family, data: Path, codec: CountingCodec) -> None:
    encoder = RowEncoder(family, data, 10.0)
    encoder.encode(row(audios=[["1.wav", "9.wav", "1.wav"]], sft_target_audio=["9.wav"]))
    encoder.encode(row(audios=[["9.wav"]], sft_target_audio=["1.wav"]))
    assert codec.encoded == 1


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"sft_target_text": "the answer is pi"}, "row row-1: word is not in the model's vocabulary: pi"),
        ({"audios": [["gone.wav"]]}, "row row-1: .*does not exist"),
        ({"audios": [["../0.wav"]]}, "row row-1: audio path must be relative"),
    ],
)
def test_a_row_that_cannot_be_encoded_is_named(
    family: Family, data: Path, codec: CountingCodec, changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        RowEncoder(family, data, 10.0).encode(row(**changes))


@settings(max_examples=5)
@given(seconds=st.floats(0.1, 0.5))
def test_real_codec_codes_make_a_well_formed_target(
    family: Family, tmp_path_factory: pytest.TempPathFactory, seconds: float
) -> None:
    root = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * 16_000)).astype(np.float32)
    audio.write(root / "a.wav", noise, 16_000)
    example = RowEncoder(family, root, 10.0).encode(row(audios=[["a.wav"]], sft_target_audio=["a.wav"]))
    assert family.parse_reply(example.target.ids).well_formed
    assert family.parse_reply(example.target.ids).codes == tuple(
        family.codec().encode(audio.read(root / "a.wav", 16_000, 10.0))
    )
