"""What is wrong with a configuration, a line per problem: ``<dotted.key>: <rule> (got <value>)``.

Invariant: a value that looks like a secret is never repeated.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from conf.keys import LEAF_KEYS, LIST_ITEM_KEYS, REMOVED_KEYS, SETTING_KEYS, strip_indices, suggest_key

SECRET_PATTERN = re.compile(
    r"\b(sk|pk|rk)-[\w-]{8,}|\b(hf|ghp|gho|ghs|glpat|xox[abp])[_-][\w-]{8,}|\bAKIA\w{12,}"
    r"|\beyJ[\w-]{10,}\.[\w.-]+|\b(?=\w*\d)(?=\w*[A-Za-z])[A-Za-z0-9]{32,}\b"
)
EMPTY_VALUE_RULE = "must not be empty: is a variable of the shell not set?"
KEYS_ALLOWED_EMPTY = ("model.system",)
MAX_VALUE_CHARS = 80  # characters of a value in a message


class ConfigError(ValueError):
    """Every problem of one configuration, a line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = [f"conf: {problem}" for problem in dict.fromkeys(problems)]
        super().__init__("\n".join(self.problems))


def format_value(value: Any) -> str:
    """The value as a message may show it."""
    text = " ".join(str(value).split())
    if SECRET_PATTERN.search(text):
        return "a secret, not shown"
    return (text or "nothing") if len(text) <= MAX_VALUE_CHARS else f"{text[: MAX_VALUE_CHARS - 3]}..."


def format_unknown_key(key: str, value: Any) -> str:
    """The problem of a key that does not exist, or not any more."""
    if key in REMOVED_KEYS:
        return f"{key}: is no setting any more, {REMOVED_KEYS[key]} (got {format_value(value)})"
    return f"{key}: unknown key{suggest_key(key)} (got {format_value(value)})"


def find_value_problems(raw: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What pydantic lets through or cannot name: secrets, ``???``, nothing, NaN and infinity, true for 1."""
    for name, value in raw.items():
        key = f"{prefix}{name}"
        leaf = LEAF_KEYS.get(key) or LIST_ITEM_KEYS.get(strip_indices(key))
        if isinstance(value, Mapping):
            yield from find_value_problems(value, f"{key}.")
        elif isinstance(value, list):
            yield from find_value_problems({str(index): item for index, item in enumerate(value)}, f"{key}.")
        elif isinstance(value, str) and (SECRET_PATTERN.search if name == "base_url" else SECRET_PATTERN.fullmatch)(
            value
        ):
            yield f"{key}: must be the NAME of an environment variable, never a secret (got {format_value(value)})"
        elif isinstance(value, str) and not value.strip() and key not in KEYS_ALLOWED_EMPTY:
            yield f"{key}: {EMPTY_VALUE_RULE} (got nothing)"
        elif value == "???":
            yield f"{key}: must be set: {leaf.description if leaf else 'it has no default'}"
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{key}: must be a finite number (got {value})"
        elif isinstance(value, bool) and leaf and leaf.annotation is not bool:
            yield f"{key}: must not be a truth value (got {str(value).lower()})"


def format_schema_problems(error: ValidationError) -> Iterator[str]:
    """pydantic's errors in our words."""
    for detail in error.errors(include_url=False):
        key, value = ".".join(str(part) for part in detail["loc"]), detail["input"]
        if detail["type"] == "extra_forbidden":
            yield format_unknown_key(key, value)
        elif detail["type"] == "missing":
            yield f"{key}: must be set"
        elif detail["type"] == "value_error":
            yield _format_rule(key, str(detail["ctx"]["error"]))
        else:
            rule = re.sub(r"^Input is not a valid path.*", "must be a path", detail["msg"])
            rule = re.sub(r"^(Input|String|Value) should", "must", rule)
            rule = rule.replace("a valid tuple", "a list, [a,b]")
            yield f"{key}: {re.split(', (unable to|got) ', rule)[0]} (got {format_value(value)})"


def format_composition_problem(error: Exception, file: str) -> str:
    """What Hydra or OmegaConf says, under the key that it is about."""
    key = getattr(error, "full_key", None) or file
    unset = re.search(r"Environment variable '(\w+)' not found", str(error))
    return f"{key}: " + (f"the environment variable {unset[1]} is not set" if unset else format_value(error))


def _format_rule(section: str, text: str) -> str:
    """A rule of the schema's own starts with the field's name and ends in ``: got ...``."""
    first, _, rule = re.sub(r": got (.*)$", r" (got \1)", text).partition(" ")
    name, _, given = first.partition("=")
    key = f"{section}.{name}".removeprefix(".")
    assert key in SETTING_KEYS or strip_indices(key) in LIST_ITEM_KEYS, (
        f"the rule must start with a field's name: {section} {text}"
    )
    return f"{key}: {given} {rule}" if given else f"{key}: {rule}"
