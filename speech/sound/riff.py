"""WAV as chunks: where its data ends, and what stands in for its size where a stream had begun to be sent.

A size that is a stand-in means all that is there up to the chunks at the end: 0, 2 or 4 GiB, or more than an
hour of sound, of which the file has less. Any other size that the file is too short for means it was cut.
"""

import re
import struct
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

from speech.sound.mpeg import read_bytes_at

RIFF_KINDS = (b"RIFF", b"RIFX", b"RF64")
ENDLESS_BYTES = 0x7FFF_0000  # bytes; sizes of 2 and of 4 GiB are above it
SECONDS_PER_HOUR = 3600  # seconds
RIFF_TRAILING_BYTES = 4096  # bytes behind the sound that may be anything: padding, a tag
MAX_CHUNKS = 1000
TAIL = 1 << 20  # bytes at the end in which chunks may follow a sound of unknown size
BEHIND = re.compile(
    rb"LIST|id3 |ID3 |bext|iXML|_PMX|cue |fact|PEAK|smpl|inst|JUNK|junk|PAD |FLLR|cart|axml|chna|plst|acid"
)
MOST_NAMES = 100  # that are looked at there
FIXED_SIZE_CODINGS = (1, 3, 6, 7)  # codings with a sample in so many bytes: PCM, float, A-law, mu-law
EXTENSIBLE_CODING = 0xFFFE  # the coding stands further behind


@dataclass(frozen=True, slots=True)
class _DataChunk:
    """The chunk of the samples."""

    place: int  # of its first byte
    size: int  # as its header says
    field: int  # where that stands
    form: str  # how it is packed
    speed: int = 0  # bytes a second; 0: not known
    broken: str = ""  # what its format contradicts itself in

    def has_placeholder_size(self, file: BinaryIO, end: int, order: str) -> bool:
        """Whether its size is none."""
        remaining = end - self.place
        if not self.size:
            return remaining > 0 and not _has_chunks_until(file, self.place, end, order)
        return remaining < self.size and (self.size >= ENDLESS_BYTES or 0 < SECONDS_PER_HOUR * self.speed < self.size)


def correct_data_size(file: BinaryIO, start: int, end: int) -> dict[int, bytes]:
    """Place and bytes of the size of the data where a stand-in is there; else nothing."""
    order = _read_byte_order(file, start)
    data = _find_data_chunk(file, start + 12, order)
    if isinstance(data, str) or not data.has_placeholder_size(file, end, order):
        return {}
    size = _sound_end(file, data.place, end, order) - data.place
    return {data.field: struct.pack(data.form, min(size, ENDLESS_BYTES))}


def find_riff_problem(file: BinaryIO, start: int, end: int) -> str | None:
    """What is wrong with the chunks of ``file[start:end]``."""
    order = _read_byte_order(file, start)
    data = _find_data_chunk(file, start + 12, order)
    if isinstance(data, str):
        return data or None
    if data.broken:
        return f"must have a format that agrees with itself: got {data.broken}"
    if data.has_placeholder_size(file, end, order):
        return None
    if data.size > (remaining := end - data.place):
        rule = "must end within the file, else it was cut"
        return f"{rule}: got {remaining} of {data.size} bytes (is that a guess? ffmpeg -i IN -c copy OUT)"
    behind = place = data.place + data.size + data.size % 2
    for _ in range(MAX_CHUNKS):
        head = read_bytes_at(file, place, 8)
        if len(head) < 8:
            return None
        name, size = struct.unpack(f"{order}4sI", head)
        if name in (*RIFF_KINDS, b"data"):
            return "must be one recording: another follows it in the file"
        if size > (remaining := end - place - 8) or not _is_name(name):
            fits = remaining <= RIFF_TRAILING_BYTES and (
                place > behind or _is_padding(read_bytes_at(file, place, end - place))
            )
            return None if fits else "must have chunks behind its data: got something else, which may be sound"
        place += 8 + size + size % 2
    return f"must have at most {MAX_CHUNKS} chunks: got more"


def _is_padding(trailing: bytes) -> bool:
    """Whether bytes right behind the data are zeros or tags, or so few that they hold no sound."""
    return (
        len(trailing) < 32
        or not trailing.strip(b"\0")
        or trailing.startswith((b"ID3", b"TAG", b"APETAGEX", b"LYRICS", b"<?x"))
    )


def _read_byte_order(file: BinaryIO, start: int) -> str:
    return ">" if read_bytes_at(file, start, 4) == b"RIFX" else "<"


def _find_data_chunk(file: BinaryIO, place: int, order: str) -> _DataChunk | str:
    """The data, or what is wrong with the chunks before it; nothing: there is none."""
    large: tuple[int, int] | None = None  # where ds64 has the size of the data, and that
    speed, broken = 0, ""
    for _ in range(MAX_CHUNKS):
        head = read_bytes_at(file, place, 24)
        if len(head) < 8:
            return ""
        name, size = struct.unpack(f"{order}4sI", head[:8])
        if name == b"ds64" and len(head) == 24:
            large = place + 16, struct.unpack(f"{order}Q", head[16:])[0]
        if name == b"fmt " and len(head) >= 22:
            speed, broken = _parse_format_chunk(read_bytes_at(file, place + 8, 26), order)
        if name == b"data" and large and size in (0, 0xFFFF_FFFF):
            return _DataChunk(place + 8, large[1], large[0], f"{order}Q", speed, broken)
        if name == b"data":
            return _DataChunk(place + 8, size, place + 4, f"{order}I", speed, broken)
        place += 8 + size + size % 2
    return f"must have at most {MAX_CHUNKS} chunks: got more"


def _parse_format_chunk(given: bytes, order: str) -> tuple[int, str]:
    """(bytes a second, what contradicts another) of a chunk ``fmt``, by its first 26 bytes."""
    coding, channels, rate, byte_rate, frame, bits = struct.unpack(f"{order}HHIIHH", given[:16].ljust(16, b"\0"))
    if coding == EXTENSIBLE_CODING and len(given) == 26:
        (coding,) = struct.unpack(f"{order}H", given[24:])
    if coding in FIXED_SIZE_CODINGS and frame != channels * ((bits + 7) // 8):
        return 0, f"{frame} bytes for {channels} x {bits} bits"
    return max(rate * frame, byte_rate), ""


def _has_chunks_until(file: BinaryIO, place: int, end: int, order: str) -> bool:
    """Whether there are chunks, with names of letters, up to the end and none that goes beyond it."""
    for _ in range(MAX_CHUNKS):
        if end <= place <= end + 1:
            return True
        head = read_bytes_at(file, place, 8)
        if len(head) < 8 or not _is_name(head[:4]):
            return False
        place += 8 + (size := struct.unpack(f"{order}I", head[4:])[0]) + size % 2
    return False


def _is_name(name: bytes) -> bool:
    """Of a chunk: four signs to be read."""
    return all(32 <= byte < 127 for byte in name) and bool(name.strip())


def _sound_end(file: BinaryIO, place: int, end: int, order: str) -> int:
    """Where chunks begin that are behind a sound of unknown size and reach to the end; else the end."""
    start = max(place, end - TAIL)
    names = islice(BEHIND.finditer(read_bytes_at(file, start, end - start)), MOST_NAMES)
    behind = (start + name.start() for name in names)
    return next((first for first in behind if _has_chunks_until(file, first, end, order)), end)
