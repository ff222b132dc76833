"""Files of JSON lines that grow and can be killed while they do: appended to, read back, cut back.

Invariant: a line is written in one piece with its end of line, so that lines of several processes do not mix.
What stands behind the last end of line was torn by a kill: a reader leaves it out, the next line that is
appended takes its place.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from store.files import write_atomically

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonLines(Generic[T]):
    """What a file holds. ``note``: why something is not in ``rows``, in a sentence."""

    rows: tuple[T, ...]
    note: str | None = None


def append_json_line(path: Path, line: BaseModel | Mapping[str, Any]) -> None:
    """Add a line; the file and its folder are made. OSError: it cannot be written. ValueError: NaN or infinity."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        cut_torn_end(file)
        write_json_line(file, line)
    finally:
        os.close(file)


def write_json_line(file: int, line: BaseModel | Mapping[str, Any]) -> None:
    """The same for a descriptor that is open for appending and has no torn end."""
    text = line.model_dump_json() if isinstance(line, BaseModel) else json.dumps(line, allow_nan=False)
    data = text.encode() + b"\n"
    while data:
        data = data[os.write(file, data) :]


def cut_torn_end(file: int) -> None:
    """Cut off what stands behind the last end of line."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.truncate(file, os.pread(file, size, 0).rfind(b"\n") + 1)


def keep_json_lines(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leave only the wanted lines in a file, if it is there, and none that a kill cut short."""
    if path.exists():
        lines = [line for line in path.read_text().split("\n") if _is_json(line) and wanted(json.loads(line))]
        write_atomically(path, "".join(line + "\n" for line in lines))


def read_json_lines(path: Path, kind: TypeAdapter[T]) -> JsonLines[T]:
    """Every line of a file. A last line that is none is left out and said, for it may be in the making.

    ValueError: any other malformed line, as file:line.
    """
    if not path.is_file():
        return JsonLines((), f"{path.name} is not there")
    # Split at \n only: str.splitlines would also cut at U+2028 inside a JSON string.
    pieces = path.read_bytes().split(b"\n")
    pieces = pieces[:-1] if not pieces[-1] else pieces
    rows: list[T] = []
    for number, piece in enumerate(pieces, start=1):
        try:
            rows.append(kind.validate_json(piece))
        except ValidationError as error:
            problem = format_first_problem(error)
            if number < len(pieces):
                raise ValueError(f"{path}:{number}: {problem}") from None
            return JsonLines(tuple(rows), f"{path.name}: line {number}, the last, is left out: {problem}")
    return JsonLines(tuple(rows), None if rows else f"{path.name} is empty")


def format_first_problem(error: ValidationError) -> str:
    """The first problem in one line: field and rule."""
    problem = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
