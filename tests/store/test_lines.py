"""A line of JSON is whole or no line: what a kill left at the end is cut off by the next one and read by nobody."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from store.lines import append_json_line, keep_json_lines, read_json_lines

ANY_OBJECT: TypeAdapter[dict[str, object]] = TypeAdapter(dict)
OBJECTS = st.dictionaries(st.text(), st.integers() | st.text(), max_size=3)


@given(before=st.lists(OBJECTS, max_size=4), torn=OBJECTS, after=OBJECTS, data=st.data())
def test_a_line_that_was_torn_anywhere_gives_way_to_the_next(
    before: list[dict[str, object]],
    torn: dict[str, object],
    after: dict[str, object],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file = tmp_path_factory.mktemp("lines") / "new" / "x.jsonl"
    for line in before:
        append_json_line(file, line)
    size = file.stat().st_size if file.exists() else 0
    append_json_line(file, torn)
    whole = file.read_bytes()
    file.write_bytes(whole[: data.draw(st.integers(size, len(whole) - 1))])
    append_json_line(file, after)
    assert [json.loads(line) for line in file.read_text().split("\n")[:-1]] == [*before, after]
    assert read_json_lines(file, ANY_OBJECT).rows == (*before, after)


def test_what_is_kept_of_a_file_is_wanted_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    keep_json_lines(file, lambda line: True)
    assert not file.exists()
    file.write_text('{"step": 1}\n{"step": 2}\n{"step": 1, "text": "\u2028"}\n{"step"')
    keep_json_lines(file, lambda line: line["step"] == 1)
    assert file.read_text() == '{"step": 1}\n{"step": 1, "text": "\u2028"}\n'


def test_a_number_that_json_does_not_have_is_refused_and_nothing_written(tmp_path: Path) -> None:
    append_json_line(tmp_path / "x.jsonl", {"step": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_json_line(tmp_path / "x.jsonl", {"loss": float("nan")})
    assert (tmp_path / "x.jsonl").read_text() == '{"step": 1}\n'
