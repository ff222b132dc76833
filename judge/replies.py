"""Finished replies to be judged: one JSON object per line, with the reply's sound beside the file.

    {"id": "a1", "prompt_id": "a", "question": "What is two plus two?", "audio": "wav/a1.wav"}

and, where they are known, ``text`` (the reply's own words: what the local acoustic rule listens for),
``transcript`` (else the recogniser's), ``answer``, ``style``, ``user_audio``.

Invariant: what ``read`` returns is complete; every clip lies below the file's folder, is in bounds and was
decoded once. All mistakes are listed as file:line:field: message.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from conf.fields import Strict
from judge.types import Task
from rollout.types import Reply, Speech
from speech import audio
from speech.manifest import Answer, ManifestError, Problem
from speech.problems import field_name, parse_object, reason

MAX_BYTES = 1 << 28  # of a manifest
MAX_LINE = 1 << 20

PRINTED = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"  # fits on one line of a message
Name = Annotated[str, Field(min_length=1, max_length=256, pattern=PRINTED)]
Clip = Annotated[str, Field(min_length=1, max_length=1024, pattern=PRINTED)]
Words = Annotated[str, Field(max_length=20_000)]


class Item(Strict):
    """A finished reply. Audio paths are relative to the manifest's folder."""

    id: Name
    """Unique."""
    prompt_id: Name = ""
    """Replies to one prompt share it; default: the id."""
    question: Annotated[Words, Field(min_length=1)]
    """The user's words."""
    audio: Clip
    """The reply's sound."""
    text: Words | None = None
    """The reply's own words. None: not known, so nothing can be said about how well they were spoken."""
    transcript: Words | None = None
    """What a recogniser heard. None: the judge's own is asked."""
    answer: Answer | None = None
    """None: nothing to check."""
    style: Literal["slow", "loud"] | None = None
    """How the reply was asked to sound."""
    user_audio: Annotated[tuple[Clip, ...], Field(max_length=64)] = ()
    """Clips of the user's turn, played one after another."""

    @property
    def prompt(self) -> str:
        """What groups replies."""
        return self.prompt_id or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """A sound manifest. ``sha256``: of its bytes and of every clip's."""

    items: tuple[Item, ...]
    folder: Path
    max_seconds: float
    sha256: str


def read(path: Path, max_seconds: float) -> Replies:
    """All items. ManifestError lists every problem; ValueError: the file is not there or too large."""
    digest = sha256()
    clips = Clips(path.parent, max_seconds)
    items: list[Item] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for line, text in _lines(path):
        digest.update(text)
        found: list[tuple[str, str]] = []
        content = _parsed(text, found)
        item = None if content is None else checked(content, found)
        if item is not None:
            items.append(item)
            if first.setdefault(item.id, line) != line:
                found.append(("id", f"must be unique: {item.id!r} is also on line {first[item.id]}"))
        if content is not None:
            found += clips.problems(content)
        problems += [Problem(path, line, field, message) for field, message in found]
    if not items and not problems:
        problems.append(Problem(path, 0, "", "has no line"))
    if problems:
        raise ManifestError(problems)
    return Replies(
        items=tuple(items), folder=path.parent, max_seconds=max_seconds, sha256=clips.sealed(digest.digest())
    )


class Clips:
    """Looks at every distinct clip of a folder once: place, header, samples."""

    def __init__(self, folder: Path, max_seconds: float) -> None:
        self._folder, self.max_seconds = folder, max_seconds
        self._hashes: dict[str, bytes] = {}
        self._look: Callable[[str], float | str] = cache(self._looked)

    def problems(self, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Of an item as parsed, as (field, message): looked at even when another field is wrong."""
        spoken = content.get("user_audio")
        clips = [(f"user_audio[{i}]", clip) for i, clip in enumerate(spoken if isinstance(spoken, list) else ())]
        seconds = 0.0
        for field, clip in [("audio", content.get("audio")), *clips]:
            if not isinstance(clip, str) or not re.fullmatch(PRINTED, clip):
                continue  # the schema has said so
            found = self._look(clip)
            if isinstance(found, str):
                yield field, found
            elif field != "audio":
                seconds += found
        if seconds > self.max_seconds and len(clips) > 1:
            yield "user_audio", f"must last at most {self.max_seconds:g} s: got {seconds:.1f} s"

    def sealed(self, data: bytes) -> str:
        """One hash over ``data`` and every clip looked at."""
        return sha256(data + b"".join(self._hashes[clip] for clip in sorted(self._hashes))).hexdigest()

    def _looked(self, clip: str) -> float | str:
        """Its seconds, or what is wrong with it."""
        try:
            path = audio.inside(self._folder, clip)
            header = audio.info(path)
            audio.read(path, header.sample_rate, self.max_seconds)
        except ValueError as error:
            return str(error)
        with path.open("rb") as file:
            self._hashes[clip] = file_digest(file, "sha256").digest()
        return header.seconds


def task_of(item: Item, folder: Path) -> Task:
    """What the reply is held against."""
    match, value = (item.answer.match, item.answer.value) if item.answer else (None, None)
    return Task(
        task_type="offline",
        question=item.question,
        match=match,
        answer=value,
        style=item.style,
        user_audio=tuple(audio.inside(folder, clip) for clip in item.user_audio),
    )


def speech_of(item: Item, folder: Path, max_seconds: float) -> Speech:
    """The reply's sound at its own rate. ValueError: it is not what was looked at any more."""
    path = audio.inside(folder, item.audio)
    rate = audio.info(path).sample_rate
    return Speech(wave=audio.read(path, rate, max_seconds), sample_rate=rate)


def reply_of(item: Item, text: str) -> Reply:
    """A reply of which only words and sound are known: one stand-in id says that there is sound."""
    return Reply(
        prompt_id=item.prompt,
        index=0,
        ids=(0,),
        logps=(0.0,),
        channels="A",
        sampled=(False,),
        versions=(0,),
        finish="stop",
        text=text,
        well_formed=True,
    )


def checked(content: Mapping[str, Any], found: list[tuple[str, str]]) -> Item | None:
    """An item from what a line holds; what is wrong with it goes to ``found``."""
    try:
        return Item.model_validate(content)
    except ValidationError as error:
        found += ((field_name(one["loc"]), reason(one, Item)) for one in error.errors(include_url=False))
        return None


def _parsed(text: bytes, found: list[tuple[str, str]]) -> dict[str, Any] | None:
    if len(text) > MAX_LINE:
        found.append(("", f"a line has at most {MAX_LINE} bytes: got {len(text)}"))
        return None
    return parse_object(text, found)


def _lines(path: Path) -> Sequence[tuple[int, bytes]]:
    """Lines with their numbers, from 1."""
    return list(enumerate(contents(path, MAX_BYTES).removesuffix(b"\n").split(b"\n"), start=1))


def contents(path: Path, most: int) -> bytes:
    """A file's bytes. ManifestError: it is not there, is no file, or has more than ``most``."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise unusable(path, "must be a file, no folder and no pipe")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise unusable(path, f"cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise unusable(path, f"must have at most {most} bytes")
    return data


def unusable(path: Path, message: str) -> ManifestError:
    """What is wrong with a file as a whole."""
    return ManifestError([Problem(path, 0, "", message)])
