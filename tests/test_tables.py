"""Tables of others: a value that Python does not have costs its row at most, and memory has a bound."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from speech.convert import convert
from speech.sources.tables import rows as rows_of
from tests.sources import as_table, rows

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
    progress = convert([written(tmp_path, container, table)], tmp_path / "to", 1.0)
    assert (progress.done, progress.rows) == (3, 3)
    assert progress.unread == {"speaker": 3, "when": 3}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", ["far date", "far time", "fine time", "no text"])
def test_a_value_that_cannot_be_read_costs_its_row(container: str, kind: str, tmp_path: Path) -> None:
    table = as_table(tmp_path, rows(tmp_path, 3)).append_column("answer", STRANGE[kind])
    found = list(rows_of(file_of(written(tmp_path, container, table))))
    assert [(one.line, one.content is None) for one in found] == [(1, False), (2, True), (3, False)]
    ((field, message),) = found[1].found
    assert field == "answer" and message.startswith("cannot be read: ")


def file_of(source: Path) -> Path:
    return source / "a.arrow" if source.is_dir() else source


def test_text_that_is_none_in_a_list_of_a_batch_costs_the_batch_and_not_what_follows(tmp_path: Path) -> None:
    def lists(wrong: int) -> Any:
        return pyarrow.ListArray.from_arrays(pyarrow.array([0, 1, 2, 3], pyarrow.int32()), not_text(3, wrong))

    table = pyarrow.table({"audios": pyarrow.chunked_array([lists(1), lists(-1)])})
    found = list(rows_of(file_of(written(tmp_path, "arrow", table))))
    assert [one.line for one in found if one.content is None] == [1, 2, 3] and len(found) == 6
