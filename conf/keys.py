"""The names a user may set, taken from the schema and the group folders; never listed by hand."""

import re
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


def _defaults(model: type[BaseModel], whole: BaseModel | None = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Of every leaf that has one. ``whole``: the default of the section itself, which may differ from its
    class's.
    """
    for name, field in model.model_fields.items():
        default = field.get_default() if whole is None else getattr(whole, name)
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            inner = default if isinstance(default, BaseModel) else None
            yield from _defaults(section, inner, f"{prefix}{name}.")
        elif whole is not None or not field.is_required():
            yield f"{prefix}{name}", default


def _items(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of what stands in lists, under the list's own key."""
    for key, field in _fields(model):
        for item in get_args(field.annotation):
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield from _fields(item, f"{key}.")


KEYS: dict[str, FieldInfo] = dict(_fields(Config))
"""Every dotted key, sections included."""

LEAVES: dict[str, FieldInfo] = {
    key: field for key, field in KEYS.items() if not any(other.startswith(f"{key}.") for other in KEYS)
}
"""Every dotted key that holds a value."""

DEFAULTS: dict[str, Any] = dict(_defaults(Config))
"""Dotted key of a leaf -> what the schema says when no YAML file does."""

ITEMS: dict[str, FieldInfo] = dict(_items(Config))
"""Every dotted key within the items of a list, without the item's index."""

GROUPS: dict[str, list[str]] = {
    folder.name: sorted(option.stem for option in folder.glob("*.yaml"))
    for folder in sorted(FOLDER.iterdir())
    if folder.is_dir() and not folder.name.startswith("_") and any(folder.glob("*.yaml"))
}
"""Config group -> its options. A folder with ``_`` before its name is composed and cannot be chosen."""


def takes_text(key: str) -> bool:
    """Whether a key holds text or a path, and nothing else."""
    return _kinds(key) <= {str, Path, type(None)}


def takes_path(key: str) -> bool:
    """Whether a key, or the items of a list there, holds a path."""
    return Path in _kinds(key)


def _kinds(key: str) -> set[Any]:
    field = KEYS.get(key) or ITEMS.get(unindexed(key))
    return {object} if field is None else _leaves(field.annotation)


def _leaves(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return set().union(*map(_leaves, inner)) if inner else {annotation}


def unindexed(key: str) -> str:
    """``judge.vetoes.measure`` for ``judge.vetoes.0.measure``."""
    return re.sub(r"\.\d+(?=\.|$)", "", key)


def nearest(key: str) -> str:
    """``; did you mean x?`` for the valid key most like ``key`` by its whole name or its last part."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, key, candidate).ratio()
        last = SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last)

    bare = unindexed(key)
    known = [*LEAVES, *GROUPS] if bare == key else list(ITEMS)
    key = bare
    best = max(known, key=likeness)
    if likeness(best) < CLOSE:
        return "; `wavgate train --cfg job` lists all keys"
    return f"; did you mean {best}?"
