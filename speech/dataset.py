"""Manifest rows as token ids: the prompt that an engine continues, the reference reply that anchors, pairs.

Only code that owns a codec encodes (rollout workers); everyone else is sent ids.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import ceil
from operator import attrgetter
from pathlib import Path
from typing import Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from speech.checkpoints.layout import fingerprint_layout
from speech.codecs.cache import CodeCache
from speech.data.clips import MAX_KNOWN_CLIPS
from speech.data.manifest import AUDIO_MARKER, DialogueMessage, ManifestRow
from speech.data.pairs import PairReply, PairRow
from speech.families.base import AudioInput, Family
from speech.features import AudioVectors, EncodedPrompt
from speech.sound import audio
from speech.turns import AudioPart, ReplyChunk, Role, Turn, TurnPart

VECTOR_CACHE_BYTES = 256 << 20  # bytes; an audio encoder is frozen: what it heard once it need not hear again


class ClipEncoder(Protocol):
    """What clips are to the model, played one after another."""

    def codes(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        """As the codec's codes."""
        ...

    def vectors(self, clips: tuple[str, ...]) -> AudioVectors:
        """As the audio encoder's vectors."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A written reply as it is trained on: one entry per id in all three."""

    ids: tuple[int, ...]
    channels: str  # T A B E P
    sampled: tuple[bool, ...]  # False: forced, joins no objective


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One encoded row. ``target`` ends with the stop id."""

    row_id: str
    prompt: EncodedPrompt
    target: Response


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExample:
    """One encoded pair. Where its row has ids, these are they."""

    row_id: str
    prompt: EncodedPrompt
    chosen: Response
    rejected: Response
    weight: float


class RowLengths:
    """How many ids rows have, from text and audio headers alone: no audio is decoded.

    Example:
        prompt, target = RowLengths(family, folder).count_ids(row)
    """

    def __init__(self, family: Family, root: Path) -> None:
        self._family, self._root = family, root
        self._rate = family.codec().frame_rate
        self._layout = fingerprint_layout(family)
        self._seconds_by_clip: LRUCache[str, float] = LRUCache(MAX_KNOWN_CLIPS)

    def count_ids(self, row: ManifestRow) -> tuple[int, int]:
        """(ids of the prompt, ids of the reference reply). ValueError: an unknown word."""
        example = _encode_row(self._family, row, self)
        return len(example.prompt.ids), len(example.target.ids)

    def count_pair_ids(self, row: PairRow) -> tuple[int, int, int]:
        """(ids of the prompt, of the preferred reply, of the other one). ValueError: as ``RowEncoder.encode_pair``."""
        pair = _encode_pair(self._family, self._layout, row, self)
        return len(pair.prompt.ids), len(pair.chosen.ids), len(pair.rejected.ids)

    def codes(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        """As many as there will be."""
        return (0,) * sum(ceil(self._seconds(clip) * self._rate - 1e-6) for clip in clips)

    def vectors(self, clips: tuple[str, ...]) -> AudioVectors:
        """As many as there will be, without width."""
        return np.zeros((self._family.audio_encoder().count_vectors(sum(map(self._seconds, clips))), 0), np.float32)

    def _seconds(self, clip: str) -> float:
        if clip not in self._seconds_by_clip:
            self._seconds_by_clip[clip] = audio.read_audio_header(audio.resolve_inside(self._root, clip)).seconds
        return self._seconds_by_clip[clip]


class RowEncoder:
    """Encodes rows of one manifest; knows a clip by the hash of its file, from this run or one before.

    Example:
        encoder = RowEncoder(family, folder, max_seconds=60.0)
        example = encoder.encode(row)
    """

    def __init__(self, family: Family, root: Path, max_seconds: float) -> None:
        self._family, self._root, self._max_seconds = family, root, max_seconds
        self._layout = fingerprint_layout(family)
        self._digests: LRUCache[str, str] = LRUCache(
            MAX_KNOWN_CLIPS
        )  # clip -> sha256; files do not change during a run
        self._codes: LRUCache[str, NDArray[np.int32]] = LRUCache(MAX_KNOWN_CLIPS)  # sha256 -> codes
        vector_bytes = attrgetter("nbytes")
        self._vectors: LRUCache[tuple[str, ...], AudioVectors] = LRUCache(VECTOR_CACHE_BYTES, vector_bytes)
        self._kept: CodeCache | None = None  # made with the first clip: it needs the codec

    def encode(self, row: ManifestRow) -> Example:
        """Ids of a row. ValueError names the row: audio that breaks a rule, a word not in the family."""
        try:
            return _encode_row(self._family, row, self)
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error

    def encode_pair(self, row: PairRow) -> PairExample:
        """Ids of a pair: those that it has, else those of its words and sound.

        ValueError names the row: as ``encode``, or its ids have another meaning here.
        """
        try:
            return _encode_pair(self._family, self._layout, row, self)
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error

    def codes(self, clips: tuple[str, ...]) -> tuple[int, ...]:
        """Each clip's codes. ValueError: audio that breaks a rule."""
        return tuple(code for clip in clips for code in self._encode_clip(clip).tolist())

    def vectors(self, clips: tuple[str, ...]) -> AudioVectors:
        """What the audio encoder makes of the clips as one wave, finite. ValueError: audio that breaks a rule."""
        digests = tuple(map(self._hash_clip_file, clips))
        vectors = self._vectors.get(digests)
        if vectors is None:
            encoder = self._family.audio_encoder()
            paths = [audio.resolve_inside(self._root, clip) for clip in clips]
            waves = [audio.read(path, encoder.sample_rate, self._max_seconds) for path in paths]
            vectors = encoder.encode(np.concatenate(waves))
            if not np.isfinite(vectors).all():
                places = " and ".join(clips)
                raise ValueError(f"{places}: the audio encoder's vectors must be finite: got NaN or infinity")
            vectors.setflags(write=False)  # whoever asks again gets the same
            if vectors.nbytes <= VECTOR_CACHE_BYTES:
                self._vectors[digests] = vectors
        return vectors

    def encode_turn(self, role: Role, clips: tuple[str, ...]) -> Turn:
        """A spoken turn as the family hears it. ValueError: audio that breaks a rule."""
        return Turn.from_parts(role, *_encode_clips(self._family.audio_input_of(role), clips, self))

    def _encode_clip(self, clip: str) -> NDArray[np.int32]:
        digest = self._hash_clip_file(clip)
        if digest not in self._codes:
            self._codes[digest] = self._encode_file(audio.resolve_inside(self._root, clip), digest)
        return self._codes[digest]

    def _hash_clip_file(self, clip: str) -> str:
        """The sha256 of a clip's file. ValueError: its header breaks a rule."""
        if clip not in self._digests:
            path = audio.resolve_inside(self._root, clip)
            header = audio.read_audio_header(path)  # exists, is a file, is audio: before it is read
            audio.check_length(path, header, self._max_seconds)  # also where it is known from another run
            with path.open("rb") as file:
                self._digests[clip] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[clip]

    def _encode_file(self, path: Path, digest: str) -> NDArray[np.int32]:
        codec = self._family.codec()
        if self._kept is None:
            self._kept = CodeCache.for_codec(codec)
        codes = self._kept.get(digest)
        if codes is None:
            codes = np.asarray(codec.encode(audio.read(path, codec.input_sample_rate, self._max_seconds)), np.int32)
            self._kept.put(digest, codes)
        return codes


