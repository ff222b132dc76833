"""A command line's ``key=value``: Hydra's grammar, and what people type that is none.

    data.train=~/train (1).jsonl    not Hydra's grammar, but clear: the value is the text behind the first "="
    run.name=20261130               a number in the grammar; the key takes text, so it is text
    run.seed=0,1,2                  a sweep: one run each with --multirun
    algo=glob(grpo*)                the options of a group that match

Invariant: a value that the grammar does not know is taken as it stands or refused with its key, never cut.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException

from conf.groups import list_options
from conf.keys import CONFIG_GROUPS, SETTING_KEYS, takes_text
from conf.messages import ConfigError, format_unknown_key, format_value

RESUME_KEY, SEARCHPATH_KEY = "resume", "hydra.searchpath"
"""Keys of the command line that are no settings: a run to go on from, and folders with config groups."""


def parse_overrides(overrides: list[str], problems: list[str]) -> Iterator[Override]:
    """Each override; adds the problem of one that is none."""
    parser = OverridesParser.create()
    for line in overrides:
        key, _, text = line.partition("=")
        name = key.strip().lstrip("+")
        known = "=" in line and (name in SETTING_KEYS or name in CONFIG_GROUPS or name == RESUME_KEY)
        as_text = f"{key.strip()}={quote_override(text)}"
        try:
            override = parser.parse_override(line)
        except HydraException:
            if known:
                yield parser.parse_override(as_text)
            elif "=" in line and re.fullmatch(r"[\w.]+", name):
                problems.append(format_unknown_key(name, text))
            else:
                problems.append(f"override: must read key=value (got {format_value(line)})")
            continue
        no_text = override.value_type is ValueType.ELEMENT and not isinstance(override.value(), str | None)
        yield parser.parse_override(as_text) if known and no_text and takes_text(name) else override


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """One list of overrides per combination of the comma lists, ranges and globs in ``overrides``."""
    problems: list[str] = []
    combinations: list[list[str]] = [[]]
    for override in list(parse_overrides(overrides, problems)):
        choices = [str(override.input_line)]
        if override.is_sweep_override():
            choices = _expand_choices(override, overrides, problems)
        combinations = [[*earlier, choice] for earlier in combinations for choice in choices]
    if problems:
        raise ConfigError(problems)
    return combinations


def _expand_choices(override: Override, overrides: list[str], problems: list[str]) -> list[str]:
    """What a sweep is over, each as an override."""
    key, values = override.key_or_group, override.value()
    if override.value_type is ValueType.INTERVAL_SWEEP:
        rule = "an interval has no list of values: give them, or a range"
        problems.append(f"{key}: {rule} (got {format_value(override.input_line)})")
        return []
    if isinstance(values, Glob):
        known = list_options(key, find_config_folders(parse_overrides(overrides, []))) if key in CONFIG_GROUPS else []
        matching = values.filter(sorted(known))
        if not matching:
            rule = f"must match one of {', '.join(known)}" if known else "only groups have options to match"
            problems.append(f"{key}: {rule} (got {format_value(override.input_line)})")
        return [f"{key}={name}" for name in matching]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def find_config_folders(overrides: Iterator[Override]) -> list[Path]:
    """The user's own folders with config groups, of ``--config-dir``."""
    given = [
        override.value()
        for override in overrides
        if override.key_or_group == SEARCHPATH_KEY and not override.is_sweep_override()
    ]
    flat = [str(item) for value in given for item in (value if isinstance(value, list) else [value])]
    return [Path(os.path.expanduser(item.removeprefix("file://"))).absolute() for item in flat]


def quote_override(text: str) -> str:
    """Text as a value in Hydra's grammar, whatever is in it: backslashes count before a quote only."""
    return "'" + re.sub(r"(\\*)('|$)", _escape_quote, text) + "'"


def _escape_quote(place: re.Match[str]) -> str:
    slashes, quote = place.groups()
    return slashes * 2 + ("\\'" if quote else "")
