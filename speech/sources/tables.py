"""Rows of Arrow tables: parquet files, and the folders that Hugging Face's ``save_to_disk`` writes.

Such a folder has ``state.json`` with the names of its data files, Arrow streams that lie beside it. Audio is
a struct of ``bytes`` (the encoded file) and ``path`` (its name), which is what ``Audio(decode=False)`` gives:
read as it is, without that library. One batch of rows is in memory at a time. Only the columns that a form
reads are looked at, and validated before they are used: what others hold cannot cost a row. A value that
cannot be read drops its row; of a stream every row of its batch, where it is in a list.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from speech.checkpoint import read_json
from speech.problems import Found
from speech.sources.forms import KEYS
from speech.sources.record import Record

BATCH = 16  # rows of parquet that are decoded together; their audio is in them
UNREAD = "not read"  # the value of a column that no form reads, whatever it holds
UNREADABLE = (ValueError, OverflowError, RecursionError, pyarrow.ArrowException)


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a ``save_to_disk`` folder in order. ValueError: not whole, or a view of another."""
    state = folder / "state.json"
    content = read_json(state)
    if content.get("_indices_data_files"):
        raise ValueError(f"{state}: rows are picked by an index: write the set again after flatten_indices()")
    entries = content.get("_data_files")
    names = [one.get("filename") if isinstance(one, dict) else None for one in entries or ()]
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{state}: _data_files must name files of this folder")
    files = [folder / str(name) for name in names]
    for file in files:
        if file.suffix != ".arrow" or not file.is_file() or file.is_symlink():
            raise ValueError(f"{file}: must be an .arrow file of this folder: {state.name} names it")
    return files


def rows(file: Path) -> Iterator[Record]:
    """Every row; where the file is damaged, a record without content is the last."""
    number = 0
    try:
        for names, batch in _parquet(file) if file.suffix == ".parquet" else _stream(file):
            unread = {name: UNREAD for name in names if name not in KEYS}
            read = batch.select([i for i, name in enumerate(batch.schema.names) if name in KEYS])
            read.validate()  # it has as many rows as it says
            sound = _is_sound(read)
            for i in range(read.num_rows):
                number += 1
                yield _row(file, number, read.slice(i, 1), sound, unread)
    except (*UNREADABLE, OSError) as error:  # a name that is no UTF-8, too
        found = [("", f"cannot be read any further: {_first_line(error)}")]
        yield Record(file=file, line=number + 1, content=None, found=found)


def _row(file: Path, number: int, row: Any, sound: bool, unread: dict[str, Any]) -> Record:
    content = dict(unread)
    found: Found = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            if not sound:
                column.validate(full=True)
            (content[name],) = column.to_pylist()
        except UNREADABLE as error:  # bytes that are no UTF-8, a date that Python does not have
            found.append((name, f"cannot be read: {_first_line(error)}"))
    return Record(file=file, line=number, content=None if found else content, found=found)


def _is_sound(batch: Any) -> bool:
    try:
        batch.validate(full=True)
    except pyarrow.ArrowException:
        return False
    return True


def _parquet(file: Path) -> Iterator[tuple[list[str], Any]]:
    with parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        for batch in table.iter_batches(batch_size=BATCH, columns=[name for name in names if name in KEYS]):
            yield names, batch


def _stream(file: Path) -> Iterator[tuple[list[str], Any]]:
    with pyarrow.OSFile(str(file)) as source, ipc.open_stream(source) as stream:  # mapped, a cut file kills
        for batch in stream:
            yield batch.schema.names, batch


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
