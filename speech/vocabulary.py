"""A checkpoint's tokenizer as we use it: words in, ids out, and special tokens by name only.

Invariant: text is never a special token. Words that spell one (``<|im_end|>`` in a question) are encoded as
the ordinary characters they are, so no data can end a turn or begin audio; special ids are asked for by name.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tiktoken
from tokenizers import Tokenizer

from speech.checkpoints.config_keys import format_json_value
from speech.checkpoints.folder import read_json

SPECIAL_TOKEN_PATTERN = re.compile(r"<\|.*\|>")
MOST_RANK = 2**32 - 1
MAX_TEXT_CHARACTERS = 400_000  # characters: no turn has as many, and tiktoken panics on a million spaces


class TextEncoding(Protocol):
    """Plain text and ids, special tokens unknown."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. ValueError: it cannot be said."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of plain ids; bytes that are no UTF-8 become U+FFFD."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Plain text by ``encoding``, special tokens by name. ``file``: for error messages.

    Example:
        vocabulary = Vocabulary.of_pieces(folder / "tokenizer.json")
        ids = [vocabulary.special_id("<|im_start|>"), *vocabulary.encode("user\\n")]
        codes = vocabulary.numbered_ids("<|audio_{}|>")  # codes[7] is the id of <|audio_7|>
    """

    file: Path
    encoding: TextEncoding
    ordinary: frozenset[int]  # ids of plain text
    specials: Mapping[str, int]

    @classmethod
    def of_words(cls, file: Path, names: Iterable[str] = ()) -> "Vocabulary":
        """A tokenizer.json of whole words; special are <|...|> and ``names``. ValueError: another model."""
        content = read_json(file)
        _check_model(file, content, "WordLevel")
        words = _map_tokens_to_ids(file, content["model"]["vocab"].items())
        specials = {word: i for word, i in words.items() if SPECIAL_TOKEN_PATTERN.fullmatch(word) or word in names}
        plain = {word: i for word, i in words.items() if word not in specials}
        check_companion_files(file, words)
        return cls(file, WordEncoding(plain), frozenset(plain.values()), specials)

    @classmethod
    def of_pieces(cls, file: Path) -> "Vocabulary":
        """A tokenizer.json of byte pairs (Qwen); special are its added tokens. ValueError: another model."""
        content = read_json(file)
        _check_model(file, content, "BPE")
        added = content.get("added_tokens") or []
        if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
            rule = "added_tokens must be a list of objects with content and id"
            raise ValueError(f"{file}: {rule}: got {format_json_value(added)}")
        specials = _map_tokens_to_ids(file, ((token.get("content"), token.get("id")) for token in added))
        plain = _map_tokens_to_ids(file, content["model"]["vocab"].items())
        try:
            tokenizer = Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{file}: cannot be read as a tokenizer: {error}") from error
        ordinary = frozenset(plain.values()) - frozenset(specials.values())
        check_companion_files(file, {**plain, **specials})
        _check_merges(file, content["model"].get("merges"))
        return cls(file, BytePairEncoding(tokenizer), ordinary, specials)

    @classmethod
    def of_ranks(cls, file: Path, pattern: str, specials: Mapping[str, int]) -> "Vocabulary":
        """A tiktoken file (``base64 rank`` lines) split by ``pattern``. ValueError: not such a file."""
        if not file.is_file():
            raise ValueError(f"{file}: a checkpoint folder must hold this file")
        try:
            ranks = _ranks(file.read_bytes())
            encoding = tiktoken.Encoding(file.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{file}: must hold one `base64 rank` per line: {error}") from error
        taken = set(ranks.values())
        for name, token in specials.items():
            if token in taken:
                raise ValueError(f"{file}: an id must be one token's: {name} has {token}, which is taken")
            taken.add(token)
        check_companion_files(file, specials)
        return cls(file, TiktokenEncoding(encoding), frozenset(ranks.values()), specials)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. ValueError: a word that the tokenizer does not know."""
        return self.encoding.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of plain ids; special ones are left out."""
        return self.encoding.decode([token for token in ids if token in self.ordinary])

    def special_id(self, name: str) -> int:
        """Id of a special token. ValueError: the tokenizer does not have it."""
        if name not in self.specials:
            raise ValueError(f"{self.file}: the tokenizer must know the special token {name}")
        return self.specials[name]

    def numbered_ids(self, pattern: str) -> tuple[int, ...]:
        """Ids of ``pattern`` with 0, 1, 2, ... in place of {}. ValueError: none, or a gap."""
        shape = re.compile(re.escape(pattern).replace(re.escape("{}"), r"(\d+)"))
        id_by_number = {int(m[1]): i for name, i in self.specials.items() if (m := shape.fullmatch(name))}
        if not id_by_number or sorted(id_by_number) != list(range(len(id_by_number))):
            rule = f"{pattern.format('i')} must be numbered from 0 without a gap"
            raise ValueError(f"{self.file}: {rule}: got {len(id_by_number)} of them")
        return tuple(id_by_number[number] for number in range(len(id_by_number)))

    @cached_property
    def largest(self) -> int:
        """The largest id; the embedding must have more rows than that."""
        return max(max(self.ordinary, default=0), max(self.specials.values(), default=0))


@dataclass(frozen=True)
class WordEncoding:
    """Whole words: a word is a token or it is unknown. Between any two there is one space."""

    ids: Mapping[str, int]

    def encode(self, text: str) -> list[int]:
        """One id per word."""
        unknown = [word for word in text.split() if word not in self.ids]
        if unknown:
            raise ValueError(f"word is not in the model's vocabulary: {', '.join(unknown)}")
        return [self.ids[word] for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The words, a space between them."""
        return " ".join(self._words[token] for token in ids)

    @cached_property
    def _words(self) -> dict[int, str]:
        return {token: word for word, token in self.ids.items()}


