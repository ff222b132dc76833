"""The reader of tar gives what Python's gives, and an answer to what it does not."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.data.sources.tar import TarMember, _parse_pax_records, read_tar_members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KINDS = (
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
)


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = (
        size,
        kind,
        "x" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
    )
    return info


def packed(entries: list[tarfile.TarInfo], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info in entries:
            archive.addfile(info, io.BytesIO(b"\xff" * info.size))
    return file.getvalue()


def read(content: bytes) -> list[TarMember]:
    return list(read_tar_members(io.BytesIO(content), len(content)))


@given(
    st.lists(
        st.tuples(st.text("aé/.\x01", min_size=1, max_size=300), st.integers(0, 1500), st.sampled_from(KINDS)),
        max_size=6,
    ),
    st.sampled_from(FORMATS),
)
def test_an_archive_has_the_members_that_tarfile_says(given: list[tuple[str, int, bytes]], form: int) -> None:
    entries = [entry(name, size if kind == tarfile.REGTYPE else 0, kind) for name, size, kind in given]
    try:
        content = packed(entries, form)
    except ValueError:  # a name too long for ustar
        return
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        naive = [(item.name, item.isreg(), item.isdir(), item.size, item.offset_data) for item in archive]
    got = [(item.name.rstrip("/"), item.plain, item.folder, item.size, item.place) for item in read(content)]
    assert got == [(name.rstrip("/"), *rest) for name, *rest in naive]


def test_archives_that_were_put_together_are_read_to_the_end() -> None:
    content = packed([entry("a", 700)]) + packed([entry("b", 1)]) + bytes(10_240)
    assert [item.name for item in read(content)] == ["a", "b"]


def test_a_file_with_holes_is_none_that_is_plain() -> None:
    head = bytearray(entry("a.wav", 512, b"S").tobuf(tarfile.GNU_FORMAT))
    head[482] = 1  # the map of its holes goes on
    more = bytes(504) + b"\1" + bytes(7)
    blank = sum(head[:148]) + 8 * 32 + sum(head[156:])
    head[148:156] = b"%06o\0 " % blank
    content = bytes(head) + more + bytes(512) + b"x" * 512 + packed([entry("b.wav", 1)])
    first, second = read(content)
    assert (first.name, first.plain, second.name, second.plain) == ("a.wav", False, "b.wav", True)
    info = entry("GNUSparseFile.0/a.wav", 4)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.wav"}
    (member,) = read(packed([info]))
    assert (member.name, member.plain) == ("a.wav", False)


def sized(field: bytes) -> bytes:
    """A header with this for its size."""
    head = bytearray(entry("a").tobuf())
    head[124:136] = field
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    return bytes(head)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (sized(b"\xff" * 12), "a header with a size below zero"),
        (sized(b"-0000000001\0"), "a header is damaged"),
        (sized(b"0000000009 \0"), "a header is damaged"),
        (sized(b"\x80" + b"\xff" * 11), "unexpected end of data"),
        (sized(b"00000000001\0"), "unexpected end of data"),
        (packed([entry("a")])[:300], "unexpected end of data"),
        (packed([entry("a")]) + b"x" * 512, "a header is damaged"),
        (bytes(1 << 25), "zeros may stand between files"),
        (b"", "it is empty"),
    ],
)
def test_a_damaged_archive_is_an_error_whatever_python_reads_it(content: bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        read(content)


@given(st.lists(st.tuples(st.integers(0, 2047), st.integers(0, 255)), max_size=8), st.integers(0, 4096))
def test_any_bytes_end_in_members_or_an_error(changes: list[tuple[int, int]], length: int) -> None:
    content = bytearray(packed([entry("a" * 200, 5), entry("b")], tarfile.GNU_FORMAT)[:length])
    for place, byte in changes:
        content[place : place + 1] = bytes([byte])
    try:
        got = read(bytes(content))
    except ValueError:
        return
    assert all(item.size >= 0 and item.place <= len(content) for item in got)


def test_nothing_is_written(tmp_path: Path) -> None:
    read(packed([entry(str(tmp_path / "a")), entry("../b")]))
    assert list(tmp_path.iterdir()) == []


def test_records_of_all_members_are_read_once_and_those_that_nothing_reads_are_not_kept() -> None:
    lines = [b"path=shared"] + [b"vendor.%06d=%s" % (i, b"x" * 30) for i in range(20_000)]
    records_content = b"".join(_record(line) for line in lines)
    records = _parse_pax_records(records_content + b"\0" * 100)
    assert records == {"path": "shared"}
    assert _parse_pax_records(_record(b"GNU.sparse.major=1") + _record(b"size=7")) == {"GNU.sparse.": "1", "size": "7"}


def _record(said: bytes) -> bytes:
    size = next(n for n in range(len(said) + 3, len(said) + 9) if n == len(said) + 2 + len(str(n)))
    return b"%d %s\n" % (size, said)
