"""Data sets: one JSON object per line, and the order in which a run draws from them.

Invariant: a row that ``read`` returns is complete and its audio exists, is in bounds and lies below the
manifest's folder. Nothing stops at the first mistake: all of them are listed as file:line:field: message.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from speech import audio
from speech.answers import Match, problem

MARKER = "<|audio|>"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Message(_Strict):
    """One turn: words, or ``<|audio|>`` alone for a spoken one."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Answer(_Strict):
    """What a right reply says.

    final     it ends with ``value``
    exact     it is ``value``; right words earn their share
    number    the last number said is ``value``: 12, -3.5, 1,200, 2/3, 75 %, three quarters
    choice    it settles on one letter: B; with B: Paris, it may end with the words instead
    contains  the words of ``value`` occur in it, one after another
    regex     the pattern occurs in its words: lower case, no punctuation, numbers up to twenty in letters
    math      the last expression said has the value of ``value``: 2x + 3, x = 1/2, (a + b)^2, sqrt(2)
    """

    match: Match
    value: str = Field(min_length=1)

    @field_validator("value")
    @classmethod
    def _fits(cls, value: str, info: ValidationInfo) -> str:
        broken = problem(info.data["match"], value) if "match" in info.data else None
        if broken is not None:
            raise ValueError(broken)
        return value


class Row(_Strict):
    """A prompt with its reference reply. Audio paths are relative to the manifest's folder."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Unique; also part of file names."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The dialogue so far; the last turn is the user's."""
    audios: tuple[tuple[str, ...], ...] = ()
    """One entry per ``<|audio|>``: clips played one after another."""
    question_text: str = Field(min_length=1)
    """The user's words, for judges."""
    task_type: str = Field(min_length=1)
    """Groups rows in reports."""
    answer: Answer | None = None
    """None: nothing to check."""
    style: Literal["slow", "loud"] | None = None
    """How the reply was asked to sound."""
    sft_target_text: str = Field(min_length=1)
    """Words of the reference reply."""
    sft_target_audio: tuple[str, ...] = Field(min_length=1)
    """Clips of the reference reply; as many as words: word-aligned."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. ``line`` counts from 1; 0 means the file as a whole."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = [str(self.file), str(self.line) if self.line else "", self.field]
        return ":".join(part for part in where if part) + f": {self.message}"


class ManifestError(ValueError):
    """Everything that is wrong with a manifest, one problem a line."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def check(path: Path, max_seconds: float, deep: bool = True) -> list[Problem]:
    """All problems, in file order. ``deep`` decodes every distinct clip; else only headers are read."""
    return _examine(path, max_seconds, deep)[1]


def read(path: Path, max_seconds: float, deep: bool = False) -> list[Row]:
    """The rows of a sound manifest. ManifestError lists every problem."""
    rows, problems = _examine(path, max_seconds, deep)
    if problems:
        raise ManifestError(problems)
    return rows


class Cursor:
    """Draws row indices for ever: every epoch all of them once, in an order made of (seed, epoch).

    How a run cuts its draws does not matter: next(3) + next(5) is next(8). A draw across the end of an epoch
    may name a row twice.

    Example:
        cursor = Cursor(len(rows), seed=0)
        batch = [rows[i] for i in cursor.next(16)]
        saved = cursor.state_dict()
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise ValueError(f"a cursor needs at least one row: got {count}")
        self._count, self._seed, self._drawn = count, seed, 0

    def next(self, n: int) -> list[int]:
        """The next ``n`` indices in [0, count)."""
        indices: list[int] = []
        while len(indices) < n:
            epoch, at = divmod(self._drawn, self._count)
            order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
            taken = order[at : at + n - len(indices)].tolist()
            indices += taken
            self._drawn += len(taken)
        return indices

    def state_dict(self) -> dict[str, int]:
        """Everything: count, seed and how many have been drawn."""
        return {"count": self._count, "seed": self._seed, "drawn": self._drawn}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a saved state. ValueError: it belongs to other data or another seed."""
        for name, ours in (("count", self._count), ("seed", self._seed)):
            if state[name] != ours:
                raise ValueError(f"saved cursor must have the same {name}: got {state[name]}, here {ours}")
        self._drawn = state["drawn"]


def _examine(path: Path, max_seconds: float, deep: bool) -> tuple[list[Row], list[Problem]]:
    if not path.is_file():
        return [], [Problem(path, 0, "", "manifest does not exist")]
    clips = _Clips(path.parent, max_seconds, deep)
    rows: list[Row] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for line, text in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        found: list[tuple[str, str]] = []
        content = parse_object(text, found)
        row = _validate(content, found) if content is not None else None
        if row is not None:
            rows.append(row)
            found += _dialogue(row)
            if first.setdefault(row.id, line) != line:
                found.append(("id", f"must be unique: {row.id} is also on line {first[row.id]}"))
        if content is not None:
            found += clips.problems(content)
        problems += [Problem(path, line, field, message) for field, message in found]
    return rows, problems


