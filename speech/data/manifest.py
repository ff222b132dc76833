"""Data sets: one JSON object per line, and the order in which a run draws from them.

Invariant: a row that ``read_manifest`` returns is complete and its audio exists, is in bounds and lies below the
manifest's folder. Nothing stops at the first mistake: all of them are listed as file:line:field: message.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from conf.fields import StrictModel
from speech.answers.expected import AnswerMatch, find_answer_problem
from speech.data.clips import ClipInspector
from speech.data.lazy_rows import LazyRows, examine_rows
from speech.data.problems import ID_PATTERN, ManifestError, Problem, RowProblems, validate_model

__all__ = [
    "AUDIO_MARKER",
    "DialogueMessage",
    "ExpectedAnswer",
    "ManifestError",
    "ManifestRow",
    "Problem",
    "RowCursor",
    "check_manifest",
    "read_manifest",
]

AUDIO_MARKER = "<|audio|>"
FOREIGN_MARKER = re.compile(r"<\|?(audio|image|sound|speech|video)\|?>", re.IGNORECASE)  # of others, by mistake


def make_file_safe_id(own: str) -> str:
    """An id of another source as one that can be part of a file name; different ones stay different."""
    if re.fullmatch(ID_PATTERN, own):
        return own
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", own).strip("-._")[:100] or "row"
    return f"{readable}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"


class DialogueMessage(StrictModel):
    """One turn: words, ``<|audio|>`` for sound, or both in the order in which they are said."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)

    @property
    def parts(self) -> tuple[str, ...]:
        """``split_at_markers`` of the content."""
        return split_at_markers(self.content)


class ExpectedAnswer(StrictModel):
    """What a right reply says.

    final     it ends with ``value``
    exact     it is ``value``; right words earn their share
    number    the last number said is ``value``: 12, -3.5, 1,200, 2/3, 75 %, three quarters
    choice    it settles on one letter: B; with B: Paris, it may end with the words instead
    contains  the words of ``value`` occur in it, one after another
    regex     the pattern occurs in its words: lower case, no punctuation, numbers up to twenty in letters
    math      the last expression said has the value of ``value``: 2x + 3, x = 1/2, (a + b)^2, sqrt(2)
    """

    match: AnswerMatch
    value: str = Field(min_length=1)

    @field_validator("value")
    @classmethod
    def _check_value(cls, value: str, info: ValidationInfo) -> str:
        broken = find_answer_problem(info.data["match"], value) if "match" in info.data else None
        if broken is not None:
            raise ValueError(broken)
        return value


class ManifestRow(StrictModel):
    """A prompt with its reference reply. Audio paths are relative to the manifest's folder."""

    id: str = Field(pattern=ID_PATTERN)
    """Unique; also part of file names."""
    messages: tuple[DialogueMessage, ...] = Field(min_length=1)
    """The dialogue so far; the last turn is the user's."""
    audios: tuple[tuple[str, ...], ...] = ()
    """One entry per ``<|audio|>``, in the order they stand in: clips played one after another."""
    question_text: str = Field(min_length=1)
    """The user's words, for judges."""
    task_type: str = Field(min_length=1)
    """Groups rows in reports."""
    answer: ExpectedAnswer | None = None
    """None: nothing to check."""
    style: Literal["slow", "loud"] | None = None
    """How the reply was asked to sound."""
    sft_target_text: str = Field(min_length=1)
    """Words of the reference reply."""
    sft_target_audio: tuple[str, ...] = Field(min_length=1)
    """Clips of the reference reply; as many as words: word-aligned."""


def check_manifest(path: Path, max_seconds: float, deep: bool = True) -> list[Problem]:
    """All problems, in file order. ``deep`` decodes every distinct clip; else only headers are read."""
    return _examine_manifest(path, max_seconds, deep)[1]


def read_manifest(path: Path, max_seconds: float, deep: bool = False) -> LazyRows[ManifestRow]:
    """The rows of a sound manifest, each read when it is used. ManifestError lists every problem."""
    rows, problems = _examine_manifest(path, max_seconds, deep)
    if problems:
        raise ManifestError(problems)
    return rows


