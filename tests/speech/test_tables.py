"""Tables of others: a value that Python does not have costs its row at most, and memory has a bound."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from speech.data.convert import convert_source
from speech.data.sources import tables
from speech.data.sources.tables import read_table_rows as rows_of
from tests.helpers.foreign_sources import AUDIO, as_table, rows

CONTAINERS = ["parquet", "arrow"]
LAST = 2**62  # no date that Python has


def written(folder: Path, container: str, table: Any) -> Path:
    """The table as a parquet file, or as a folder of ``save_to_disk``."""
    if container == "parquet":
        parquet.write_table(table, folder / "set.parquet")
        return folder / "set.parquet"
    with (
        pyarrow.OSFile(str(folder / "a.arrow"), "wb") as file,
        ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    return folder


def ints(kind: Any, *values: int) -> Any:
    width = pyarrow.int32() if kind == pyarrow.date32() else pyarrow.int64()
    return pyarrow.array(values, width).view(kind)


def not_text(count: int, wrong: int) -> Any:
    """A column of text; one of them is no UTF-8."""
    return pyarrow.array([b"\xff" if i == wrong else b"x" for i in range(count)]).view(pyarrow.string())


STRANGE = {
    "far date": ints(pyarrow.date32(), 0, 2**31 - 1, 0),
    "far time": ints(pyarrow.timestamp("us"), 0, LAST, 0),
    "fine time": ints(pyarrow.timestamp("ns"), 0, 1, 0),
    "nowhere": ints(pyarrow.timestamp("us", tz="No/Where"), 0, 1, 2),
    "fine span": ints(pyarrow.duration("ns"), 0, 1, 0),
    "no text": not_text(3, wrong=1),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", STRANGE)
def test_a_column_that_no_form_reads_costs_no_row(container: str, kind: str, tmp_path: Path) -> None:
    table = as_table(tmp_path, rows(tmp_path, 3)).append_column("when", STRANGE[kind])
    progress = convert_source([written(tmp_path, container, table)], tmp_path / "to", 1.0)
    assert (progress.done, progress.rows) == (3, 3)
    assert progress.unread == {"speaker": 3, "when": 3}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", ["far date", "far time", "fine time", "no text"])
def test_a_value_that_cannot_be_read_costs_its_row(container: str, kind: str, tmp_path: Path) -> None:
    table = as_table(tmp_path, rows(tmp_path, 3)).append_column("answer", STRANGE[kind])
    rows_read = list(rows_of(file_of(written(tmp_path, container, table))))
    assert [(item.line, item.content is None) for item in rows_read] == [(1, False), (2, True), (3, False)]
    ((field, message),) = rows_read[1].problems
    assert field == "answer" and message.startswith("cannot be read: ")


def file_of(source: Path) -> Path:
    return source / "a.arrow" if source.is_dir() else source


def test_text_that_is_none_in_a_list_of_a_batch_costs_the_batch_and_not_what_follows(tmp_path: Path) -> None:
    def lists(wrong: int) -> Any:
        return pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2, 3], pyarrow.int32()), not_text(3, wrong))

    table = pyarrow.table({"audios": pyarrow.chunked_array([lists(1), lists(-1)])})
    dropped = {}
    for container in CONTAINERS:
        rows_read = list(rows_of(file_of(written(tmp_path, container, table))))
        dropped[container] = [item.line for item in rows_read if item.content is None]
        assert len(rows_read) == 6
    assert dropped == {"parquet": [2], "arrow": [1, 2, 3]}


def most_held(file: Path) -> int:
    """Bytes that Arrow holds while rows are read, beyond those of before."""
    before = pyarrow.total_allocated_bytes()
    return max(pyarrow.total_allocated_bytes() for _ in rows_of(file)) - before


def test_of_a_parquet_file_some_pages_are_in_memory_not_what_was_read_before(tmp_path: Path) -> None:
    sounds = [{"bytes": os.urandom(1 << 18), "path": None} for _ in range(64)]
    table = pyarrow.table({"sft_target_audio": pyarrow.array(sounds, AUDIO), "rejected_audio": sounds})
    file = tmp_path / "set.parquet"
    parquet.write_table(table, file, row_group_size=16, use_dictionary=False, write_batch_size=2)
    assert file.stat().st_size > 30 << 20
    assert most_held(file) < 3 << 20


def shared(sound: bytes, count: int) -> Any:
    """A column of one sound in each of its rows, which is held once."""
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), [sound])


def test_a_value_of_a_dictionary_is_held_for_one_row_at_a_time(tmp_path: Path) -> None:
    table = pyarrow.table({"sft_target_audio": shared(bytes(4 << 20), 16)})
    parquet.write_table(table, tmp_path / "set.parquet", compression="zstd", store_schema=False)
    assert (tmp_path / "set.parquet").stat().st_size < 10_000
    assert most_held(tmp_path / "set.parquet") < 20 << 20, "not 64 MiB: its page, its dictionary, and a row"


def viewed(sound: bytes, count: int) -> Any:
    """The same, as views of its bytes."""
    kind = pyarrow.binary_view()
    _, view, data = pyarrow.array([sound], kind).buffers()
    return pyarrow.Array.from_buffers(kind, count, [None, pyarrow.py_buffer(view.to_pybytes()[:16] * count), data])


BYTES = pyarrow.list_(pyarrow.int8(), 100)
LONG: dict[str, Callable[[int], Any]] = {
    "dictionary": lambda count: shared(bytes(1000), count),
    "view": lambda count: viewed(bytes(1000), count),
    "bytes": lambda count: pyarrow.array([bytes(1000)] * count),
    "struct": lambda count: pyarrow.array([{"bytes": bytes(1000), "path": None}] * count, AUDIO),
    "null": lambda count: pyarrow.nulls(100 * count),
    "lists": lambda count: pyarrow.array([[True] * 100] * count),
    "tensor": lambda count: pyarrow.ExtensionArray.from_storage(
        pyarrow.fixed_shape_tensor(pyarrow.int8(), [100]), LONG["fixed"](count).cast(BYTES)
    ),
    "fixed": lambda count: pyarrow.array([[1.0] * 100] * count, pyarrow.list_(pyarrow.float64(), 100)),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_row_that_is_too_large_for_python_is_dropped_before_it_is_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_SAMPLE_BYTES", 20_000)
    values = [LONG[kind](count) for count in (1, 30, 1)]
    column = pyarrow.chunked_array(
        [pyarrow.ListArray.from_arrays(pyarrow.array([0, len(item)], pyarrow.int32()), item) for item in values]
    )
    rows_read = list(rows_of(file_of(written(tmp_path, "arrow", pyarrow.table({"audios": column})))))
    assert [item.problems for item in rows_read] == [
        [],
        [("audios", "cannot be read: a row has at most 20000 bytes")],
        [],
    ]


def test_a_row_is_bounded_over_all_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_SAMPLE_BYTES", 1500)
    for container in CONTAINERS:
        for second, whole in ((bytes(100), True), (bytes(1000), False)):
            table = pyarrow.table({"sft_target_audio": [bytes(1000)], "question_audio": [second]})
            (actual,) = rows_of(file_of(written(tmp_path, container, table)))
            assert (actual.content is not None) == whole == (not actual.problems)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_layout_that_has_no_known_size_is_refused_by_its_name(container: str, tmp_path: Path) -> None:
    kind = pyarrow.map_(pyarrow.string(), pyarrow.int8())
    table = pyarrow.table({"answer": pyarrow.array([[("a", 1)], None], kind)})
    rows_read = list(rows_of(file_of(written(tmp_path, container, table))))
    problems = [(field, message[:36]) for item in rows_read for field, message in item.problems]
    assert problems == [("answer", "cannot be read: must not be map<stri")] * 2
