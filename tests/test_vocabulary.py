"""Tokenizers are data of others: what they cannot be is refused by file and rule, and text is never special."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from speech.vocabulary import LONGEST, Vocabulary

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
        {"added_tokens": [{"content": "x", "id": "z"}]},
        {"added_tokens": [{"content": "x", "id": -1}]},
        {"added_tokens": [{"content": 7, "id": 7}]},
        {"model": {"type": "BPE", "vocab": {"a": None}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}},
        {"model": {"type": "BPE", "vocab": [], "merges": []}},
    ],
)
def test_a_malformed_tokenizer_is_one_line_that_names_the_file(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    file = pieces(tmp_path, **changes)
    with pytest.raises(ValueError, match="must") as refused:
        Vocabulary.of_pieces(file)
    assert str(refused.value).startswith(f"{file}: ") and "\n" not in str(refused.value)


def test_text_is_bytes_there_and_back_and_never_a_special_token(tmp_path: Path) -> None:
    file = pieces(tmp_path, added_tokens=[{"content": "ab", "id": 9, "special": True}])
    vocabulary = Vocabulary.of_pieces(file)
    assert vocabulary.encode("abab") == [2, 2] and vocabulary.decode([2, 9, 0]) == "aba"
    assert vocabulary.special("ab") == 9


def test_a_million_spaces_are_refused_where_the_library_would_panic(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    file.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for t, i in BYTES.items()))
    vocabulary = Vocabulary.of_ranks(file, r"\s+(?!\S)|\s+|\S+", {})
    assert len(vocabulary.encode(" " * 1000)) == 1000
    with pytest.raises(ValueError, match=f"at most {LONGEST} characters: got 1200000"):
        vocabulary.encode(" " * 1_200_000)
