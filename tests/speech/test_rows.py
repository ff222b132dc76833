"""Rows that are read when they are used: the same as all at once, in bounded memory, and never another row."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.fields import StrictModel
from speech.data import lazy_rows as rows
from speech.data import manifest, problems
from speech.data.clips import ClipInspector
from speech.data.manifest import ManifestError, ManifestRow, RowCursor
from tests.speech.test_manifest import GOOD, SECONDS, folder, written

__all__ = ["folder"]  # a fixture


def numbered(count: int, **more: Any) -> list[dict[str, Any]]:
    return [GOOD | {"id": f"row-{i}", "question_text": f"what is {i} à {i}", **more} for i in range(count)]


def test_rows_are_those_of_the_lines_in_any_order(folder: Path) -> None:
    path = written(folder, *numbered(20))
    rows_read, naive = manifest.read_manifest(path, SECONDS), [ManifestRow.model_validate(row) for row in numbered(20)]
    assert len(rows_read) == 20 and list(rows_read) == naive and list(reversed(rows_read)) == naive[::-1]
    assert [rows_read[i] for i in (7, -1, 0, -20, 19)] == [naive[i] for i in (7, -1, 0, -20, 19)]
    assert rows_read[3:11:2] == naive[3:11:2] and rows_read[:-4] == naive[:-4]
    for out in (20, -21):
        with pytest.raises(IndexError):
            rows_read[out]


def test_a_last_line_without_an_end_is_a_row(folder: Path) -> None:
    path = written(folder, *numbered(2))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert manifest.read_manifest(path, SECONDS)[1].id == "row-1"


@pytest.mark.parametrize(
    ("old", "new"),
    [("what is 3", "what is 4"), ("row-3", "row-9"), ("arithmetic", "arithmetics"), ("{", "[")],
)
def test_a_line_that_has_become_another_is_refused_by_its_place(old: str, new: str, folder: Path) -> None:
    path = written(folder, *numbered(6))
    rows_read, kept = manifest.read_manifest(path, SECONDS), path.read_text().splitlines()
    path.write_text("\n".join([*kept[:3], kept[3].replace(old, new), *kept[4:]]) + "\n")
    assert rows_read[2].id == "row-2"
    with pytest.raises(ManifestError) as caught:
        rows_read[3]
    assert str(caught.value) == f"{path}:4: must not change while it is in use: the line is another now"


def test_a_file_that_is_gone_or_cut_is_refused(folder: Path) -> None:
    path = written(folder, *numbered(6))
    rows_read = manifest.read_manifest(path, SECONDS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ManifestError, match=":6: must not change"):
        rows_read[5]
    path.unlink()
    with pytest.raises(ManifestError, match=":1: cannot be read any more: No such file"):
        rows_read[0]


def test_the_digest_is_that_of_the_contents(folder: Path, tmp_path: Path) -> None:
    path = written(folder, *numbered(6))
    before = manifest.read_manifest(path, SECONDS).digest
    path.touch()
    assert manifest.read_manifest(path, SECONDS).digest == before
    digests = {before}
    for other in (numbered(5), numbered(6)[::-1], numbered(6, style="slow")):
        digests.add(manifest.read_manifest(written(folder, *other), SECONDS).digest)
    assert len(digests) == 4


def test_draws_and_a_restart_and_draws_are_all_draws_at_once(folder: Path) -> None:
    path = written(folder, *numbered(7))

    def draw(cursor: RowCursor, count: int) -> list[str]:
        rows_read = manifest.read_manifest(path, SECONDS)  # anew, as after a restart
        return [rows_read[i].id for i in cursor.draw_indices(count)]

    whole = draw(RowCursor(7, seed=3), 40)
    for k in range(0, 40, 3):
        first, second = RowCursor(7, seed=3), RowCursor(7, seed=3)
        before = draw(first, k)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + draw(second, 40 - k) == whole


@given(data=st.text("ab\n").map(str.encode))
def test_lines_are_those_of_the_file_each_where_it_starts(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "MAX_LINE", 3)
        got = list(problems.iterate_numbered_lines(path))
    whole = data.splitlines(keepends=True) or [b""]
    starts = [sum(map(len, whole[:i])) for i in range(len(whole))]
    assert got == [(i + 1, starts[i], line[:4]) for i, line in enumerate(whole)]


@given(ids=st.lists(st.integers(0, 5), min_size=1, max_size=12), bits=st.sampled_from([0, 1, 64]))
def test_each_line_with_an_id_of_before_names_the_first_that_has_it(
    ids: list[int], bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "ids.jsonl"
    path.write_text("".join(json.dumps({"id": str(one)}) + "\n" for one in ids))

    class Named(StrictModel):
        id: str

    with pytest.MonkeyPatch.context() as patch:
        whole = rows._hash_line
        patch.setattr(rows, "_hash_line", lambda text: whole(text) & ((1 << bits) - 1))  # ids that collide
        _, actual = rows.examine_rows(
            path, lambda line, content, actual: Named(**content), lambda content: (), ClipInspector(path, 1.0, False)
        )
    problems = [(one.line, one.field, one.message) for one in actual]
    naive = [(line, ids.index(one) + 1, one) for line, one in enumerate(ids, 1)]
    assert problems == [
        (line, "id", f"must be unique: {one} is also on line {first}") for line, first, one in naive if first < line
    ]


def test_memory_of_a_manifest_is_some_bytes_a_row(tmp_path: Path) -> None:
    """8,000 rows of 8 kB are 64 MB of text, and more as objects; the index is 128 kB."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i in range(8_000):
            file.write(json.dumps({"id": f"row-{i}", "text": "x" * 8000}) + "\n")
    code = f"""
import resource
from pathlib import Path
from conf.fields import StrictModel
from speech.data.clips import ClipInspector
from speech.data.lazy_rows import examine_rows
class Named(StrictModel):
    id: str
    text: str
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
path, clips = Path({str(path)!r}), ClipInspector(Path("."), 1.0, deep=False)
rows, problems = examine_rows(path, lambda line, content, found: Named(**content), lambda content: (), clips)
assert len(rows) == 8_000 and not problems and rows[7_999].id == "row-7999"
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 20_000, "KiB"
