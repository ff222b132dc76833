"""Manifest rows as token ids: the prompt that an engine continues, the reference reply that anchors, pairs.

Only code that owns a codec encodes (rollout workers); everyone else is sent ids.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speech import audio
from speech.codecs.cache import CodeCache
from speech.ears.kept import KeptVectors
from speech.families.base import Family, Hearing
from speech.features import Encoded, Vectors
from speech.layout import layout_of
from speech.manifest import MARKER, Message, Row
from speech.pairs import PairRow, Side
from speech.recent import Recent
from speech.turns import Chunk, Heard, Part, Role, Turn


class Sound(Protocol):
    """What clips are to the model, played one after another."""

    def codes(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        """As the codec's codes."""
        ...

    def vectors(self, clips: tuple[str, ...]) -> Vectors:
        """As the ear's vectors."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One encoded row. ``target`` ends with the stop id."""

    row_id: str
    prompt: Encoded
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A reply as it is trained on: one entry per id in all three."""

    ids: tuple[int, ...]
    channels: str  # T A B E P
    sampled: tuple[bool, ...]  # False: forced, joins no objective


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """One encoded pair. Where its row has ids, these are they."""

    row_id: str
    prompt: Encoded
    chosen: Response
    rejected: Response
    weight: float


class Lengths:
    """How many ids rows have, from text and audio headers alone: no audio is decoded.

    Example:
        prompt, target = Lengths(family, manifest.parent).of(row)
    """

    def __init__(self, family: Family, root: Path) -> None:
        self._family, self._root = family, root
        self._rate = family.codec().frame_rate
        self._layout = layout_of(family)
        self._known: Recent[str, float] = Recent()

    def of(self, row: Row) -> tuple[int, int]:
        """(ids of the prompt, ids of the reference reply). ValueError: an unknown word."""
        example = _encoded(self._family, row, self)
        return len(example.prompt.ids), len(example.target)

    def of_pair(self, row: PairRow) -> tuple[int, int, int]:
        """(ids of the prompt, of the preferred reply, of the other one). ValueError: as ``Encoder.pair``."""
        pair = _pair(self._family, self._layout, row, self)
        return len(pair.prompt.ids), len(pair.chosen.ids), len(pair.rejected.ids)

    def codes(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        """As many as there will be."""
        return (0,) * sum(ceil(self._seconds(clip) * self._rate - 1e-6) for clip in clips)

    def vectors(self, clips: tuple[str, ...]) -> Vectors:
        """As many as there will be, without width."""
        return np.zeros((self._family.ear().length(sum(map(self._seconds, clips))), 0), np.float32)

    def _seconds(self, clip: str) -> float:
        if clip not in self._known:
            self._known[clip] = audio.info(audio.inside(self._root, clip)).seconds
        return self._known[clip]


class Encoder:
    """Encodes rows of one manifest; knows a clip by the hash of its file, from this run or one before.

    Example:
        encoder = Encoder(family, manifest.parent, max_seconds=60.0)
        example = encoder.encode(row)
    """

    def __init__(self, family: Family, root: Path, max_seconds: float) -> None:
        self._family, self._root, self._max_seconds = family, root, max_seconds
        self._layout = layout_of(family)
        self._digests: Recent[str, str] = Recent()  # clip -> sha256; files do not change during a run
        self._codes: Recent[str, NDArray[np.int32]] = Recent()  # sha256 -> codes
        self._vectors = KeptVectors()
        self._kept: CodeCache | None = None  # made with the first clip: it needs the codec

    def encode(self, row: Row) -> Example:
        """Ids of a row. ValueError names the row: audio that breaks a rule, a word not in the family."""
        try:
            return _encoded(self._family, row, self)
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error

    def pair(self, row: PairRow) -> PairExample:
        """Ids of a pair: those that it has, else those of its words and sound.

        ValueError names the row: as ``encode``, or its ids have another meaning here.
        """
        try:
            return _pair(self._family, self._layout, row, self)
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error

    def codes(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        """Each clip's codes. ValueError: audio that breaks a rule."""
        return tuple(code for clip in clips for code in self._clip(clip).tolist())

    def vectors(self, clips: tuple[str, ...]) -> Vectors:
        """What the ear makes of the clips as one wave, finite. ValueError: audio that breaks a rule."""
        digests = tuple(map(self._digest, clips))
        vectors = self._vectors.get(digests)
        if vectors is None:
            ear = self._family.ear()
            paths = [audio.inside(self._root, clip) for clip in clips]
            waves = [audio.read(path, ear.sample_rate, self._max_seconds) for path in paths]
            vectors = ear.hear(np.concatenate(waves))
            if not np.isfinite(vectors).all():
                where = " and ".join(clips)
                raise ValueError(f"{where}: the ear's vectors must be finite: got NaN or infinity")
            self._vectors.put(digests, vectors)
        return vectors

    def turn(self, role: Role, clips: tuple[str, ...]) -> Turn:
        """A spoken turn as the family hears it. ValueError: audio that breaks a rule."""
        return Turn.of(role, *_heard(self._family.hearing(role), clips, self))

    def _clip(self, clip: str) -> NDArray[np.int32]:
        digest = self._digest(clip)
        if digest not in self._codes:
            self._codes[digest] = self._of_file(audio.inside(self._root, clip), digest)
        return self._codes[digest]

    def _digest(self, clip: str) -> str:
        """The sha256 of a clip's file. ValueError: its header breaks a rule."""
        if clip not in self._digests:
            path = audio.inside(self._root, clip)
            header = audio.info(path)  # exists, is a file, is audio: before it is read
            audio.check_length(path, header, self._max_seconds)  # also where it is known from another run
            with path.open("rb") as file:
                self._digests[clip] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[clip]

    def _of_file(self, path: Path, digest: str) -> NDArray[np.int32]:
        codec = self._family.codec()
        if self._kept is None:
            self._kept = CodeCache.of(codec)
        codes = self._kept.get(digest)
        if codes is None:
            codes = np.asarray(codec.encode(audio.read(path, codec.ear_rate, self._max_seconds)), np.int32)
            self._kept.put(digest, codes)
        return codes


