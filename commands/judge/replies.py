"""Finished replies to be judged: one JSON object per line, with the reply's sound beside the file.

    {"id": "a1", "prompt_id": "a", "question": "What is two plus two?", "audio": "wav/a1.wav"}

and, where they are known, ``text`` (the reply's own words: what the local acoustic rule listens for),
``transcript`` (else the recogniser's), ``answer``, ``style``, ``user_audio``.

Invariant: what ``read_reply_manifest`` returns is complete; every clip lies below the file's folder, is in
bounds and was decoded once. All mistakes are listed as file:line:field: message.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from conf.fields import StrictModel
from judge.types import JudgeTask
from rollout.types import Reply, Speech
from speech.data.manifest import ExpectedAnswer, ManifestError, Problem
from speech.data.problems import explain_validation_error, format_field_path, parse_object
from speech.sound import audio

MAX_MANIFEST_BYTES = 1 << 28  # of a manifest
MAX_REPLY_LINE_BYTES = 1 << 20

PRINTABLE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$"  # fits on one line of a message
ReplyName = Annotated[str, Field(min_length=1, max_length=256, pattern=PRINTABLE_PATTERN)]
ClipPath = Annotated[str, Field(min_length=1, max_length=1024, pattern=PRINTABLE_PATTERN)]
BoundedText = Annotated[str, Field(max_length=20_000)]


class FinishedReply(StrictModel):
    """A finished reply. Audio paths are relative to the manifest's folder."""

    id: ReplyName
    """Unique."""
    prompt_id: ReplyName = ""
    """Replies to one prompt share it; default: the id."""
    question: Annotated[BoundedText, Field(min_length=1)]
    """The user's words."""
    audio: ClipPath
    """The reply's sound."""
    text: BoundedText | None = None
    """The reply's own words. None: not known, so nothing can be said about how well they were spoken."""
    transcript: BoundedText | None = None
    """What a recogniser heard. None: the judge's own is asked."""
    answer: ExpectedAnswer | None = None
    """None: nothing to check."""
    style: Literal["slow", "loud"] | None = None
    """How the reply was asked to sound."""
    user_audio: Annotated[tuple[ClipPath, ...], Field(max_length=64)] = ()
    """Clips of the user's turn, played one after another."""

    @property
    def prompt(self) -> str:
        """What groups replies."""
        return self.prompt_id or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyManifest:
    """A sound manifest. ``sha256``: of its bytes and of every clip's."""

    items: tuple[FinishedReply, ...]
    folder: Path
    max_seconds: float
    sha256: str


def read_reply_manifest(path: Path, max_seconds: float) -> ReplyManifest:
    """All items. ManifestError lists every problem; ValueError: the file is not there or too large."""
    digest = sha256()
    clips = ClipChecker(path.parent, max_seconds)
    items: list[FinishedReply] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for line, text in _number_lines(path):
        digest.update(text)
        field_problems: list[tuple[str, str]] = []
        content = _parse_line(text, field_problems)
        item = None if content is None else validate_reply(content, field_problems)
        if item is not None:
            items.append(item)
            if first.setdefault(item.id, line) != line:
                field_problems.append(("id", f"must be unique: {item.id!r} is also on line {first[item.id]}"))
        if content is not None:
            field_problems += clips.problems(content)
        problems += [Problem(path, line, field, message) for field, message in field_problems]
    if not items and not problems:
        problems.append(Problem(path, 0, "", "has no line"))
    if problems:
        raise ManifestError(problems)
    return ReplyManifest(
        items=tuple(items), folder=path.parent, max_seconds=max_seconds, sha256=clips.hash_with_clips(digest.digest())
    )