def _encode_row(family: Family, row: ManifestRow, sound: ClipEncoder) -> Example:
    target = _encode_target(family, row.sft_target_text, row.sft_target_audio, sound)
    return Example(row_id=row.id, prompt=_encode_prompt(family, row.messages, row.audios, sound), target=target)


def _encode_prompt(
    family: Family, messages: Sequence[DialogueMessage], audios: Sequence[tuple[str, ...]], sound: ClipEncoder
) -> EncodedPrompt:
    clips = iter(audios)
    return family.encode_prompt([_encode_turn(family, message, clips, sound) for message in messages])


def _encode_turn(
    family: Family, message: DialogueMessage, clips: Iterator[tuple[str, ...]], sound: ClipEncoder
) -> Turn:
    """As the family hears it; an earlier reply of words and sound as a reference reply, which is codes."""
    role, parts = message.role, message.parts
    hearing = family.audio_input_of(role)
    if role == "assistant" and set(parts) > {AUDIO_MARKER}:
        hearing = "codes"
        if len(parts) == 2:
            chunks = _build_chunks(message.content.replace(AUDIO_MARKER, ""), next(clips), sound)
            return Turn(role, tuple(chain(*((chunk.text, AudioPart(codes=chunk.codes)) for chunk in chunks))))
    encoded_parts = (_encode_clips(hearing, next(clips), sound) if part == AUDIO_MARKER else [part] for part in parts)
    return Turn.from_parts(role, *chain(*encoded_parts))


