"""A file of one JSON object per line, held against a model: everything that is wrong, where it is.

Invariant: nothing stops at the first mistake; each is a ``Problem``, file:line:field: message. A file is
hostile until it was read: lines have a bound. Its clips: speech/data/clips.py.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from store.kinds import name_foreign_kind

MAX_LINE = 1 << 24  # bytes; a row has thousands
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
MAX_SHOWN_PROBLEMS = 20  # problems of a manifest on the screen
MAX_PROBLEM_CHARACTERS = 1000  # of a message, which may repeat a value of the file
UNPRINTABLE_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would break a line, or talk to a terminal
RowProblems = list[tuple[str, str]]  # what is wrong with a line: field, message


def escape_unprintable(text: str) -> str:
    """Text of a hostile file as one line that says nothing to a terminal."""
    return UNPRINTABLE_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. ``line`` counts from 1; 0 means the file as a whole."""

    file: Path
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        places = [str(self.file), str(self.line) if self.line else "", self.field]
        message = self.message
        if len(message) > MAX_PROBLEM_CHARACTERS:
            part = MAX_PROBLEM_CHARACTERS // 2
            message = f"{message[:part]} ... ({len(message)} characters) ... {message[-part:]}"
        text = ":".join(part for part in places if part) + f": {message}"
        return escape_unprintable(text)


class ManifestError(ValueError):
    """Everything that is wrong with a manifest: the first problems, a line each, then how many of which."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(_summarize_problems(problems)))
        self.problems = problems


def _summarize_problems(problems: list[Problem]) -> Iterator[str]:
    yield from (str(problem) for problem in problems[:MAX_SHOWN_PROBLEMS])
    if len(problems) > MAX_SHOWN_PROBLEMS:
        rules = Counter(strip_problem_values(problem.field, problem.message) for problem in problems)
        yield f"{len(problems)} problems in all, {MAX_SHOWN_PROBLEMS} shown:"
        yield from (f"{count:>9}  {escape_unprintable(rule)}" for rule, count in rules.most_common(MAX_SHOWN_PROBLEMS))


def strip_problem_values(field: str, message: str) -> str:
    """A problem without the values: what rows can be counted by."""
    field_name = re.sub(r"\[\d+\]", "", field)
    first, _, value = message.partition(": ")
    rule = value.partition(": ")[0] if "/" in first and value else first  # the name of a clip comes first
    return f"{field_name}: {rule}".removeprefix(": ")[:120]


M = TypeVar("M", bound=BaseModel)


def iterate_numbered_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
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


def parse_object(text: bytes, problems: RowProblems) -> dict[str, Any] | None:
    """The object on a line, or None; what is wrong with it goes to ``problems``."""
    if len(text) > MAX_LINE:
        problems.append(("", f"a line has at most {MAX_LINE} bytes"))
        return None

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, n in Counter(key for key, _ in items).items() if n > 1]
        problems.extend((key, "key must not appear twice") for key in twice)
        return dict(items)

    try:
        content = json.loads(text.decode("utf-8-sig"), object_pairs_hook=pairs)
        if b"\\u" in text:  # half a surrogate pair is no character and could not be written again
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        what = _explain_bad_json(text, error)
    except RecursionError:
        what = "nested too deeply"
    except UnicodeError as error:
        what = _explain_bad_text(text) or f"must be UTF-8: {error}"
    except ValueError:
        what = "a number has thousands of digits"
    else:
        if isinstance(content, dict):
            return content
        what = f"got {_name_json_kind(content)}" + ", write each object on a line" * isinstance(content, list)
    problems.append(("", f"must be one JSON object: {what}"))
    return None


def _name_json_kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(value), "null")


def _explain_bad_json(text: bytes, error: json.JSONDecodeError) -> str:
    if not text.strip():
        return "the line is empty"
    if foreign := _explain_bad_text(text):
        return foreign
    place = f"at column {error.colno}"
    if error.pos >= len(error.doc.rstrip()):
        return f"it goes on behind the line, and must not: {error.msg} {place}"
    if error.msg == "Extra data":
        return f"something follows it {place}: {error.doc[error.pos : error.pos + 20]!a}"
    if not text.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")):
        return f"the line begins with {error.doc.lstrip()[:20]!a}"
    return f"{error.msg} {place}"


def _explain_bad_text(text: bytes) -> str:
    """What a line is that holds no UTF-8; nothing: it may."""
    if kind := name_foreign_kind(text):
        return f"the file is {kind}"
    return "the file must be UTF-8: it is UTF-16 or UTF-32, or no text" if b"\0" in text else ""


def validate_model(model: type[M], content: Mapping[str, Any], problems: RowProblems) -> M | None:
    """The model of a line, or None; what is wrong with it goes to ``problems``."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "too_short" and detail["input"]:
                continue  # pydantic counts only the items that are sound; their own problems are listed
            problems.append((format_field_path(detail["loc"]), explain_validation_error(detail, model)))
        return None


def format_field_path(location: tuple[int | str, ...]) -> str:
    """("audios", 0, 1) -> "audios[0][1]"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def explain_validation_error(error: Any, row: type[BaseModel]) -> str:
    """pydantic's error about a field of ``row`` in our words."""
    if error["type"] == "extra_forbidden":
        model = _find_nested_model(row, error["loc"][:-1])
        near = get_close_matches(str(error["loc"][-1]), model.model_fields, n=1, cutoff=0.5)
        return "unknown key" + (f", did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return "key is missing"
    if error["type"] in ("too_short", "string_too_short"):
        return "must not be empty"
    rule, given = _explain_rule(error), repr(error["input"])
    return f"{rule[:1].lower()}{rule[1:]}: got {given if len(given) <= 60 else given[:57] + '...'}"


JSON_TYPE_NAMES = {  # pydantic's kind of error -> what JSON calls the thing that is wanted
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
PATTERN_RULES = {ID_PATTERN: "must be 1 to 128 letters, digits, . _ or -, the first a letter or a digit"}


def _explain_rule(error: Any) -> str:
    if error["type"] in JSON_TYPE_NAMES:
        return f"must be {JSON_TYPE_NAMES[error['type']]}"
    if error["type"] == "string_pattern_mismatch":
        pattern = error["ctx"]["pattern"]
        return PATTERN_RULES.get(pattern, f"must match {pattern}")
    rule = str(error["msg"]).removeprefix("Value error, ")
    return re.sub(r"^(Input|String|Value|Tuple|List) should", "must", rule)


def _find_nested_model(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
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