class ClipChecker:
    """Looks at every distinct clip of a folder once: place, header, samples."""

    def __init__(self, folder: Path, max_seconds: float) -> None:
        self._folder, self.max_seconds = folder, max_seconds
        self._hashes: dict[str, bytes] = {}
        self._look: Callable[[str], float | str] = cache(self._inspect_clip)

    def problems(self, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Of an item as parsed, as (field, message): looked at even when another field is wrong."""
        spoken = content.get("user_audio")
        clips = [(f"user_audio[{i}]", clip) for i, clip in enumerate(spoken if isinstance(spoken, list) else ())]
        seconds = 0.0
        for field, clip in [("audio", content.get("audio")), *clips]:
            if not isinstance(clip, str) or not re.fullmatch(PRINTABLE_PATTERN, clip):
                continue  # the schema has said so
            duration_or_problem = self._look(clip)
            if isinstance(duration_or_problem, str):
                yield field, duration_or_problem
            elif field != "audio":
                seconds += duration_or_problem
        if seconds > self.max_seconds and len(clips) > 1:
            yield "user_audio", f"must last at most {self.max_seconds:g} s: got {seconds:.1f} s"

    def hash_with_clips(self, data: bytes) -> str:
        """One hash over ``data`` and every clip looked at."""
        return sha256(data + b"".join(self._hashes[clip] for clip in sorted(self._hashes))).hexdigest()

    def _inspect_clip(self, clip: str) -> float | str:
        """Its seconds, or what is wrong with it."""
        try:
            path = audio.resolve_inside(self._folder, clip)
            header = audio.read_audio_header(path)
            audio.read(path, header.sample_rate, self.max_seconds)
        except ValueError as error:
            return str(error)
        with path.open("rb") as file:
            self._hashes[clip] = file_digest(file, "sha256").digest()
        return header.seconds


def build_reply_task(item: FinishedReply, folder: Path) -> JudgeTask:
    """What the reply is held against."""
    match, value = (item.answer.match, item.answer.value) if item.answer else (None, None)
    return JudgeTask(
        task_type="offline",
        question=item.question,
        match=match,
        answer=value,
        style=item.style,
        user_audio=tuple(audio.resolve_inside(folder, clip) for clip in item.user_audio),
    )


def read_reply_speech(item: FinishedReply, folder: Path, max_seconds: float) -> Speech:
    """The reply's sound at its own rate. ValueError: it is not what was looked at any more."""
    path = audio.resolve_inside(folder, item.audio)
    rate = audio.read_audio_header(path).sample_rate
    return Speech(wave=audio.read(path, rate, max_seconds), sample_rate=rate)


def build_rollout_reply(item: FinishedReply, text: str) -> Reply:
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


def validate_reply(content: Mapping[str, Any], field_problems: list[tuple[str, str]]) -> FinishedReply | None:
    """An item from what a line holds; what is wrong with it goes to ``field_problems``."""
    try:
        return FinishedReply.model_validate(content)
    except ValidationError as error:
        field_problems += (
            (format_field_path(detail["loc"]), explain_validation_error(detail, FinishedReply))
            for detail in error.errors(include_url=False)
        )
        return None


def _parse_line(text: bytes, field_problems: list[tuple[str, str]]) -> dict[str, Any] | None:
    if len(text) > MAX_REPLY_LINE_BYTES:
        field_problems.append(("", f"a line has at most {MAX_REPLY_LINE_BYTES} bytes: got {len(text)}"))
        return None
    return parse_object(text, field_problems)


def _number_lines(path: Path) -> Sequence[tuple[int, bytes]]:
    """Lines with their numbers, from 1."""
    return list(enumerate(read_bounded_file(path, MAX_MANIFEST_BYTES).removesuffix(b"\n").split(b"\n"), start=1))


def read_bounded_file(path: Path, most: int) -> bytes:
    """A file's bytes. ManifestError: it is not there, is no file, or has more than ``most``."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise make_file_error(path, "must be a file, no folder and no pipe")
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise make_file_error(path, f"cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise make_file_error(path, f"must have at most {most} bytes")
    return data


def make_file_error(path: Path, message: str) -> ManifestError:
    """What is wrong with a file as a whole."""
    return ManifestError([Problem(path, 0, "", message)])