def _encoded(family: Family, row: Row, sound: Sound) -> Example:
    target = family.target(_chunks(row.sft_target_text, row.sft_target_audio, sound))
    return Example(row_id=row.id, prompt=_prompt(family, row.messages, row.audios, sound), target=target)


def _prompt(family: Family, messages: Sequence[Message], audios: Sequence[tuple[str, ...]], sound: Sound) -> Encoded:
    clips = iter(audios)
    return family.prompt([_turn(family, message, clips, sound) for message in messages])


def _turn(family: Family, message: Message, clips: Iterator[tuple[str, ...]], sound: Sound) -> Turn:
    """As the family hears it; an earlier reply of words and sound as a reference reply, which is codes."""
    role, parts = message.role, message.parts
    hearing = family.hearing(role)
    if role == "assistant" and set(parts) > {MARKER}:
        hearing = "codes"
        if len(parts) == 2:
            chunks = _chunks(message.content.replace(MARKER, ""), next(clips), sound)
            return Turn(role, tuple(chain(*((one.text, Heard(codes=one.codes)) for one in chunks))))
    said = (_heard(hearing, next(clips), sound) if part == MARKER else [part] for part in parts)
    return Turn.of(role, *chain(*said))


def _heard(hearing: Hearing, clips: tuple[str, ...], sound: Sound) -> list[Part]:
    """The clips as one sound; in a family that hears both each is one: codes are rounded up clip by clip, and
    vectors of the joined wave would drift from them.
    """
    if hearing == "both":
        return [Heard(codes=sound.codes((clip,)), vectors=sound.vectors((clip,))) for clip in clips]
    return [Heard(codes=sound.codes(clips)) if hearing == "codes" else Heard(vectors=sound.vectors(clips))]


def _pair(family: Family, layout: str, row: PairRow, sound: Sound) -> PairExample:
    if row.provenance is not None and row.prompt_ids is not None and row.provenance.layout != layout:
        raise ValueError(
            f"its ids were made for {row.provenance.family} of layout {row.provenance.layout}, the model is "
            f"{family.name} of layout {layout}; without prompt_ids and ids words and sound are encoded anew"
        )
    if row.prompt_ids is None or family.hears:  # vectors are not written down
        prompt = _prompt(family, row.messages, row.audios, sound)
    else:
        _letters(family, row.prompt_ids)
        prompt = Encoded(row.prompt_ids)
    chosen, rejected = (_response(family, side, sound) for side in (row.chosen, row.rejected))
    return PairExample(row_id=row.id, prompt=prompt, chosen=chosen, rejected=rejected, weight=row.weight)


def _response(family: Family, side: Side, sound: Sound) -> Response:
    if side.ids is None:
        ids = family.target(_chunks(side.text, side.audio, sound))
        return Response(ids=ids, channels=family.channels.letters(ids), sampled=(True,) * len(ids))
    letters = _letters(family, side.ids)
    if side.channels != letters:
        raise ValueError("channels must be those of the ids in the model's family")
    return Response(ids=side.ids, channels=letters, sampled=tuple(one == "1" for one in side.sampled or ""))


def _letters(family: Family, ids: Sequence[int]) -> str:
    if max(ids) >= family.channels.vocab:
        raise ValueError(f"id must lie in [0, {family.channels.vocab}): got {max(ids)}")
    return family.channels.letters(ids)


def _chunks(text: str, clips: tuple[str, ...], sound: Sound) -> list[Chunk]:
    """One chunk per word when there is a clip per word, else one for everything."""
    words = text.split()
    if len(words) != len(clips):
        return [Chunk(text=text, codes=sound.codes(clips))]
    return [Chunk(text=word, codes=sound.codes((clip,))) for word, clip in zip(words, clips, strict=True)]
