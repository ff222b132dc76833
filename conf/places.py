"""Where the paths of a configuration are: absolute in use, and in config.yaml where they are there to stay.

A Ray job runs in a temporary copy of the folder that was sent with it. What lies there is written relative to
it, and looked for again below the project's folder, then in the folder that a command is run in.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conf.keys import CONFIG_FOLDER, takes_path
from conf.schema import Config

PROJECT_ROOT = CONFIG_FOLDER.parent
"""The project's folder: ``examples/...`` is found from anywhere."""

RAY_JOB_FOLDER = re.compile(r".*/runtime_resources/working_dir_files/[^/]+/")
"""The copy that Ray makes of a job's folder, on every node."""

WRITTEN_KEYS = {"run.root", "judge.api.cache", "judge.second.cache"}
"""Paths of what a run writes: never below the project's folder by accident."""


def find_place_problems(config: Config) -> Iterator[str]:
    """What a run in a Ray job would write into Ray's temporary folder."""
    written = {
        "run.root": config.run.root,
        "judge.api.cache": config.judge.api.cache,
        "judge.second.cache": config.judge.second.cache,
    }
    for key, path in written.items():
        if is_in_ray_job() and path is not None and _is_temporary(Path(os.path.expanduser(path))):
            rule = "must be absolute in a Ray job, whose own folder is temporary, and outside of that"
            yield f"{key}: {rule} (got {path})"


def _is_temporary(path: Path) -> bool:
    return not path.is_absolute() or RAY_JOB_FOLDER.match(str(path)) is not None


def is_in_ray_job() -> bool:
    """Whether this process runs in the unpacked working directory of a Ray job."""
    return "runtime_resources" in Path.cwd().parts


def make_paths_absolute(config: Config) -> Config:
    """Every path as it is meant here: below this folder or, of what is only read, below the project's."""
    return Config.model_validate(_map_paths(config.model_dump(), "", _resolve_path))


def make_paths_portable(config: Config) -> Config:
    """Every path as config.yaml has it: what lies in Ray's temporary folder, relative to that."""
    return Config.model_validate(_map_paths(config.model_dump(), "", _shorten_path))


def resolve_saved_paths(raw: Any, key: str = "") -> Any:
    """What config.yaml holds, with the paths in it absolute."""
    if isinstance(raw, dict):
        return {name: resolve_saved_paths(value, f"{key}.{name}".lstrip(".")) for name, value in raw.items()}
    if isinstance(raw, list):
        return [resolve_saved_paths(item, key) for item in raw]
    return _resolve_saved_path(raw) if isinstance(raw, str) and takes_path(key) else raw


def _map_paths(node: Any, key: str, placed: Callable[[str, Path], Path]) -> Any:
    """``node``, which lies at ``key``, with every path in it replaced; all items of a list have its key."""
    if isinstance(node, dict):
        return {name: _map_paths(value, f"{key}.{name}".lstrip("."), placed) for name, value in node.items()}
    if isinstance(node, list | tuple):
        return [_map_paths(item, key, placed) for item in node]
    return placed(key, node) if isinstance(node, Path) else node


def _resolve_path(key: str, path: Path) -> Path:
    path = Path(os.path.expanduser(path))  # an unknown user's name stays as it is, as in a shell
    embedded = key not in WRITTEN_KEYS and not path.exists() and (PROJECT_ROOT / path).exists()
    return PROJECT_ROOT / path if embedded else path.absolute()


def _shorten_path(key: str, path: Path) -> Path:
    return Path(_strip_job_folder(str(path)))


def _resolve_saved_path(text: str) -> str:
    path = Path(_strip_job_folder(text))
    if path.is_absolute():
        return text
    return str(path.absolute() if path.exists() and not (PROJECT_ROOT / path).exists() else PROJECT_ROOT / path)


def _strip_job_folder(text: str) -> str:
    return RAY_JOB_FOLDER.sub("", text)
