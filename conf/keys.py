"""The names a user may set, taken from the schema and the group folders; never listed by hand."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from conf.schema import Config

REMOVED_KEYS = {
    "rollout.top_p": "replies are drawn from the whole distribution, the learner cannot score a truncated one",
}
"""Settings of earlier releases -> why there is none any more. A run that was begun with one goes on without it."""

CONFIG_FOLDER = Path(__file__).resolve().parent
MIN_LIKENESS = 0.7  # likeness from which a suggestion helps


def _iterate_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _iterate_fields(field.annotation, f"{prefix}{name}.")


def _iterate_defaults(
    model: type[BaseModel], whole: BaseModel | None = None, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Of every leaf that has one. ``whole``: the default of the section itself, which may differ from its
    class's.
    """
    for name, field in model.model_fields.items():
        default = field.get_default() if whole is None else getattr(whole, name)
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            inner = default if isinstance(default, BaseModel) else None
            yield from _iterate_defaults(section, inner, f"{prefix}{name}.")
        elif whole is not None or not field.is_required():
            yield f"{prefix}{name}", default


def _iterate_item_fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of what stands in lists, under the list's own key."""
    for key, field in _iterate_fields(model):
        for item in get_args(field.annotation):
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield from _iterate_fields(item, f"{key}.")


SETTING_KEYS: dict[str, FieldInfo] = dict(_iterate_fields(Config))
"""Every dotted key, sections included."""

LEAF_KEYS: dict[str, FieldInfo] = {
    key: field for key, field in SETTING_KEYS.items() if not any(other.startswith(f"{key}.") for other in SETTING_KEYS)
}
"""Every dotted key that holds a value."""

LEAF_DEFAULTS: dict[str, Any] = dict(_iterate_defaults(Config))
"""Dotted key of a leaf -> what the schema says when no YAML file does."""

LIST_ITEM_KEYS: dict[str, FieldInfo] = dict(_iterate_item_fields(Config))
"""Every dotted key within the items of a list, without the item's index."""

CONFIG_GROUPS: dict[str, list[str]] = {
    folder.name: sorted(option.stem for option in folder.glob("*.yaml"))
    for folder in sorted(CONFIG_FOLDER.iterdir())
    if folder.is_dir() and not folder.name.startswith("_") and any(folder.glob("*.yaml"))
}
"""Config group -> its options. A folder with ``_`` before its name is composed and cannot be chosen."""


def takes_text(key: str) -> bool:
    """Whether a key holds text or a path, and nothing else."""
    return _value_types(key) <= {str, Path, type(None)}


def takes_path(key: str) -> bool:
    """Whether a key, or the items of a list there, holds a path."""
    return Path in _value_types(key)


def _value_types(key: str) -> set[Any]:
    field = SETTING_KEYS.get(key) or LIST_ITEM_KEYS.get(strip_indices(key))
    return {object} if field is None else _leaf_types(field.annotation)


def _leaf_types(annotation: Any) -> set[Any]:
    inner = get_args(annotation)
    return set().union(*map(_leaf_types, inner)) if inner else {annotation}


def strip_indices(key: str) -> str:
    """``judge.vetoes.measure`` for ``judge.vetoes.0.measure``."""
    return re.sub(r"\.\d+(?=\.|$)", "", key)


def suggest_key(key: str) -> str:
    """``; did you mean x?`` for the valid key most like ``key`` by its whole name or its last part."""

    def likeness(candidate: str) -> float:
        whole = SequenceMatcher(None, key, candidate).ratio()
        last = SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.95 * last)

    bare = strip_indices(key)
    known = [*LEAF_KEYS, *CONFIG_GROUPS] if bare == key else list(LIST_ITEM_KEYS)
    key = bare
    best = max(known, key=likeness)
    if likeness(best) < MIN_LIKENESS:
        return "; `wavgate train --cfg job` lists all keys"
    return f"; did you mean {best}?"
