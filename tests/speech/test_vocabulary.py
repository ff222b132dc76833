"""Tokenizers are data of others: what they cannot be is refused by file and rule, and text is never special."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from speech.vocabulary import MAX_TEXT_CHARACTERS, Vocabulary

BYTES = {bytes([i]): i for i in range(256)}


def pieces(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    }
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content | changes))
    return file


@pytest.mark.parametrize(
    "changes",
    [
        {"added_tokens": [{"content": "x"}]},
        {"added_tokens": [1]},
        {"added_tokens": {"<|x|>": 5}},
        {"added_tokens": 5},
        {"added_tokens": "<|x|>"},
        {"added_tokens": [{"content": "x", "id": "z"}]},
        {"added_tokens": [{"content": "x", "id": -1}]},
        {"added_tokens": [{"content": 7, "id": 7}]},
        {"model": {"type": "BPE", "vocab": {"a": None}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}},
        {"model": {"type": "BPE", "vocab": [], "merges": []}},
    ],
)
def test_a_malformed_tokenizer_is_one_line_that_names_the_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = pieces(tmp_path, **changes)
    with pytest.raises(ValueError, match="must") as refused:
        Vocabulary.of_pieces(file)
    assert str(refused.value).startswith(f"{file}: ") and "\n" not in str(refused.value)


def test_text_is_bytes_there_and_back_and_never_a_special_token(tmp_path: Path) -> None:
    file = pieces(tmp_path, added_tokens=[{"content": "ab", "id": 9, "special": True}])
    vocabulary = Vocabulary.of_pieces(file)
    assert vocabulary.encode("abab") == [2, 2] and vocabulary.decode([2, 9, 0]) == "aba"
    assert vocabulary.special_id("ab") == 9


def test_a_million_spaces_are_refused_where_the_library_would_panic(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in BYTES.items()))
    vocabulary = Vocabulary.of_ranks(file, r"\s+(?!\S)|\s+|\S+", {})
    assert len(vocabulary.encode(" " * 1000)) == 1000
    with pytest.raises(ValueError, match=f"at most {MAX_TEXT_CHARACTERS} characters: got 1200000"):
        vocabulary.encode(" " * 1_200_000)


def test_a_file_beside_the_tokenizer_that_gives_a_token_another_id_is_refused(tmp_path: Path) -> None:
    file = pieces(tmp_path, added_tokens=[{"content": "<|x|>", "id": 5}])

    def refusal(name: str, content: dict[str, Any]) -> str:
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(ValueError) as refused:
            Vocabulary.of_pieces(file)
        (tmp_path / name).unlink()
        return str(refused.value).removeprefix(f"{tmp_path / name}: ")

    decoder = {"5": {"content": "<|y|>"}}
    assert refusal("added_tokens.json", {"<|x|>": 6}) == "<|x|> must have the id 5 of tokenizer.json: got 6"
    assert refusal("vocab.json", {"a": 0, "c": 1}) == "1 must be b, as in tokenizer.json: got c"
    assert refusal("vocab.json", {"a": 0, "b": 2}) == "b must have the id 1 of tokenizer.json: got 2"
    rule = "5 must be <|x|>, as in tokenizer.json: got <|y|>"
    assert refusal("tokenizer_config.json", {"added_tokens_decoder": decoder}) == rule
    assert "must give each id an object" in refusal("tokenizer_config.json", {"added_tokens_decoder": [1]})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"5": {"content": "<|x|>"}}}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|x|>": 5, "<|of another program|>": 9}))
    assert Vocabulary.of_pieces(file).special_id("<|x|>") == 5


def test_two_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    both = [{"content": "<|x|>", "id": 5}, {"content": "<|y|>", "id": 5}]
    with pytest.raises(ValueError, match=r"one id each: '<\|x\|>' and '<\|y\|>' have 5"):
        Vocabulary.of_pieces(pieces(tmp_path, added_tokens=both))
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for piece, rank in BYTES.items()]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"an id must be one token's: <\|x\|> has 7, which is taken"):
        Vocabulary.of_ranks(tmp_path / "tokenizer.model", ".", {"<|x|>": 7})


@pytest.mark.parametrize("last", ["YWI= 7", "YQ== 300", "YWI= -1", "YWI= 99999999999", "YWI= x", "YWI=", "é 300"])
def test_a_malformed_file_of_ranks_is_one_line_that_names_the_file(tmp_path: Path, last: str) -> None:
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for piece, rank in BYTES.items()]
    file = tmp_path / "tokenizer.model"
    file.write_text("\n".join([*lines, last]))
    with pytest.raises(ValueError, match="must") as refused:
        Vocabulary.of_ranks(file, ".", {})
    assert str(refused.value).startswith(f"{file}: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [{"<|x|>": [5]}, {"<|x|>": {}}, {"<|x|>": "5"}])
def test_an_id_that_is_no_number_beside_a_tokenizer_is_refused(tmp_path: Path, content: Any) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"added_tokens.json: the id of <\|x\|> must be a whole number"):
        Vocabulary.of_pieces(pieces(tmp_path))


def test_merges_beside_a_tokenizer_must_be_its_own(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    vocabulary = {"a": 0, "b": 1, "ab": 2, "abb": 3}
    for merges in (["a b", "ab b"], [["a", "b"], ["ab", "b"]]):
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        file.write_text(json.dumps({"model": model, "added_tokens": []}))
        for text in ("#version: 0.2\na b\nab b\n", "a b\r\nab b"):
            (tmp_path / "merges.txt").write_text(text)
            assert Vocabulary.of_pieces(file).encode("abb") == [3]
        for text, got in (("ab b\na b\n", "'ab b' for 'a b'"), ("a b\n", "1 for 2"), ("", "0 for 2")):
            (tmp_path / "merges.txt").write_text(text)
            with pytest.raises(ValueError, match=rf"merges.txt: must have the merges of .*: got {got}"):
                Vocabulary.of_pieces(file)
