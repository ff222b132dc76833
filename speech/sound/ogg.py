"""Ogg as pages: whether there is one stream that is whole, and the note in the head of Opus.

A decoder reads one stream: what is mixed with it or follows it would be lost. A page that is missing, or does
not have its own checksum, is silence to it, and what the last page does not count is cut off.
"""

import struct
import zlib
from typing import BinaryIO

from speech.sound.mpeg import read_bytes_at

OGG_TRAILING_BYTES = 4096  # bytes behind the last page that may be anything
MAX_SILENT_PAGES = 1000  # pages that do not sound
PAGE_HEAD_BYTES = 27  # bytes of a page's header before the lengths of its segments
FIRST_PAGE_FLAG, LAST_PAGE_FLAG = 2, 4  # flags of a page: the first, the last of its stream
OPUS_RATE = 48_000  # Hz; what every Opus decoder gives
OPUS_PACKET_SAMPLES = 5760  # samples of a packet
OPUS_FRAME_SAMPLES = (  # samples of a frame, by the first five bits of its packet
    *(480, 960, 1920, 2880) * 3,
    *(480, 960) * 2,
    *(120, 240, 480, 960) * 4,
)
MIRRORED_BYTES = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def find_ogg_problem(file: BinaryIO, place: int, end: int, decoded: int) -> str | None:
    """What is wrong with the pages in ``file[place:end]``, of which so many samples were decoded."""
    stream = _Stream()
    most = MAX_SILENT_PAGES + decoded // 16  # no page that sounds has fewer samples
    for _ in range(most):
        page = _read_page(file, place)
        if page[:4] != b"OggS":
            trailing = read_bytes_at(file, place, OGG_TRAILING_BYTES + 1)
            if (
                len(trailing) > OGG_TRAILING_BYTES
                or b"OggS" in trailing
                or (trailing and b"OggS".startswith(trailing))
            ):
                return f"must be pages without a gap: got something else at byte {place}"
            return stream.find_end_problem(decoded)
        if len(page) < PAGE_HEAD_BYTES or place + _compute_page_length(page) > end:
            return "must end with a whole page, else it was cut: got a part of one"
        if wrong := stream.find_page_problem(page):
            return wrong
        place += len(page)
    return f"must have at most {most} pages: got more"


class _Stream:
    """What was seen of a stream, page by page."""

    def __init__(self) -> None:
        self._serial, self._number, self._counted, self._flags = b"", -1, -1, 0
        self._begun = False  # a page was there that does not begin a stream
        self._opus: int | None = None  # samples of its packets
        self._open = False  # its last packet goes on in the next page

    def find_page_problem(self, page: bytes) -> str | None:
        """What is wrong with the next page."""
        position, number = struct.unpack("<q4xI", page[6:22])
        if self._begun and page[5] & FIRST_PAGE_FLAG:
            return "must be one stream: another follows it in the file"
        if self._serial not in (b"", page[14:18]):
            return "must be one stream: another is mixed with it in the file"
        if _compute_ogg_crc(page[:22] + bytes(4) + page[26:]) != page[22:26]:
            return f"must have whole pages: got a damaged one, number {number}"
        if self._number >= 0 and number != self._number + 1:
            return f"must have all its pages: got number {number} behind {self._number}"
        if 0 <= position < self._counted:
            return f"must count its samples upwards: got {position} behind {self._counted}"
        if page[5] & LAST_PAGE_FLAG and position < 0:
            return "must count its samples up to its end: its last page does not"
        self._serial, self._number, self._flags = page[14:18], number, page[5]
        self._begun = self._begun or not page[5] & FIRST_PAGE_FLAG
        self._counted = max(self._counted, position)
        self._count_samples(page)
        return None

    def find_end_problem(self, decoded: int) -> str | None:
        """What is wrong where no page follows."""
        if not self._flags & LAST_PAGE_FLAG:
            return "must end with the page that ends its stream, else it was cut: it has none"
        if self._opus is not None and self._opus > decoded + 2 * OPUS_PACKET_SAMPLES:
            return f"must count the samples of its packets: got {decoded} of {self._opus}"
        return None

    def _count_samples(self, page: bytes) -> None:
        body = page[PAGE_HEAD_BYTES + page[26] :]
        if self._opus is None and body[:8] == b"OpusHead" and len(body) >= 19:
            self._opus = -int.from_bytes(body[10:12], "little")  # of the first of them it gives none
        elif self._opus is not None and page[6:14] != bytes(8):  # which pages of tags have
            samples, self._open = _count_opus_samples(page, self._open)
            self._opus += samples


def correct_opus_rate(file: BinaryIO, place: int) -> dict[int, bytes]:
    """Place and bytes of the first page of an Opus stream whose note says another rate; else nothing."""
    page = _read_page(file, place)
    at_ = page.find(b"OpusHead") + 12
    rate = struct.pack("<I", OPUS_RATE)
    if at_ < PAGE_HEAD_BYTES + 12 or page[at_ : at_ + 4] == rate or len(page) < at_ + 4:
        return {}
    if _compute_ogg_crc(page[:22] + bytes(4) + page[26:]) != page[22:26]:  # it stays damaged
        return {}
    page = page[:22] + bytes(4) + page[26:at_] + rate + page[at_ + 4 :]
    return {place: page[:22] + _compute_ogg_crc(page) + page[26:]}


def _read_page(file: BinaryIO, place: int) -> bytes:
    head = read_bytes_at(file, place, PAGE_HEAD_BYTES + 255)
    return read_bytes_at(file, place, _compute_page_length(head)) if len(head) >= PAGE_HEAD_BYTES else head


def _compute_page_length(head: bytes) -> int:
    return PAGE_HEAD_BYTES + head[26] + sum(head[PAGE_HEAD_BYTES : PAGE_HEAD_BYTES + head[26]])


def _count_opus_samples(page: bytes, open_: bool) -> tuple[int, bool]:
    """Samples of the packets that begin on a page, and whether its last one goes on in the next page."""
    place, samples = PAGE_HEAD_BYTES + page[26], 0
    for size in page[PAGE_HEAD_BYTES:place]:
        if not open_ and size:
            code, frame_count = page[place] & 3, page[place + 1] & 63 if size > 1 else 0
            samples += OPUS_FRAME_SAMPLES[page[place] >> 3] * (1, 2, 2, frame_count)[code]
        place, open_ = place + size, size == 255
    return samples, open_


def _compute_ogg_crc(page: bytes) -> bytes:
    """CRC-32 as Ogg has it: zlib's polynomial, from the other end of each byte, nothing inverted."""
    value = ~zlib.crc32(page.translate(MIRRORED_BYTES), 0xFFFF_FFFF) & 0xFFFF_FFFF
    return value.to_bytes(4, "little").translate(MIRRORED_BYTES)[::-1]
