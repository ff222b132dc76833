"""Whether a file holds the whole of its sound, and no other: decoders give what is left of one that was cut.

    RIFF    the data ends within the file; behind it are chunks
    Ogg     one stream after another would be read to the end of the first; its last page is whole
    MP3     speech/mpeg.py

FLAC counts its samples, and ``audio.read`` holds it to that. A file is hostile: each step leads on, and how
many there may be has a bound.
"""

import os
import struct
from pathlib import Path
from typing import BinaryIO

from speech import mpeg
from speech.mpeg import at

ENDLESS = 0x7FFF_0000  # a RIFF chunk of 2 or 4 GiB: written to a pipe, when the length was not known yet
LITTLE = 4096  # bytes behind the sound that may be anything: padding, a tag
MAX_CHUNKS = 1000
MAX_TAGS = 16


def check_whole(path: Path, decoded: int) -> None:
    """ValueError: a file of which so many samples were decoded was cut, or holds more than that."""
    try:
        with path.open("rb") as file:
            found = problem(file, os.fstat(file.fileno()).st_size, decoded)
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened: {error.strerror}") from error
    if found:
        raise ValueError(f"{path}: audio {found}")


def problem(file: BinaryIO, end: int, decoded: int) -> str | None:
    """What is wrong with a file of ``end`` bytes, of which so many samples were decoded."""
    start = 0
    for _ in range(MAX_TAGS):
        start += mpeg.tag_length(at(file, start, 10))
    kind = at(file, start, 4)
    if kind in (b"RIFF", b"RIFX", b"RF64"):
        return _riff(file, start + 12, end, ">" if kind == b"RIFX" else "<")
    if kind == b"OggS":
        return _ogg(file, start, end, decoded)
    return None if kind == b"fLaC" else mpeg.problem(file, start, end, decoded)


def _riff(file: BinaryIO, place: int, end: int, order: str) -> str | None:
    """Of the chunks in ``file[place:end]``."""
    large, data = 0, False
    for _ in range(MAX_CHUNKS):
        head = at(file, place, 24)
        if len(head) < 8:
            return None
        name, size = struct.unpack(f"{order}4sI", head[:8])
        if name == b"ds64" and len(head) == 24:
            (large,) = struct.unpack("<8xQ", head[8:])
        if name == b"data" and size >= ENDLESS:
            if not large:
                return None
            size = large
        if size > (rest := end - place - 8):
            if data:
                return None if rest <= LITTLE else "must have chunks behind its data: got something else"
            return f"must end within the file, else it was cut: got {rest} of {size} bytes"
        place, data = place + 8 + size + size % 2, data or name == b"data"
    return f"must have at most {MAX_CHUNKS} chunks: got more"


def _ogg(file: BinaryIO, place: int, end: int, decoded: int) -> str | None:
    """Of the pages in ``file[place:end]``."""
    begun = False
    most = MAX_CHUNKS + decoded // 16  # no page that sounds has fewer samples
    for _ in range(most):
        head = at(file, place, 27 + 255)
        if head[:4] != b"OggS":
            rest = at(file, place, LITTLE + 1)
            if len(rest) <= LITTLE and b"OggS" not in rest and not (rest and b"OggS".startswith(rest)):
                return None
            return f"must be pages without a gap: got something else at byte {place}"
        table = head[27 : 27 + head[26]] if len(head) > 26 else b""
        place += 27 + len(table) + sum(table)
        if len(head) < 27 or len(table) < head[26] or place > end:
            return "must end with a whole page, else it was cut: got a part of one"
        begins = bool(head[5] & 2)
        if begun and begins:
            return "must be one stream: another follows it in the file"
        begun = begun or not begins
    return f"must have at most {most} pages: got more"
