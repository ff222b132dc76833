"""The embedded family: whole words and codec codes in one vocabulary, VITA-Audio's delimited replies.

    prompt   <|im_start|> user <|begin_of_audio|> codes <|end_of_audio|> <|im_end|> <|im_start|> assistant
    reply    (word+ <|begin_of_audio|> code+ <|end_of_audio|>)+ <|im_end|>

Every id is read from the checkpoint's tokenizer. Role words, ``<|im_start|>``, fillers and the rows beyond
the tokenizer are PAD: a reply has no business with them.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tokenizers import Tokenizer

from speech.channels import ChannelMap
from speech.checkpoint import read_json
from speech.codec import Codec
from speech.codecs import load_codec
from speech.families.base import Chunk, Role, Spoken, Turn
from speech.interleave import Interleave

MARKERS = ("<|im_start|>", "<|im_end|>", "<|begin_of_audio|>", "<|end_of_audio|>")
CODE = re.compile(r"<\|audio_(\d+)\|>")
MARKER = re.compile(r"<\|.*\|>")


class TinyFamily:
    """Layout of the tiny world's checkpoints. Build it with ``TinyFamily.load``.

    Example:
        family = TinyFamily.load(Path("examples/tiny_world/base"))
        ids = family.prompt([Turn(role="user", text="what is one plus two")])
        spoken = family.split(sampled)  # words, codes, well_formed
    """

    def __init__(self, path: Path, words: dict[str, int], rows: int, codec: Path) -> None:
        """``words``: token -> id of the whole tokenizer; ``rows``: rows of the embedding."""
        missing = [token for token in (*MARKERS, *get_args(Role)) if token not in words]
        if missing:
            raise ValueError(f"{path / 'tokenizer.json'}: a tiny tokenizer must know {', '.join(missing)}")
        start, stop, begin, end = (words[marker] for marker in MARKERS)
        self.name = "tiny"
        self.path = path
        self.stop_ids: tuple[int, ...] = (stop,)
        self._start, self._begin, self._end = start, begin, end
        self._roles = {role: words[role] for role in get_args(Role)}
        self._code_ids = _code_ids(words, path)
        self._text_ids = {w: i for w, i in words.items() if w not in self._roles and not MARKER.fullmatch(w)}
        self._word_of = {i: word for word, i in self._text_ids.items()}
        self._code_of = {token: code for code, token in enumerate(self._code_ids)}
        self.channels = ChannelMap.build(
            vocab=rows, text=self._word_of, audio=self._code_of, boundary=(begin, end), stop=(stop,)
        )
        self.interleave = Interleave("delimited", self.channels, self.stop_ids, begin, end)
        self._codec_path = codec
        self._codec: Codec | None = None

    @classmethod
    def load(cls, path: Path) -> "TinyFamily":
        """Read tokenizer, config and wavgate.json. ValueError names the file and the rule."""
        ours = read_json(path / "wavgate.json")
        if ours.get("family") != "tiny":
            raise ValueError(f"{path / 'wavgate.json'}: family must be tiny: got {ours.get('family')}")
        codec = ours.get("codec")
        if not isinstance(codec, str) or Path(codec).name != codec or not (path / codec).is_file():
            raise ValueError(f"{path / 'wavgate.json'}: codec must name a file of this folder: got {codec}")
        rows = read_json(path / "config.json").get("vocab_size")
        words = _tokens(path / "tokenizer.json")
        if not isinstance(rows, int) or rows <= max(words.values()):
            rule = f"vocab_size must exceed the tokenizer's largest id {max(words.values())}"
            raise ValueError(f"{path / 'config.json'}: {rule}: got {rows}")
        return cls(path, words, rows, path / codec)

    def prompt(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Ids of the dialogue so far, ending where the assistant starts to speak."""
        if not turns:
            raise ValueError("a prompt needs at least one turn: got none")
        ids: list[int] = []
        for turn in turns:
            ids += [self._start, self._roles[turn.role]]
            if turn.text is not None:
                ids += self._words(turn.text)
            else:
                ids += [self._begin, *self._codes(turn.codes or ()), self._end]
            ids += self.stop_ids
        return (*ids, self._start, self._roles["assistant"])

    def target(self, chunks: Sequence[Chunk]) -> tuple[int, ...]:
        """Ids of a reference reply, one delimited chunk per ``Chunk``, stop id included."""
        texts = [self._words(chunk.text) for chunk in chunks]
        return tuple(self.interleave.merge(texts, [self._codes(chunk.codes) for chunk in chunks]))

    def split(self, ids: Sequence[int]) -> Spoken:
        """Words and codes of a reply, whatever state it is in."""
        texts, codes = self.interleave.split(ids)
        return Spoken(
            text=" ".join(self._word_of[token] for token in texts),
            codes=tuple(self._code_of[token] for token in codes),
            well_formed=self.interleave.well_formed(ids),
        )

    def codec(self) -> Codec:
        """The codec, loaded on first use. ValueError: unreadable, or of another size than the tokenizer's."""
        if self._codec is None:
            codec = load_codec(self._codec_path)
            if codec.size != len(self._code_ids):
                raise ValueError(
                    f"{self._codec_path}: the codec must have as many codes as the tokenizer: "
                    f"got {codec.size}, tokenizer {len(self._code_ids)}"
                )
            self._codec = codec
        return self._codec

    def _words(self, text: str) -> list[int]:
        unknown = [word for word in text.split() if word not in self._text_ids]
        if unknown:
            raise ValueError(f"word is not in the model's vocabulary: {', '.join(unknown)}")
        return [self._text_ids[word] for word in text.split()]

    def _codes(self, codes: Sequence[int]) -> list[int]:
        for code in codes:
            if not 0 <= code < len(self._code_ids):
                raise ValueError(f"code must lie in [0, {len(self._code_ids)}): got {code}")
        return [self._code_ids[code] for code in codes]


def _code_ids(words: dict[str, int], path: Path) -> list[int]:
    """Token id of each code, which must be numbered 0, 1, 2, ..."""
    found = {int(match[1]): i for word, i in words.items() if (match := CODE.fullmatch(word))}
    if not found or sorted(found) != list(range(len(found))):
        rule = "<|audio_i|> must be numbered from 0 without a gap"
        raise ValueError(f"{path / 'tokenizer.json'}: {rule}: got {len(found)} of them")
    return [found[code] for code in range(len(found))]


def _tokens(file: Path) -> dict[str, int]:
    """Token -> id. Whole words only: a word is a token or it is unknown."""
    kind = (read_json(file).get("model") or {}).get("type")
    if kind != "WordLevel":
        raise ValueError(f"{file}: a tiny tokenizer must be a WordLevel model: got {kind}")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file}: cannot be read as a tokenizer: {error}") from error
    return dict(tokenizer.get_vocab(with_added_tokens=True))
