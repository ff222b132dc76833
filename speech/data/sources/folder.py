"""The folder that a source is converted into, and how far that is.

    FOLDER/manifest.jsonl   the rows; there at the end, whole
    FOLDER/audio/           their clips (a dropped row's may be among them)
    FOLDER/problems.txt     why rows were dropped, one problem a line
    FOLDER/convert.json     ``ConversionProgress``

Invariant: however often it is stopped, the same source gives the same bytes: ``convert.json`` says how many
rows of the source are done and how long the files were then, and what was written later is cut off. One
process at a time has the folder.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ValidationError

from speech.data.sources.forms import SourceForm
from store.files import write_atomically


class ConversionProgress(BaseModel):
    """What convert.json holds."""

    source: dict[str, Any]  # what must be the same to go on
    forms: dict[SourceForm, int] = {}  # how many rows were read as what
    done: int = 0  # rows of the source
    rows: int = 0  # of the manifest
    file: int = 0  # of the source's, the one that the last row is of
    before: int = 0  # rows of the manifest that are of the files before it
    renamed: int = 0  # rows whose id a row of a file before had
    bytes: dict[Literal["manifest", "problems"], int] = {"manifest": 0, "problems": 0}
    reasons: dict[str, int] = {}  # why rows were dropped, by rule
    unread: dict[str, int] = {}  # keys that rows had and nothing was made of
    finished: bool = False

    @property
    def dropped(self) -> int:
        """Rows of the source that are not in the manifest."""
        return self.done - self.rows


class ConversionFolder:
    """The folder, locked, its files open where what is done ends. ValueError: it is another source's.

    Example:
        with ConversionFolder(to, source, check) as folder:
            folder.manifest.write(line)
            folder.save_progress()
            folder.publish()
    """

    def __init__(self, path: Path, source: dict[str, Any], check: Callable[[], None]) -> None:
        """``check``: called before anything is written, where nothing was begun."""
        self.path, self.manifest_path = path, path / "manifest.jsonl"
        self._state, self._unfinished = path / "convert.json", path / ".manifest.unfinished"
        fresh = None
        if self._read_progress(source) is None:
            check()
            fresh = ConversionProgress(source=source)
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            opened.enter_context(_lock_folder(path))
            for left in (*path.glob(".convert.json.*"), *path.glob("audio/.unfinished.*")):
                left.unlink()  # of a process that was killed
            progress = self._read_progress(source) or fresh  # another may have gone on until now
            if progress is None:
                raise ValueError(f"{self._state}: was there a moment ago")
            self.progress = progress
            write_atomically(self._state, progress.model_dump_json(indent=1) + "\n")
            if not progress.finished or self._unfinished.exists():
                self.manifest = opened.enter_context(_open_truncated(self._unfinished, progress.bytes["manifest"]))
            self.problems = opened.enter_context(_open_truncated(path / "problems.txt", progress.bytes["problems"]))
            if progress.finished:
                self._publish_manifest()
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def save_progress(self) -> None:
        """Everything up to here is done: the files are on disk before convert.json says so."""
        for file in (self.manifest, self.problems):
            file.flush()
            os.fsync(file.fileno())
        self.progress.bytes = {"manifest": self.manifest.tell(), "problems": self.problems.tell()}
        write_atomically(self._state, self.progress.model_dump_json(indent=1) + "\n")

    def publish(self) -> None:
        """The manifest appears, if it has a row."""
        self.progress.finished = True
        self.save_progress()
        self._publish_manifest()

    def read_written_ids(self) -> list[str]:
        """Of the rows that are written."""
        with self._unfinished.open("rb") as file:
            return [json.loads(line)["id"] for line in file]

    def _publish_manifest(self) -> None:
        if self.progress.rows and self._unfinished.exists():
            self._unfinished.replace(self.manifest_path)
        self._unfinished.unlink(missing_ok=True)

    def _read_progress(self, source: dict[str, Any]) -> ConversionProgress | None:
        if not self._state.is_file():
            if self.path.exists() and (not self.path.is_dir() or any(map(_is_visible, self.path.iterdir()))):
                raise ValueError(f"--to {self.path}: must be new, empty, or begun by `wavgate data convert`")
            return None
        try:
            progress = ConversionProgress.model_validate_json(self._state.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{self._state}: not written by `wavgate data convert`") from error
        other = [name for name, value in source.items() if progress.source.get(name) != value]
        if other:
            rule = "was begun with another value of"
            raise ValueError(f"--to {self.path}: {rule} {', '.join(other)}: choose another folder")
        return progress


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")  # what a killed beginning may leave


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"--to {folder}: another process is writing it") from error
    finally:
        os.close(lock)


def _open_truncated(path: Path, size: int) -> BinaryIO:
    """The file with its first ``size`` bytes, open behind them. ValueError: it has fewer."""
    file = path.open("ab")
    if file.tell() < size:
        file.close()
        raise ValueError(f"{path}: is damaged, it had {size} bytes: remove the folder and begin again")
    file.truncate(size)
    return file
