"""Rows of Arrow tables: parquet files, and the folders that Hugging Face's ``save_to_disk`` writes.

Such a folder has ``state.json`` with the names of its data files, Arrow streams that lie beside it. Audio is
a struct of ``bytes`` (the encoded file) and ``path`` (its name), which is what ``Audio(decode=False)`` gives:
read as it is, without that library. Only the columns that a form reads are looked at, and validated before
they are used: what others hold cannot cost a row. A value that cannot be read drops its row; of a stream
every row of its batch, where it is in a list.

Memory: in Python one row, of ``MAX_SAMPLE_BYTES`` bytes at most. In Arrow, of parquet one row and the page (and the
dictionary) of each column that it stands in; of a stream one batch. Their sizes are the writer's choice and
have no bound here: compressed, or with a list that names one entry of a dictionary many times, a small file
can unfold to more than there is memory.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet, types

from speech.checkpoints.folder import read_json
from speech.data.problems import RowProblems
from speech.data.sources.forms import SOURCE_ROW_KEYS
from speech.data.sources.record import MAX_SAMPLE_BYTES, SourceRecord

PARQUET_BUFFER_BYTES = 1 << 20  # bytes; without one, and with pre_buffer, what was read of a file stays until its end
PARQUET_MAGIC = b"PAR1"  # a parquet file begins and ends with it
MAX_INDEX_BYTES = 1 << 20  # bytes of indexes between data and footer, at most, where two files in one are looked for
PYTHON_VALUE_BYTES = 64  # bytes that a value takes in Python, about, beside its text or sound
SHARD_NAME = re.compile(r".*-\d+-of-(\d+)\.arrow")
CACHE_NAMES = ("cache-", "tmp", "indices")  # of what datasets computed from the rows
STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
UNREAD_COLUMN_VALUE = "not read"  # the value of a column that no form reads, whatever it holds
UNREADABLE_ERRORS = (ValueError, OverflowError, RecursionError, pyarrow.ArrowException)


def list_saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a ``save_to_disk`` folder in order. ValueError: not whole, or a view of another."""
    state = folder / "state.json"
    content = read_json(state)
    if content.get("_indices_data_files"):
        raise ValueError(f"{state}: rows are picked by an index: write the set again after flatten_indices()")
    entries = content.get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{state}: _data_files must name files of this folder")
    files = [folder / str(name) for name in names]
    _check_data_files(folder, state, entries or (), [file.name for file in files])
    for file in files:
        if file.suffix != ".arrow" or not file.is_file() or file.is_symlink():
            raise ValueError(f"{file}: must be an .arrow file of this folder: {state.name} names it")
    return files


