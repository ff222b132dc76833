"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what becomes ``path`` when the block ends well; else ``path`` stays as it was.

    OSError: nothing can be written there.

    Example:
        with replacing(run / "study.png") as unfinished:
            picture.save(unfinished)
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """The text as the file. OSError: as ``replacing``."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
