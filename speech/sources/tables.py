"""Rows of Arrow tables: parquet files, and the folders that Hugging Face's ``save_to_disk`` writes.

Such a folder has ``state.json`` with the names of its data files, Arrow streams that lie beside it. Audio is
a struct of ``bytes`` (the encoded file) and ``path`` (its name), which is what ``Audio(decode=False)`` gives:
read as it is, without that library. One batch of rows is in memory at a time, and is validated before it is
used.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from speech.checkpoint import read_json
from speech.sources.record import Record

BATCH = 16  # rows of parquet that are decoded together; their audio is in them


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
    """Every row; the first batch that cannot be read is the last, as a record without content."""
    number = 0
    try:
        for batch in _parquet(file) if file.suffix == ".parquet" else _stream(file):
            batch.validate(full=True)
            for i in range(batch.num_rows):
                number += 1
                yield _row(file, number, batch.slice(i, 1))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a name that is no UTF-8, too
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        found = [("", f"cannot be read any further: {first}")]
        yield Record(file=file, line=number + 1, content=None, found=found)


def _row(file: Path, number: int, row: Any) -> Record:
    try:
        (content,) = row.to_pylist()
    except ValueError as error:  # bytes that are no UTF-8
        return Record(file=file, line=number, content=None, found=[("", f"cannot be read: {error}")])
    return Record(file=file, line=number, content=content)


def _parquet(file: Path) -> Iterator[Any]:
    with parquet.ParquetFile(file) as table:
        yield from table.iter_batches(batch_size=BATCH)


def _stream(file: Path) -> Iterator[Any]:
    with pyarrow.OSFile(str(file)) as source, ipc.open_stream(source) as stream:  # mapped, a cut file kills
        yield from stream