def _check_data_files(folder: Path, state: Path, entries: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """ValueError: not every row of the folder's data files would be read once."""
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{state}: _data_files must name each file once: got {repeated[0]} again")
    for entry in entries:
        if part := sorted(key for key, value in entry.items() if key != "filename" and value is not None):
            raise ValueError(f"{state}: _data_files must be whole files: got {part[0]} of {entry['filename']}")
    for name in names:
        shard = SHARD_NAME.fullmatch(name)
        if shard and int(shard[1]) != len(names):
            raise ValueError(
                f"{state}: _data_files must name all {int(shard[1])} files, as {name} says: got {len(names)}"
            )
    for file in sorted(folder.glob("*.arrow")):
        if file.name not in names and not file.name.startswith(CACHE_NAMES):
            raise ValueError(f"{file}: must not lie here unread: {state.name} does not name it")


def read_table_rows(file: Path) -> Iterator[SourceRecord]:
    """Every row; where the file is damaged, a record without content is the last."""
    number = 0
    try:
        for names, batch in _read_parquet(file) if file.suffix == ".parquet" else _read_arrow_stream(file):
            unread = {name: UNREAD_COLUMN_VALUE for name in names if name not in SOURCE_ROW_KEYS}
            if twice := sorted({name for name in names if name in SOURCE_ROW_KEYS and names.count(name) > 1}):
                raise ValueError(f"a column must not be there twice: {', '.join(twice)}")
            read = batch.select([i for i, name in enumerate(batch.schema.names) if name in SOURCE_ROW_KEYS])
            read.validate()  # it has as many rows as it says
            sound = _is_valid_batch(read)
            for i in range(read.num_rows):
                number += 1
                yield _read_table_row(file, number, read.slice(i, 1), sound, unread)
    except (*UNREADABLE_ERRORS, OSError) as error:  # a name that is no UTF-8, too
        problems = [("", f"cannot be read any further: {_first_line(error)}")]
        yield SourceRecord(file=file, line=number + 1, content=None, problems=problems)


def _read_table_row(file: Path, number: int, row: Any, sound: bool, unread: dict[str, Any]) -> SourceRecord:
    content, size = dict(unread), 0
    problems: RowProblems = []
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            if not sound:
                column.validate(full=True)
            size += _estimate_python_bytes(column)
            if size > MAX_SAMPLE_BYTES:
                raise ValueError(f"a row has at most {MAX_SAMPLE_BYTES} bytes")
            (content[name],) = column.to_pylist()
        except UNREADABLE_ERRORS as error:  # bytes that are no UTF-8, a date that Python does not have
            problems.append((name, f"cannot be read: {_first_line(error)}"))
    return SourceRecord(file=file, line=number, content=None if problems else content, problems=problems)


def _is_valid_batch(batch: Any) -> bool:
    try:
        batch.validate(full=True)
    except pyarrow.ArrowException:
        return False
    return True


def _estimate_python_bytes(array: Any) -> int:
    """Bytes that an array takes in Python, about: a value that is held once for many counts for each."""
    kind, own = array.type, PYTHON_VALUE_BYTES * len(array)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _estimate_python_bytes(array.storage)
    if types.is_struct(kind):
        return own + sum(_estimate_python_bytes(array.field(i)) for i in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return own + _estimate_python_bytes(array.flatten())
    if types.is_dictionary(kind):
        return own + len(array) * _estimate_python_bytes(array.dictionary)
    if types.is_string_view(kind) or types.is_binary_view(kind):  # each may be all that its batch holds
        return own + len(array) * int(array.nbytes)
    if kind.num_fields:
        raise ValueError(f"must not be {kind}")
    return own + int(array.nbytes)


def _read_parquet(file: Path) -> Iterator[tuple[list[str], Any]]:
    with parquet.ParquetFile(file, buffer_size=PARQUET_BUFFER_BYTES, pre_buffer=False) as table:
        _check_single_file(file, table.metadata)
        names = table.schema_arrow.names
        read = [name for name in names if name in SOURCE_ROW_KEYS]
        for batch in table.iter_batches(batch_size=1, columns=read, use_threads=False):
            yield names, batch


def _read_arrow_stream(file: Path) -> Iterator[tuple[list[str], Any]]:
    with pyarrow.OSFile(str(file)) as source, ipc.open_stream(source) as stream:  # mapped, a cut file kills
        for batch in stream:
            yield batch.schema.names, batch
        end = source.tell()
        if end < source.size():
            raise ValueError("something follows the end of its stream: several files in one?")
        source.seek(max(0, end - len(STREAM_END)))
        if source.read() != STREAM_END:
            raise ValueError("it ends without the mark that ends a stream: it was cut")


def _check_single_file(file: Path, metadata: Any) -> None:
    """ValueError: two files in one, of which the reader takes the last.

    The gap between data and footer is as long as the first of such, but for the indexes of the second.
    """
    with file.open("rb") as raw:
        end = raw.seek(-8, os.SEEK_END)
        footer = end - int.from_bytes(raw.read(4), "little")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        last = max((_find_chunk_start(chunk) + chunk.total_compressed_size for chunk in chunks), default=4)
        raw.seek(max(0, footer - last - MAX_INDEX_BYTES))
        if PARQUET_MAGIC * 2 in raw.read(MAX_INDEX_BYTES + 2 * len(PARQUET_MAGIC)):
            raise ValueError("must be one file: another precedes it, of which no row would be read")


def _find_chunk_start(chunk: Any) -> int:
    return int(chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
