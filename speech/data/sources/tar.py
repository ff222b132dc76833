"""Members of an uncompressed tar, header by header: ustar, GNU and pax, as they stand there.

Read without ``tarfile``, whose answers to a hostile header differ from one Python to the next. Invariant:
each step leads on, no header is longer than ``MAX_HEADER_BYTES``, and nothing of a member is read here. Archives
that were put together with cat are read on: zeros between them are no end. Without zeros at its end an archive
was cut there. Bytes of a name that are no UTF-8 stand as \\xe9, so that two names stay two.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

TAR_BLOCK_BYTES = 512
MAX_HEADER_BYTES = 1 << 20  # bytes of a long name or of pax records
MAX_MEMBER_HEADERS = 100  # before one member
MAX_ZERO_BYTES = 1 << 24  # bytes between archives, or behind the last
OLD_FILE_KIND, FOLDER_KIND, SPARSE_KIND = b"\0", b"5", b"S"
PLAIN_FILE_KINDS = (b"0", OLD_FILE_KIND, b"7")
EMPTY_KINDS = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: whatever size they have
READ, HOLES = (b"path", b"size", b"GNU.sparse.name"), b"GNU.sparse."  # records, and what others begin with
PAX_RECORDS_KIND, PAX_COMMON_KIND, LONG_NAME_KIND, LONG_LINK_KIND = b"x", b"g", b"L", b"K"


@dataclass(frozen=True, slots=True)
class TarMember:
    """One entry."""

    name: str
    kind: bytes  # the letter of its type
    sparse: bool  # holes of it are left out
    place: int  # of its content
    size: int

    @property
    def plain(self) -> bool:
        """Whether its content is that of a file."""
        return self.kind in PLAIN_FILE_KINDS and not self.sparse and not self.folder

    @property
    def folder(self) -> bool:
        """Whether it is a folder; before ustar the name alone said so."""
        return self.kind == FOLDER_KIND or (self.kind == OLD_FILE_KIND and self.name.endswith("/"))


def read_tar_members(file: BinaryIO, end: int) -> Iterator[TarMember]:
    """All of a file of ``end`` bytes, in order. ValueError: it is cut, damaged, or no tar."""
    place, common = 0, dict[str, str]()
    if not end:
        raise ValueError("it is empty")
    while True:
        behind, place = place, _skip_zeros(file, place)
        if place >= end:
            break
        own: dict[str, str] = dict(common)
        for _ in range(MAX_MEMBER_HEADERS):
            head = _read_header(file, place)
            kind, size = head[156:157], _parse_header_number(head[124:136])
            place += TAR_BLOCK_BYTES
            if kind not in (PAX_RECORDS_KIND, PAX_COMMON_KIND, LONG_NAME_KIND, LONG_LINK_KIND):
                break
            content = _read_header_content(file, place, size)
            place += _round_to_block(size)
            if kind == PAX_COMMON_KIND:
                common |= _parse_pax_records(content)
            own |= _parse_pax_records(content) if kind in (PAX_RECORDS_KIND, PAX_COMMON_KIND) else {}
            if kind == LONG_NAME_KIND:
                own["path"] = _decode_text(content)
        else:
            raise ValueError(f"a file has at most {MAX_MEMBER_HEADERS} headers")
        member, place = _build_member(file, head, own, place)
        yield member
        if member.place + member.size > end:
            raise ValueError("unexpected end of data")
    if place < behind + TAR_BLOCK_BYTES:
        raise ValueError("it ends without the zeros that end an archive: it was cut")


def _build_member(file: BinaryIO, head: bytes, own: Mapping[str, str], place: int) -> tuple[TarMember, int]:
    """The member of a header and the records before it, and where the next header is."""
    kind, size = head[156:157], _parse_header_number(head[124:136])
    if "size" in own:
        size = _parse_decimal(own["size"])
    if size < 0:
        raise ValueError("a header with a size below zero")
    if kind == SPARSE_KIND and head[482]:
        while _read_header_content(file, place, TAR_BLOCK_BYTES)[504]:
            place += TAR_BLOCK_BYTES
        place += TAR_BLOCK_BYTES
    size = 0 if kind in EMPTY_KINDS else size
    name = own.get("GNU.sparse.name") or own.get("path") or _parse_member_name(head)
    sparse = kind == SPARSE_KIND or any(key.startswith("GNU.sparse.") for key in own)
    return TarMember(name, kind, sparse, place, size), place + _round_to_block(size)


def _skip_zeros(file: BinaryIO, place: int) -> int:
    """Where the next block is that has something in it, or the end."""
    file.seek(place)
    start = place
    while (block := file.read(TAR_BLOCK_BYTES)) and not block.strip(b"\0"):
        place += len(block)
        if place - start > MAX_ZERO_BYTES:
            raise ValueError(f"at most {MAX_ZERO_BYTES} zeros may stand between files")
    return place


def _read_header(file: BinaryIO, place: int) -> bytes:
    """ValueError: none that has its own checksum."""
    file.seek(place)
    head = file.read(TAR_BLOCK_BYTES)
    if len(head) < TAR_BLOCK_BYTES:
        raise ValueError("unexpected end of data")
    blank = head[:148] + b" " * 8 + head[156:]
    sums = sum(blank), sum(byte - 256 * (byte > 127) for byte in blank)  # some writers' bytes have a sign
    if _parse_header_number(head[148:156]) not in sums:
        raise ValueError("a header is damaged")
    return head


def _read_header_content(file: BinaryIO, place: int, size: int) -> bytes:
    if not 0 <= size <= MAX_HEADER_BYTES:
        raise ValueError(f"a part of the archive must have at most {MAX_HEADER_BYTES} bytes: got {size}")
    file.seek(place)
    content = file.read(size)
    if len(content) < size:
        raise ValueError("unexpected end of data")
    return content


def _round_to_block(size: int) -> int:
    return -(-size // TAR_BLOCK_BYTES) * TAR_BLOCK_BYTES


def _parse_header_number(field: bytes) -> int:
    """Octal digits, or binary, of either sign."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.strip(b"01234567"):
        raise ValueError("a header is damaged")
    return int(digits or b"0", 8)


def _parse_decimal(text: str) -> int:
    digits = text.strip().removeprefix("-")
    if not digits.isdecimal() or len(digits) > 30:
        raise ValueError("a header is damaged")
    return int(text)


def _parse_pax_records(content: bytes) -> dict[str, str]:
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
            records[_decode_text(key if key in READ else HOLES)] = _decode_text(value[:-1])
        at = after
    return records


def _parse_member_name(head: bytes) -> str:
    """ustar names may have a first part; GNU writes times in its place."""
    prefix = head[345 : 476 if head[508:512] == b"tar\0" else 500] if head[257:263] == b"ustar\0" else b""
    return "/".join(part for part in (_decode_text(prefix), _decode_text(head[:100])) if part)


def _decode_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "backslashreplace")
