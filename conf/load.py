"""From what a user typed to a checked ``Config``; every mistake at once, each on one line.

    schema defaults <- train.yaml, groups, overrides  --Hydra-->  plain values  --pydantic-->  Config

How a command line uses it (no ``hydra.main``: no output folder, no log file, no second parser):

    config = load_config(["algo=sft", "rollout.group_size=4"])       # ConfigError: print it, exit 2
    print(dump_config(config))                                       # --cfg job
    runs = [load_config(run) for run in expand_sweep(overrides)]     # --multirun: all checked before one starts

``resume=RUN`` takes RUN's own ``config.yaml`` as the base instead of train.yaml and goes on in that folder.
Invariant: what comes out holds no interpolation, no secret and no relative path: it means the same in any
process on any node.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from yaml import YAMLError

from conf.groups import find_folder_problems, is_file_option, link_files_as_options, list_options
from conf.keys import CONFIG_FOLDER, CONFIG_GROUPS, LEAF_DEFAULTS, REMOVED_KEYS, SETTING_KEYS, takes_path, takes_text
from conf.messages import (
    EMPTY_VALUE_RULE,
    ConfigError,
    find_value_problems,
    format_composition_problem,
    format_schema_problems,
    format_unknown_key,
    format_value,
)
from conf.overrides import (
    RESUME_KEY,
    SEARCHPATH_KEY,
    expand_sweep,
    find_config_folders,
    parse_overrides,
    quote_override,
)
from conf.places import (
    PROJECT_ROOT,
    find_place_problems,
    make_paths_absolute,
    make_paths_portable,
    resolve_saved_paths,
)
from conf.schema import Config

__all__ = ["PROJECT_ROOT", "ConfigError", "dump_config", "expand_sweep", "load_config", "read_config"]


def load_config(overrides: list[str], config_name: str = "train") -> Config:
    """The checked configuration for a list of ``key=value``.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    problems: list[str] = []
    given = list(parse_overrides(overrides, problems))
    resumed = [override for override in given if override.key_or_group == RESUME_KEY]
    base = _read_resumed_run(resumed[-1], problems) if resumed else None
    folders = find_config_folders(iter(given))
    problems += find_folder_problems(folders)
    if folders and problems:
        raise ConfigError(problems)  # Hydra would warn of a folder that is not there, and go on
    settings = [override for override in given if override.key_or_group not in (RESUME_KEY, SEARCHPATH_KEY)]
    known = [override for override in settings if _is_known(override, problems, folders, resumes=bool(resumed))]
    try:
        raw = _compose_settings(known, config_name, base, folders, problems)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError([*problems, format_composition_problem(error, config_name)]) from None
    return _validate_config(raw, problems)


def read_config(path: Path) -> Config:
    """The configuration that ``dump_config`` wrote, for example RUN/config.yaml."""
    return _validate_config(_read_saved_config(path), [])


def dump_config(config: Config) -> str:
    """YAML with every field; ``read_config`` gives the same configuration back, also after a Ray job's end."""
    return OmegaConf.to_yaml(OmegaConf.create(make_paths_portable(config).model_dump(mode="json")))


def _is_known(override: Override, problems: list[str], folders: list[Path], *, resumes: bool) -> bool:
    """Whether the schema or a group has the key and option; adds the problem otherwise."""
    key = override.key_or_group
    if override.is_delete():
        problem = f"{key}: must be set to a value, not deleted (got {format_value(override.input_line)})"
    elif override.is_sweep_override():
        hint = f"; a comma in one value: {key}='\"...\"'" if takes_text(key) else ""
        problem = f"{key}: a list of choices needs --multirun{hint} (got {format_value(override.input_line)})"
    elif key in CONFIG_GROUPS and override.package is None:
        option = str(override.value())
        rule = _check_option(key, option, folders) if not resumes else "cannot change in a resumed run"
        if rule is None:
            return True
        problem = f"{key}: {rule} (got {format_value(option)})"
    elif resumes and key in ("run.name", "run.root"):
        problem = f"{key}: a resumed run goes on in its own folder (got {format_value(override.value())})"
    elif key not in SETTING_KEYS:
        problem = format_unknown_key(key, override.get_value_element_as_str())
    elif "${oc." in str(override.input_line) and not takes_path(key):
        problem = f"{key}: must be the NAME of an environment variable, its value would be written to disk"
    else:
        return True
    problems.append(problem)
    return False


def _find_preset_problem(composed: DictConfig, files: Collection[str]) -> list[str]:
    """A family on another one's preset would learn at that one's rate. ``files``: all that were composed."""
    family = OmegaConf.select(composed, "model.family")
    others = [name for name in CONFIG_GROUPS["model"] if f"model/{name}" in files and name != family]
    if family not in CONFIG_GROUPS["model"] or not others:
        return []
    rule = f"must come with its preset, model={family} (in a file: `override /model: {family}` in its defaults)"
    return [f"model.family: {rule} (got {family} beside model={others[0]})"]