def _encode_clips(hearing: AudioInput, clips: tuple[str, ...], sound: ClipEncoder) -> list[TurnPart]:
    """The clips as one sound; in a family that hears both each is one: codes are rounded up clip by clip, and
    vectors of the joined wave would drift from them.
    """
    if hearing == "both":
        return [AudioPart(codes=sound.codes((clip,)), vectors=sound.vectors((clip,))) for clip in clips]
    return [AudioPart(codes=sound.codes(clips)) if hearing == "codes" else AudioPart(vectors=sound.vectors(clips))]


def _encode_pair(family: Family, layout: str, row: PairRow, sound: ClipEncoder) -> PairExample:
    if row.provenance is not None and row.prompt_ids is not None and row.provenance.layout != layout:
        raise ValueError(
            f"its ids were made for {row.provenance.family} of layout {row.provenance.layout}, the model is "
            f"{family.name} of layout {layout}; without prompt_ids and ids words and sound are encoded anew"
        )
    if row.prompt_ids is None or family.audio_inputs:  # vectors are not written down
        prompt = _encode_prompt(family, row.messages, row.audios, sound)
    else:
        _ids_to_letters(family, row.prompt_ids)
        prompt = EncodedPrompt(row.prompt_ids)
    chosen, rejected = (_encode_response(family, side, sound) for side in (row.chosen, row.rejected))
    return PairExample(row_id=row.id, prompt=prompt, chosen=chosen, rejected=rejected, weight=row.weight)


def _encode_response(family: Family, side: PairReply, sound: ClipEncoder) -> Response:
    if side.ids is None:
        return _encode_target(family, side.text, side.audio, sound)
    letters = _ids_to_letters(family, side.ids)
    if side.channels != letters:
        raise ValueError("channels must be those of the ids in the model's family")
    return Response(ids=side.ids, channels=letters, sampled=tuple(digit == "1" for digit in side.sampled or ""))


def _encode_target(family: Family, text: str, clips: tuple[str, ...], sound: ClipEncoder) -> Response:
    ids = family.encode_target(_build_chunks(text, clips, sound))
    return Response(ids=ids, channels=family.channels.to_letters(ids), sampled=(True,) * len(ids))


def _ids_to_letters(family: Family, ids: Sequence[int]) -> str:
    if max(ids) >= family.channels.vocab:
        raise ValueError(f"id must lie in [0, {family.channels.vocab}): got {max(ids)}")
    return family.channels.to_letters(ids)


def _build_chunks(text: str, clips: tuple[str, ...], sound: ClipEncoder) -> list[ReplyChunk]:
    """One chunk per word when there is a clip per word, else one for everything."""
    words = text.split()
    if len(words) != len(clips):
        return [ReplyChunk(text=text, codes=sound.codes(clips))]
    return [ReplyChunk(text=word, codes=sound.codes((clip,))) for word, clip in zip(words, clips, strict=True)]
