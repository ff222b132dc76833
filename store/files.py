"""Files that are there whole or not at all, with the modes that the umask gives."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` when the block ends well; else ``path`` stays as it was.

    OSError: nothing can be written there.

    Example:
        with replace_atomically(run / "study.csv") as unfinished:
            unfinished.write_text(table)
    """
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}")  # machines that share a disk share process ids
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """The text as the file. OSError: as ``replace_atomically``."""
    with replace_atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def copy_contents(source: Path, target: Path, wanted: Callable[[Path], bool]) -> None:
    """The files below ``source`` whose paths, and whose folders' paths, are ``wanted``, into ``target``.

    Contents, not modes or links: who may read the source is the source's business. A link to a folder that
    it lies in is left out: its files are there already.
    """
    above = {source: frozenset({os.path.realpath(source)})}
    for folder, folders, files in os.walk(source, followlinks=True):
        here = Path(folder)
        real = {name: os.path.realpath(here / name) for name in folders if wanted(here / name)}
        folders[:] = [name for name in folders if name in real and real[name] not in above[here]]
        above |= {here / name: above[here] | {real[name]} for name in folders}
        (target / here.relative_to(source)).mkdir(parents=True, exist_ok=True)
        for name in files:
            if wanted(here / name):
                shutil.copyfile(here / name, target / here.relative_to(source) / name)