def _check_option(group: str, option: str, folders: list[Path]) -> str | None:
    """What an option of a group must be; None where it is."""
    if is_file_option(option):
        file = Path(os.path.expanduser(option))
        return None if file.is_file() and file.suffix == ".yaml" else "must be a .yaml file that exists"
    known = list_options(group, folders)
    return None if option in known else f"must be one of {', '.join(known)}"


def _compose_settings(
    overrides: list[Override],
    config_name: str,
    base: dict[str, Any] | None,
    folders: list[Path],
    problems: list[str],
) -> dict[str, Any]:
    """Schema defaults, then the YAML files (or a run's own), then the overrides; interpolations resolved."""
    merged = OmegaConf.create({})
    for key, value in LEAF_DEFAULTS.items():
        OmegaConf.update(merged, key, value)
    if base is None:
        composed, files = _compose_files(overrides, config_name, folders)
        problems += _find_preset_problem(composed, files)
        merged.merge_with(composed)
        for key in _find_unset_keys(OmegaConf.to_container(composed, resolve=False)):
            OmegaConf.update(merged, key, "???")  # a file that says so takes the schema's default away
    else:
        merged.merge_with(base)
        for override in overrides:
            OmegaConf.update(merged, override.key_or_group, override.value())
    raw = OmegaConf.to_container(merged, resolve=True)
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items()}


def _compose_files(overrides: list[Override], config_name: str, folders: list[Path]) -> tuple[DictConfig, set[str]]:
    """What Hydra makes of the project's YAML, the user's own and the overrides; and the files that it took,
    as ``group/option``.
    """
    own = {
        override.key_or_group: Path(os.path.expanduser(str(override.value()))).absolute()
        for override in overrides
        if override.key_or_group in CONFIG_GROUPS and is_file_option(str(override.value()))
    }
    with (
        link_files_as_options(own) as (linked, names),
        initialize_config_dir(config_dir=str(CONFIG_FOLDER), version_base="1.3"),
    ):
        places = [quote_override(f"file://{folder}") for folder in (*folders, *([linked] if own else []))]
        lines = [f"{SEARCHPATH_KEY}=[{','.join(places)}]"] if places else []
        lines += [_format_forced_override(override, names) for override in overrides]
        loader = GlobalHydra.instance().config_loader()
        taken = loader.compute_defaults_list(config_name, lines, RunMode.RUN).defaults
        return compose(config_name, overrides=lines), {str(default.config_path) for default in taken}


def _find_unset_keys(node: Any, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _find_unset_keys(value, f"{prefix}{name}.")
        elif value == "???":
            yield f"{prefix}{name}"


def _format_forced_override(override: Override, names: dict[str, str]) -> str:
    """Set a schema key whether or not a YAML file mentions it; ``names``: the options that are files."""
    key = override.key_or_group
    if key in names:
        return f"{key}={names[key]}"
    return f"{'' if key in CONFIG_GROUPS else '++'}{key}={override.get_value_element_as_str()}"


def _read_resumed_run(resume: Override, problems: list[str]) -> dict[str, Any]:
    if not str(resume.value() or "").strip():
        raise ConfigError([*problems, f"resume: {EMPTY_VALUE_RULE} (got nothing)"])
    run = Path(os.path.expanduser(str(resume.value()))).absolute()
    if not (run / "config.yaml").is_file():
        problem = f"resume: must be a run directory with a config.yaml (got {format_value(run)})"
        raise ConfigError([*problems, problem])
    raw = _read_saved_config(run / "config.yaml")
    return raw | {"run": {**raw["run"], "root": str(run.parent), "name": run.name, "resume": str(run)}}


def _read_saved_config(path: Path) -> dict[str, Any]:
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError([f"{path}: must be a configuration that a run wrote: {format_value(error)}"]) from None
    if not isinstance(raw, dict) or not isinstance(raw.get("run"), dict):
        raise ConfigError([f"{path}: must be a configuration that a run wrote, with a section 'run'"])
    _update_saved_settings(raw)
    return {str(key): resolve_saved_paths(value, str(key)) for key, value in raw.items()}


def _update_saved_settings(raw: dict[Any, Any]) -> None:
    """Runs of older versions have settings that are gone, and the files of pocketsphinx, the one recogniser then,
    beside the other settings of the judge.
    """
    sections = {name: section for name, section in raw.items() if isinstance(section, dict)}
    for key in REMOVED_KEYS:
        section, _, name = key.rpartition(".")
        sections.get(section, {}).pop(name, None)
    judge = sections.get("judge", {})
    for name in [name for name in ("language_model", "dictionary") if name in judge]:
        judge.setdefault("asr", {"by": "pocketsphinx"})[name] = judge.pop(name)


def _validate_config(raw: dict[str, Any], problems: list[str]) -> Config:
    problems = problems + list(find_value_problems(raw))
    named = {problem.partition(":")[0] for problem in problems}
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += [line for line in format_schema_problems(error) if line.partition(":")[0] not in named]
        raise ConfigError(problems) from None
    problems += find_place_problems(config)
    if problems:
        raise ConfigError(problems)
    return make_paths_absolute(config)


# Names of an earlier release, kept for one more.
load, read, dump, sweep, ROOT = load_config, read_config, dump_config, expand_sweep, PROJECT_ROOT
