"""A file of one JSON object per line, held against a model: everything that is wrong, where it is.

Invariant: nothing stops at the first mistake; each is a ``Problem``, file:line:field: message. A file is
hostile until it was read: lines have a bound, clips stay in the file's folder and are bounded too.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from speech import audio
from speech.recent import Recent

MAX_LINE = 1 << 24  # bytes; a row has thousands
UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would break a line, or talk to a terminal
Found = list[tuple[str, str]]  # what is wrong with a line: field, message


def printable(text: str) -> str:
    """Text of a hostile file as one line that says nothing to a terminal."""
    return UNPRINTED.sub(lambda match: ascii(match[0])[1:-1], text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. ``line`` counts from 1; 0 means the file as a whole."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = [str(self.file), str(self.line) if self.line else "", self.field]
        said = ":".join(part for part in where if part) + f": {self.message}"
        return printable(said)


class ManifestError(ValueError):
    """Everything that is wrong with a manifest, one problem a line."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


M = TypeVar("M", bound=BaseModel)


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Lines with their numbers, from 1, and where they start; an empty file has one.

    Of a line that is too long, ``MAX_LINE`` + 1 bytes: what follows in it is passed over piece by piece.
    """
    with path.open("rb") as file:
        number = start = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            yield number, start, line
            start += len(line)
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
                start += len(line)
        if not number:
            yield 1, 0, b""


def parse_object(text: bytes, found: Found) -> dict[str, Any] | None:
    """The object on a line, or None; what is wrong with it goes to ``found``."""
    if len(text) > MAX_LINE:
        found.append(("", f"a line has at most {MAX_LINE} bytes"))
        return None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, n in Counter(key for key, _ in items).items() if n > 1]
        found.extend((key, "key must not appear twice") for key in twice)
        return dict(items)

    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
        if b"\\u" in text:  # half a surrogate pair is no character and could not be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
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


def validated(model: type[M], content: Mapping[str, Any], found: Found) -> M | None:
    """The model of a line, or None; what is wrong with it goes to ``found``."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            if one["type"] == "too_short" and one["input"]:
                continue  # pydantic counts only the items that are sound; their own problems are listed
            found.append((field_name(one["loc"]), reason(one, model)))
        return None


def field_name(location: tuple[int | str, ...]) -> str:
    """("audios", 0, 1) -> "audios[0][1]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(
        "."
    )


def reason(error: Any, row: type[BaseModel]) -> str:
    """pydantic's error about a field of ``row`` in our words."""
    if error["type"] == "extra_forbidden":
        model = _model_at(row, error["loc"][:-1])
        near = get_close_matches(str(error["loc"][-1]), model.model_fields, n=1, cutoff=0.5)
        return "unknown key" + (f", did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return "key is missing"
    if error["type"] in ("too_short", "string_too_short"):
        return "must not be empty"
    rule, given = error["msg"].removeprefix("Value error, "), repr(error["input"])
    return f"{rule[:1].lower()}{rule[1:]}: got {given if len(given) <= 60 else given[:57] + '...'}"


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """The model within ``model`` that a place in it belongs to."""

    def within(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for part in get_args(annotation):
            yield from within(part)

    for part in location:
        if part in model.model_fields:
            model = next(within(model.model_fields[str(part)].annotation), model)
    return model


class Clips:
    """Looks at every distinct clip once, as far as it remembers."""

    def __init__(self, root: Path, max_seconds: float, deep: bool) -> None:
        self._root, self._max_seconds, self._deep = root, max_seconds, deep
        self._known: Recent[str, float | str] = Recent()  # seconds, or what is wrong

    def problems(self, fields: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
        """Of fields as parsed, clips or one clip: looked at even when another field is wrong."""
        for field, clips in fields:
            if isinstance(clips, str):
                found = self._look(clips)
                if isinstance(found, str):
                    yield field, found
                continue
            if not isinstance(clips, list) or not all(isinstance(clip, str) for clip in clips):
                continue  # the schema has said so
            looked = [self._look(clip) for clip in clips]
            yield from ((f"{field}[{i}]", found) for i, found in enumerate(looked) if isinstance(found, str))
            seconds = sum(found for found in looked if not isinstance(found, str))
            if not clips and field.startswith("audios"):
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
