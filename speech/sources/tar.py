"""Members of an uncompressed tar, header by header: ustar, GNU and pax, as they stand there.

Read without ``tarfile``, whose answers to a hostile header differ from one Python to the next. Invariant:
each step leads on, no header is longer than ``MAX_HEADER``, and nothing of a member is read here. Archives
that were put together with cat are read on: zeros between them are no end.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
MAX_HEADER = 1 << 20  # bytes of a long name or of pax records
MAX_HEADERS = 100  # before one member
MAX_ZEROS = 1 << 24  # bytes between archives, or behind the last
OLD, FOLDER, SPARSE = b"\0", b"5", b"S"
PLAIN = (b"0", OLD, b"7")
EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: whatever size they have
READ, HOLES = (b"path", b"size", b"GNU.sparse.name"), b"GNU.sparse."  # records, and what others begin with
RECORDS, COMMON, LONG_NAME, LONG_LINK = b"x", b"g", b"L", b"K"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry."""

    name: str
    kind: bytes  # the letter of its type
    sparse: bool  # holes of it are left out
    place: int  # of its content
    size: int

    @property
    def plain(self) -> bool:
        """Whether its content is that of a file."""
        return self.kind in PLAIN and not self.sparse and not self.folder

    @property
    def folder(self) -> bool:
        """Whether it is a folder; before ustar the name alone said so."""
        return self.kind == FOLDER or (self.kind == OLD and self.name.endswith("/"))


def members(file: BinaryIO, end: int) -> Iterator[Member]:
    """All of a file of ``end`` bytes, in order. ValueError: it is cut, damaged, or no tar."""
    place, common = 0, dict[str, str]()
    if not end:
        raise ValueError("it is empty")
    while (place := _behind_zeros(file, place)) < end:
        own: dict[str, str] = dict(common)
        for _ in range(MAX_HEADERS):
            head = _header(file, place)
            kind, size = head[156:157], _number(head[124:136])
            place += BLOCK
            if kind not in (RECORDS, COMMON, LONG_NAME, LONG_LINK):
                break
            content = _content(file, place, size)
            place += _padded(size)
            if kind == COMMON:
                common |= _records(content)
            own |= _records(content) if kind in (RECORDS, COMMON) else {}
            if kind == LONG_NAME:
                own["path"] = _text(content)
        else:
            raise ValueError(f"a file has at most {MAX_HEADERS} headers")
        member, place = _member(file, head, own, place)
        yield member
        if member.place + member.size > end:
            raise ValueError("unexpected end of data")


def _member(file: BinaryIO, head: bytes, own: Mapping[str, str], place: int) -> tuple[Member, int]:
    """The member of a header and the records before it, and where the next header is."""
    kind, size = head[156:157], _number(head[124:136])
    if "size" in own:
        size = _decimal(own["size"])
    if size < 0:
        raise ValueError("a header with a size below zero")
    if kind == SPARSE and head[482]:
        while _content(file, place, BLOCK)[504]:
            place += BLOCK
        place += BLOCK
    size = 0 if kind in EMPTY else size
    name = own.get("GNU.sparse.name") or own.get("path") or _name(head)
    sparse = kind == SPARSE or any(key.startswith("GNU.sparse.") for key in own)
    return Member(name, kind, sparse, place, size), place + _padded(size)


def _behind_zeros(file: BinaryIO, place: int) -> int:
    """Where the next block is that has something in it, or the end."""
    file.seek(place)
    start = place
    while (block := file.read(BLOCK)) and not block.strip(b"\0"):
        place += len(block)
        if place - start > MAX_ZEROS:
            raise ValueError(f"at most {MAX_ZEROS} zeros may stand between files")
    return place


def _header(file: BinaryIO, place: int) -> bytes:
    """ValueError: none that has its own checksum."""
    file.seek(place)
    head = file.read(BLOCK)
    if len(head) < BLOCK:
        raise ValueError("unexpected end of data")
    blank = head[:148] + b" " * 8 + head[156:]
    sums = sum(blank), sum(byte - 256 * (byte > 127) for byte in blank)  # some writers' bytes have a sign
    if _number(head[148:156]) not in sums:
        raise ValueError("a header is damaged")
    return head


def _content(file: BinaryIO, place: int, size: int) -> bytes:
    if not 0 <= size <= MAX_HEADER:
        raise ValueError(f"a part of the archive must have at most {MAX_HEADER} bytes: got {size}")
    file.seek(place)
    content = file.read(size)
    if len(content) < size:
        raise ValueError("unexpected end of data")
    return content


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int:
    """Octal digits, or binary, of either sign."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise ValueError("a header is damaged")
    return int(digits or b"0", 8)


def _decimal(text: str) -> int:
    digits = text.strip().removeprefix("-")
    if not digits.isdecimal() or len(digits) > 30:
        raise ValueError("a header is damaged")
    return int(text)


def _records(content: bytes) -> dict[str, str]:
    """pax records: "LENGTH KEY=VALUE\\n", the length that of the whole; those that are read here.

    Every member has a copy of what all share, so that there must be few.
    """
    records: dict[str, str] = {}
    at, end = 0, len(content.rstrip(b"\0"))
    while at < end:
        length = content[at : at + 10].partition(b" ")[0]
        after = at + (int(length) if length.isdigit() and len(length) < 10 else 0)
        key, equals, value = content[at + len(length) + 1 : after].partition(b"=")
        if not equals or after > len(content) or not value.endswith(b"\n"):
            raise ValueError("a header is damaged")
        if key in READ or key.startswith(HOLES):
            records[_text(key if key in READ else HOLES)] = _text(value[:-1])
        at = after
    return records


def _name(head: bytes) -> str:
    """ustar names may have a first part; GNU writes times in its place."""
    prefix = head[345 : 476 if head[508:512] == b"tar\0" else 500] if head[257:263] == b"ustar\0" else b""
    return "/".join(part for part in (_text(prefix), _text(head[:100])) if part)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")