def parse_object(text: bytes, found: list[tuple[str, str]]) -> dict[str, Any] | None:
    """The object on a line, or None; what is wrong with it goes to ``found``."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, n in Counter(key for key, _ in items).items() if n > 1]
        found.extend((key, "key must not appear twice") for key in twice)
        return dict(items)

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}" if text.strip() else "the line is empty"
    except RecursionError:
        what = "nested too deeply"
    except ValueError as error:  # not UTF-8, or a number with thousands of digits
        what = str(error)
    else:
        if isinstance(content, dict):
            return content
        what = f"got {type(content).__name__}"
    found.append(("", f"must be one JSON object: {what}"))
    return None


def _validate(content: dict[str, Any], found: list[tuple[str, str]]) -> Row | None:
    try:
        return Row.model_validate(content)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            if one["type"] == "too_short" and one["input"]:
                continue  # pydantic counts only the items that are sound; their own problems are listed
            found.append((field_name(one["loc"]), reason(one)))
        return None


def field_name(location: tuple[int | str, ...]) -> str:
    """("audios", 0, 1) -> "audios[0][1]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(
        "."
    )


def reason(error: Any, row: type[BaseModel] = Row) -> str:
    """pydantic's error about a field of ``row`` in our words."""
    if error["type"] == "extra_forbidden":
        models: dict[object, type[BaseModel]] = {"messages": Message, "answer": Answer}
        model = models[error["loc"][0]] if len(error["loc"]) > 1 else row
        near = get_close_matches(str(error["loc"][-1]), model.model_fields, n=1, cutoff=0.5)
        return "unknown key" + (f", did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return "key is missing"
    if error["type"] in ("too_short", "string_too_short"):
        return "must not be empty"
    rule, given = error["msg"].removeprefix("Value error, "), repr(error["input"])
    return f"{rule[:1].lower()}{rule[1:]}: got {given if len(given) <= 60 else given[:57] + '...'}"


def _dialogue(row: Row) -> Iterator[tuple[str, str]]:
    """Rules over turns and markers."""
    roles = [message.role for message in row.messages]
    if "user" not in roles:
        yield "messages", "must hold a user turn: got " + ", ".join(roles)
    elif roles[-1] != "user":
        yield "messages", f"must end with the user's turn: got {roles[-1]}"
    markers = sum(message.content.count(MARKER) for message in row.messages)
    if markers != len(row.audios):
        yield "audios", f"must have one entry per {MARKER}: got {len(row.audios)} for {markers}"
    for i, message in enumerate(row.messages):
        if MARKER in message.content and message.content != MARKER:
            yield (
                f"messages[{i}].content",
                f"must be words or one {MARKER} alone: got {message.content[:60]!r}",
            )
        if not message.content.strip():
            yield f"messages[{i}].content", "must not be blank"
    if not row.sft_target_text.strip():
        yield "sft_target_text", "must not be blank"


class _Clips:
    """Looks at every distinct clip once."""

    def __init__(self, root: Path, max_seconds: float, deep: bool) -> None:
        self._root, self._max_seconds, self._deep = root, max_seconds, deep
        self._known: dict[str, float | str] = {}  # seconds, or what is wrong

    def problems(self, content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Of a row as parsed: its clips are looked at even when another field is wrong."""
        audios = content.get("audios")
        lists = (
            [(f"audios[{i}]", clips) for i, clips in enumerate(audios)] if isinstance(audios, list) else []
        )
        for field, clips in [*lists, ("sft_target_audio", content.get("sft_target_audio"))]:
            if not isinstance(clips, list) or not all(isinstance(clip, str) for clip in clips):
                continue  # the schema has said so
            looked = [self._look(clip) for clip in clips]
            yield from ((f"{field}[{i}]", found) for i, found in enumerate(looked) if isinstance(found, str))
            seconds = sum(found for found in looked if not isinstance(found, str))
            if not clips and field != "sft_target_audio":
                yield field, "must name at least one clip"
            elif seconds > self._max_seconds and len(clips) > 1:
                yield field, f"audio must last at most {self._max_seconds:g} s: got {seconds:.1f} s"

    def _look(self, clip: str) -> float | str:
        if clip not in self._known:
            try:
                self._known[clip] = self._seconds(clip)
            except ValueError as error:
                self._known[clip] = str(error)
        return self._known[clip]

    def _seconds(self, clip: str) -> float:
        path = audio.inside(self._root, clip)
        header = audio.info(path)
        audio.check_length(path, header, self._max_seconds)
        if self._deep:
            audio.read(path, header.sample_rate, self._max_seconds)
        return header.seconds
