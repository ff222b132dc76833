"""Manifest rows as token ids: the prompt that an engine continues and the reference reply that anchors.

Only code that owns a codec encodes (rollout workers); everyone else is sent ids.
"""

import hashlib
from dataclasses import dataclass
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
            audios = iter(row.audios)
            turns = [
                Turn(role=message.role, codes=self._clips(next(audios)))
                if message.content == MARKER
                else Turn(role=message.role, text=message.content)
                for message in row.messages
            ]
            prompt = self._family.prompt(turns)
            target = self._family.target(self._chunks(row.sft_target_text, row.sft_target_audio))
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error
        return Example(row_id=row.id, prompt=prompt, target=target)

    def _chunks(self, text: str, clips: tuple[str, ...]) -> list[Chunk]:
        """One chunk per word when there is a clip per word, else one for everything."""
        words = text.split()
        if len(words) != len(clips):
            return [Chunk(text=text, codes=self._clips(clips))]
        return [Chunk(text=word, codes=self._clips((clip,))) for word, clip in zip(words, clips, strict=True)]

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