class RowCursor:
    """Draws row indices for ever: every epoch all of them once, in an order made of (seed, epoch, series).

    Series of one seed are independent of each other and of those of every other seed. How a run cuts its
    draws does not matter: 3 rows and then 5 are the same 8 rows. A draw across the end of an epoch may name a row
    twice.

    Example:
        cursor = RowCursor(len(rows), seed=0)
        batch = [rows[i] for i in cursor.draw_indices(16)]
        saved = cursor.state_dict()
    """

    def __init__(self, count: int, seed: int, series: int = 0) -> None:
        if count < 1:
            raise ValueError(f"a cursor needs at least one row: got {count}")
        self._count, self._seed, self._drawn = count, seed, 0
        self._spawned = (series,) if series else ()  # as numpy's SeedSequence.spawn does

    def draw_indices(self, n: int) -> list[int]:
        """The next ``n`` indices in [0, count)."""
        indices: list[int] = []
        while len(indices) < n:
            epoch, at = divmod(self._drawn, self._count)
            sequence = np.random.SeedSequence([self._seed, epoch], spawn_key=self._spawned)
            order = np.random.default_rng(sequence).permutation(self._count)
            taken = order[at : at + n - len(indices)].tolist()
            indices += taken
            self._drawn += len(taken)
        return indices

    def state_dict(self) -> dict[str, int]:
        """Everything: count, seed and how many have been drawn."""
        return {"count": self._count, "seed": self._seed, "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved state. ValueError: it belongs to other data or another seed."""
        for name, own in (("count", self._count), ("seed", self._seed)):
            if state[name] != own:
                raise ValueError(f"saved cursor must have the same {name}: got {state[name]}, here {own}")
        self._drawn = state["drawn"]


def _examine_manifest(path: Path, max_seconds: float, deep: bool) -> tuple[LazyRows[ManifestRow], list[Problem]]:
    return examine_rows(
        path,
        lambda line, content, problems: validate_manifest_row(content, problems),
        list_clip_fields,
        ClipInspector(path.parent, max_seconds, deep),
    )


def split_at_markers(content: str, marker: str = AUDIO_MARKER) -> tuple[str, ...]:
    """Words and markers in order. White space stands as it is, but beside markers alone it is nothing."""
    pieces = [part for part in re.split(f"({re.escape(marker)})", content) if part]
    wordless = not content.replace(marker, "").strip()
    return tuple(part for part in pieces if part == marker or not wordless)


def has_spoken_question(rows: Iterable[ManifestRow]) -> bool:
    """Whether the last turn of any row is spoken: judges then hear the user as well."""
    return any(AUDIO_MARKER in row.messages[-1].content for row in rows)


def validate_manifest_row(content: Mapping[str, Any], problems: RowProblems) -> ManifestRow | None:
    """The row of an object, or None; what is wrong goes to ``problems``. Its clips are not looked at."""
    row = validate_model(ManifestRow, content, problems)
    if row is not None:
        problems += check_dialogue(row.messages, len(row.audios))
        if not row.sft_target_text.strip():
            problems.append(("sft_target_text", "must not be blank"))
    return row


def list_clip_fields(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """All clips of a row as parsed, entry by entry."""
    return [*list_prompt_clips(content), ("sft_target_audio", content.get("sft_target_audio"))]


def check_dialogue(messages: Sequence[DialogueMessage], audios: int) -> Iterator[tuple[str, str]]:
    """Rules over turns and markers."""
    roles = [message.role for message in messages]
    if "user" not in roles:
        yield "messages", "must hold a user turn: got " + ", ".join(roles)
    elif roles[-1] != "user":
        yield "messages", f"must end with the user's turn: got {roles[-1]}"
    markers = sum(message.content.count(AUDIO_MARKER) for message in messages)
    if markers != audios:
        yield "audios", f"must have one entry per {AUDIO_MARKER}: got {audios} for {markers}"
    for i, message in enumerate(messages):
        if not message.content.strip():
            yield f"messages[{i}].content", "must not be blank"
        if foreign := FOREIGN_MARKER.search(message.content.replace(AUDIO_MARKER, " ")):
            yield (
                f"messages[{i}].content",
                f"must not hold {foreign[0]}, which is said as it stands: {AUDIO_MARKER} is sound",
            )


def list_prompt_clips(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """``audios`` of a row as parsed, entry by entry."""
    audios = content.get("audios")
    return [(f"audios[{i}]", clips) for i, clips in enumerate(audios)] if isinstance(audios, list) else []