@dataclass(frozen=True)
class BytePairEncoding:
    """A ``tokenizers`` model; added tokens were taken out of it, so text cannot spell one."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        """Byte-pair ids."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes joined, then read as UTF-8."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))


@dataclass(frozen=True)
class TiktokenEncoding:
    """A tiktoken encoding without special tokens."""

    encoding: tiktoken.Encoding

    def encode(self, text: str) -> list[int]:
        """Byte-pair ids. ValueError: text so long that the library's expression would overflow."""
        if len(text) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"text must have at most {MAX_TEXT_CHARACTERS} characters: got {len(text)}")
        return list(self.encoding.encode_ordinary(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes joined, then read as UTF-8."""
        return str(self.encoding.decode(list(ids), errors="replace"))


def _ranks(content: bytes) -> dict[bytes, int]:
    """Of a tiktoken file. ValueError: a line of another form, or what the library would panic at."""
    ranks: dict[bytes, int] = {}
    owners: set[int] = set()
    for line in content.splitlines():
        token, rank = line.split() if line.strip() else (b"", b"")
        if not token:
            continue
        piece, number = base64.b64decode(token, validate=True), int(rank)
        if not 0 <= number <= MOST_RANK:
            raise ValueError(f"a rank is from 0 to {MOST_RANK}: got {number}")
        if piece in ranks or number in owners:
            raise ValueError(f"each token and each rank must be there once: got {line.decode()!r} again")
        ranks[piece] = number
        owners.add(number)
    return ranks


def check_companion_files(file: Path, ids: Mapping[str, int]) -> None:
    """ValueError: a file beside ``file``, which other programs read, gives a token another id.

    ``ids``: of the tokens, as they are read here. A token that only the other file has is nobody's here.
    """
    tokens = {token: name for name, token in ids.items()}
    for name in ("added_tokens.json", "vocab.json", "tokenizer_config.json"):
        other = file.with_name(name)
        content = read_json(other) if other.is_file() else {}
        if name == "tokenizer_config.json":
            content = _read_added_tokens(other, content)
        for token, number in content.items():
            if type(number) is not int:
                raise ValueError(f"{other}: the id of {token} must be a whole number: got {format_json_value(number)}")
            known = ids.get(token)
            if known is not None and known != number:
                raise ValueError(f"{other}: {token} must have the id {known} of {file.name}: got {number}")
            if tokens.get(number, token) != token:
                raise ValueError(f"{other}: {number} must be {tokens[number]}, as in {file.name}: got {token}")


def _read_added_tokens(file: Path, content: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, as added_tokens_decoder has them."""
    added = content.get("added_tokens_decoder") or {}
    try:
        return {str(token["content"]): int(number) for number, token in added.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{file}: added_tokens_decoder must give each id an object with content") from None


def _check_merges(file: Path, merges: object) -> None:
    """ValueError: a merges.txt beside ``file`` merges other pairs, or in another order."""
    other = file.with_name("merges.txt")
    if not other.is_file():
        return
    lines = [line.rstrip("\r") for line in other.read_text(encoding="utf-8", errors="replace").split("\n")]
    lines = lines[1:] if lines[0].startswith("#version") else lines
    listed = [line for line in lines if line]
    given = merges if isinstance(merges, list) else []
    mine = [pair if isinstance(pair, str) else " ".join(map(str, pair)) for pair in given]
    if listed != mine:
        place = next((i for i, (read, used) in enumerate(zip(listed, mine, strict=False)) if read != used), None)
        got = f"{len(listed)} for {len(mine)}" if place is None else f"{listed[place]!r} for {mine[place]!r}"
        raise ValueError(f"{other}: must have the merges of {file.name}, which is read: got {got}")


def _check_model(file: Path, content: Mapping[str, Any], wanted: str) -> None:
    model = content.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind != wanted:
        raise ValueError(f"{file}: the tokenizer must be a {wanted} model: got {kind}")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ValueError(f"{file}: the tokenizer must have a vocabulary of words and ids")


def _map_tokens_to_ids(file: Path, pairs: Iterable[tuple[object, object]]) -> dict[str, int]:
    """Token -> id. ValueError: a token that is no text, an id that is no natural number or another's."""
    id_by_token: dict[str, int] = {}
    owners: dict[int, str] = {}
    for token, number in pairs:
        if not isinstance(token, str) or type(number) is not int or number < 0:
            raise ValueError(f"{file}: tokens must be text with an id of at least 0: got {token!r}: {number!r}")
        if owners.setdefault(number, token) != token or id_by_token.setdefault(token, number) != number:
            rule = f"tokens must have one id each: {owners[number]!r} and {token!r} have {number}"
            raise ValueError(f"{file}: {rule}")
    return id_by_token
