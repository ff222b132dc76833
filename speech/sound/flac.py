"""FLAC counted without decoding it: each frame says at its head where it is and how many samples it has.

A decoder stops where the count in STREAMINFO does, so what a file has beyond it would be lost. Frames do not
tell their length: heads are looked for, and only one that continues the count is a frame.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from speech.sound.mpeg import read_bytes_at

MAX_METADATA_BLOCKS = 1000  # of metadata
FLAC_SEARCH_BYTES = 1 << 20  # bytes searched at a time
MAX_HEAD_BYTES = 16  # bytes of a frame's head
FLAC_TRAILING_BYTES = 4096  # bytes behind the sound that may be anything: padding, a tag
MAX_FALSE_HEADS = 10_000  # what looks like a head and is none; one in 32,768 bytes is to be expected
FLAC_SYNC_PATTERN = re.compile(rb"\xff[\xf8\xf9]")
FLAC_SAMPLE_RATES = {1: 88_200, 2: 176_400, 3: 192_000, 4: 8_000, 5: 16_000, 6: 22_050, 7: 24_000, 8: 32_000} | {
    9: 44_100, 10: 48_000, 11: 96_000,
}  # fmt: skip
FLAC_BIT_DEPTHS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}


@dataclass(frozen=True, slots=True)
class FlacStreamInfo:
    """What STREAMINFO says."""

    place: int  # of the first frame
    block: int  # samples of a frame but the last, where all are of one size
    longest: int  # bytes of a frame at most
    rate: int
    channels: int
    depth: int  # bits of a sample
    samples: int


def find_flac_problem(file: BinaryIO, start: int, end: int) -> str | None:
    """What is wrong with the frames of ``file[start:end]``, all samples of whose header were decoded."""
    stream = _read_stream_info(file, start)
    if stream is None:
        return None
    first = counted = -1
    last, odd = stream.place, MAX_FALSE_HEADS + end // 4096
    for place, head in _find_head_candidates(file, stream.place):
        begin, size = _parse_frame_head(head, stream) or (-1, 0)
        if not size or (first >= 0 and begin != counted):
            odd -= 1
            if not odd:
                return "must be frames: got too much that looks like one and is none"
            continue
        first = begin if first < 0 else first
        counted, last = begin + size, place
        if counted - first > stream.samples:
            rule = f"must have the {stream.samples} samples that its header counts"
            return f"{rule}: got {counted - first} or more"
    if end - last > stream.longest + FLAC_TRAILING_BYTES or b"fLaC" in read_bytes_at(
        file, last, stream.longest + FLAC_TRAILING_BYTES
    ):
        return "must be one recording: something else follows it in the file"
    return None


def _read_stream_info(file: BinaryIO, start: int) -> FlacStreamInfo | None:
    head = read_bytes_at(file, start, 42)
    if len(head) < 42 or head[:4] != b"fLaC" or head[4] & 0x7F:
        return None
    fields = int.from_bytes(head[18:26], "big")
    channels, depth = (fields >> 41 & 7) + 1, (fields >> 36 & 31) + 1
    block = int.from_bytes(head[10:12], "big")
    place = start + 4
    for _ in range(MAX_METADATA_BLOCKS):
        kind = read_bytes_at(file, place, 4)
        if len(kind) < 4:
            return None
        place += 4 + int.from_bytes(kind[1:], "big")
        if kind[0] & 0x80:
            longest = block * channels * (depth + 1) // 8 + 64  # samples as they are
            return FlacStreamInfo(place, block, longest, fields >> 44, channels, depth, fields & (1 << 36) - 1)
    return None


def _find_head_candidates(file: BinaryIO, place: int) -> Iterator[tuple[int, bytes]]:
    """Places where a frame could begin, with the bytes there."""
    while piece := read_bytes_at(file, place, FLAC_SEARCH_BYTES + MAX_HEAD_BYTES):
        for match in FLAC_SYNC_PATTERN.finditer(piece, 0, FLAC_SEARCH_BYTES + 1):
            yield place + match.start(), piece[match.start() : match.start() + MAX_HEAD_BYTES]
        place += FLAC_SEARCH_BYTES


def _parse_frame_head(head: bytes, stream: FlacStreamInfo) -> tuple[int, int] | None:
    """(the number of its first sample, how many it has) of a frame of the stream; None: it is none."""
    if len(head) < 6 or head[3] & 1:
        return None
    size, rate, channels, depth = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
    if FLAC_SAMPLE_RATES.get(rate, stream.rate) != stream.rate or (
        depth and FLAC_BIT_DEPTHS.get(depth) != stream.depth
    ):
        return None
    if stream.channels != (2 if channels in (8, 9, 10) else channels + 1):
        return None
    number, at_ = _parse_frame_number(head)
    sized, rated = {6: 1, 7: 2}.get(size, 0), {12: 1, 13: 2, 14: 2}.get(rate, 0)
    check = at_ + sized + rated
    if number is None or not size or rate == 15 or len(head) <= check or _compute_crc8(head[:check]) != head[check]:
        return None
    if sized:
        block = int.from_bytes(head[at_ : at_ + sized], "big") + 1
    else:
        block = 192 if size == 1 else 576 << size - 2 if size < 6 else 256 << size - 8
    return (number if head[1] & 1 else number * stream.block), block


def _parse_frame_number(head: bytes) -> tuple[int | None, int]:
    """The frame's or sample's number, written as UTF-8 writes letters, and where it ends."""
    first = head[4]
    if first < 0x80:
        return first, 5
    extra_bytes = 8 - (first ^ 0xFF).bit_length() - 1
    extra = head[5 : 5 + extra_bytes]
    if not 1 <= extra_bytes <= 6 or len(extra) < extra_bytes or any(byte & 0xC0 != 0x80 for byte in extra):
        return None, 5
    number = first & (1 << 6 - extra_bytes) - 1
    for byte in extra:
        number = number << 6 | byte & 0x3F
    return number, 5 + extra_bytes


def _compute_crc8(head: bytes) -> int:
    value = 0
    for byte in head:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
    return value
