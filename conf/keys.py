"""The names a user may set, taken from the schema and the group folders; never listed by hand."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from conf.schema import Config

FOLDER = Path(__file__).resolve().parent
CLOSE = 0.7  # likeness from which a suggestion helps


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")


def _holds_path(field: FieldInfo) -> bool:
    return field.annotation is Path or Path in get_args(field.annotation)


KEYS: dict[str, FieldInfo] = dict(_fields(Config))
"""Every dotted key, sections included."""

LEAVES: dict[str, FieldInfo] = {
    key: field for key, field in KEYS.items() if not any(other.startswith(f"{key}.") for other in KEYS)
}
"""Every dotted key that holds a value."""

DEFAULTS: dict[str, Any] = {key: leaf.get_default() for key, leaf in LEAVES.items() if not leaf.is_required()}
"""Dotted key -> what the schema says when no YAML file does."""

PATHS: list[str] = [key for key, field in LEAVES.items() if _holds_path(field)]
"""Those that name a file or a folder."""

GROUPS: dict[str, list[str]] = {
    folder.name: sorted(option.stem for option in folder.glob("*.yaml"))
    for folder in sorted(FOLDER.iterdir())
    if folder.is_dir() and any(folder.glob("*.yaml"))
}
"""Config group -> its options."""


def nearest(key: str) -> str:
    """``; did you mean x?`` for the valid key most like ``key`` by its whole name or its last part."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, key, candidate).ratio()
        last = SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last)

    best = max([*LEAVES, *GROUPS], key=likeness)
    if likeness(best) < CLOSE:
        return "; `wavgate train --cfg job` lists all keys"
    return f"; did you mean {best}?"
