"""Manifest rows as token ids: the prompt that an engine continues and the reference reply that anchors.

Only code that owns a codec encodes (rollout workers); everyone else is sent ids.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speech import audio
from speech.families.base import Chunk, Family, Turn
from speech.manifest import MARKER, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One encoded row. ``target`` ends with the stop id."""

    row_id: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]


class Lengths:
    """How many ids rows have, from text and audio headers alone: no audio is decoded.

    Example:
        prompt, target = Lengths(family, manifest.parent).of(row)
    """

    def __init__(self, family: Family, root: Path) -> None:
        self._family, self._root = family, root
        self._rate = family.codec().frame_rate
        self._known: dict[str, int] = {}

    def of(self, row: Row) -> tuple[int, int]:
        """(ids of the prompt, ids of the reference reply). ValueError: an unknown word."""
        example = _encoded(self._family, row, self._codes)
        return len(example.prompt), len(example.target)

    def _codes(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        return (0,) * sum(map(self._count, clips))

    def _count(self, clip: str) -> int:
        if clip not in self._known:
            self._known[clip] = ceil(audio.info(audio.inside(self._root, clip)).seconds * self._rate - 1e-6)
        return self._known[clip]


class Encoder:
    """Encodes rows of one manifest; remembers the codes of each clip by the hash of its file.

    Example:
        encoder = Encoder(family, manifest.parent, max_seconds=60.0)
        example = encoder.encode(row)
    """

    def __init__(self, family: Family, root: Path, max_seconds: float) -> None:
        self._family, self._root, self._max_seconds = family, root, max_seconds
        self._digests: dict[str, str] = {}  # clip -> sha256; files do not change during a run
        self._codes: dict[str, NDArray[np.int32]] = {}  # sha256 -> codes

    def encode(self, row: Row) -> Example:
        """Ids of a row. ValueError names the row: audio that breaks a rule, a word not in the family."""
        try:
            return _encoded(self._family, row, self._clips)
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error

    def _clips(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(code for clip in clips for code in self._clip(clip).tolist())

    def _clip(self, clip: str) -> NDArray[np.int32]:
        if clip not in self._digests:
            path = audio.inside(self._root, clip)
            audio.info(path)  # exists, is a file, is audio: before it is read
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest not in self._codes:
                codec = self._family.codec()
                wave = audio.read(path, codec.sample_rate, self._max_seconds)
                self._codes[digest] = np.asarray(codec.encode(wave), np.int32)
            self._digests[clip] = digest
        return self._codes[self._digests[clip]]


def _encoded(family: Family, row: Row, codes: Callable[[tuple[str, ...]], tuple[int, ...]]) -> Example:
    audios = iter(row.audios)
    turns = [
        Turn(role=message.role, codes=codes(next(audios)))
        if message.content == MARKER
        else Turn(role=message.role, text=message.content)
        for message in row.messages
    ]
    target = family.target(_chunks(row.sft_target_text, row.sft_target_audio, codes))
    return Example(row_id=row.id, prompt=family.prompt(turns), target=target)


def _chunks(
    text: str, clips: tuple[str, ...], codes: Callable[[tuple[str, ...]], tuple[int, ...]]
) -> list[Chunk]:
    """One chunk per word when there is a clip per word, else one for everything."""
    words = text.split()
    if len(words) != len(clips):
        return [Chunk(text=text, codes=codes(clips))]
    return [Chunk(text=word, codes=codes((clip,))) for word, clip in zip(words, clips, strict=True)]
