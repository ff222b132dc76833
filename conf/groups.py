"""Config groups of the project and of a user's own folders: which options there are, and where.

    wavgate train --config-dir ~/my-conf experiment=mine      ~/my-conf/experiment/mine.yaml
    wavgate train experiment=~/elsewhere/mine.yaml            a file anywhere, as an option of that group

Invariant: an option of the project is never replaced by one of the user's, nor the other way round.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conf.keys import CONFIG_GROUPS


def list_options(group: str, folders: Sequence[Path]) -> list[str]:
    """The options of a group, the project's first; those of the user's folders may lie in subfolders."""
    own = [
        str(file.relative_to(folder / group).with_suffix(""))
        for folder in folders
        for file in sorted((folder / group).rglob("*.yaml"))
    ]
    return [*CONFIG_GROUPS[group], *own]


def find_folder_problems(folders: Sequence[Path]) -> Iterator[str]:
    """What is wrong with the user's folders."""
    for folder in folders:
        groups = [group for group in CONFIG_GROUPS if (folder / group).is_dir()]
        if not folder.is_dir():
            yield f"--config-dir: no folder at {folder}"
        elif not groups:
            yield f"--config-dir: must hold a folder named {', '.join(CONFIG_GROUPS)} (got {folder})"
        for group in groups:
            for name in set(CONFIG_GROUPS[group]) & set(list_options(group, [folder])[len(CONFIG_GROUPS[group]) :]):
                yield f"{group}: {folder / group / name}.yaml has the name of an option of the project"


def is_file_option(option: str) -> bool:
    """Whether a group's option is given as a file."""
    return option.endswith((".yaml", ".yml"))


@contextmanager
def link_files_as_options(files: dict[str, Path]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder for Hydra in which each group has its file, and the options' names."""
    with tempfile.TemporaryDirectory(prefix="wavgate-conf-") as folder:
        names = {}
        for group, file in files.items():
            names[group] = re.sub(r"\W", "_", file.stem) + "_file"
            (Path(folder) / group).mkdir()
            (Path(folder) / group / f"{names[group]}.yaml").symlink_to(file)
        yield Path(folder), names
