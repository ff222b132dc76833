"""Headers that hold a stand-in where a decoder takes it for the sound: read as if they said what is there.

    WAV     the size of the data, where a voice that is streamed did not know it yet (speech/sound/riff.py)
    Opus    the rate of the recording that was encoded, a note (RFC 7845): the sound is there at 48 kHz

Invariant: only these bytes are replaced, in what is read; the file stays as it is.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import soundfile

from speech.sound import mpeg, ogg, riff

MAX_ID3_TAGS = 16


def find_container_start(file: BinaryIO) -> int:
    """Where the container begins, behind ID3v2 tags."""
    start = 0
    for _ in range(MAX_ID3_TAGS):
        start += mpeg.id3_tag_length(mpeg.read_bytes_at(file, start, 10))
    return start


@contextmanager
def open_sound_file(path: Path) -> Iterator[soundfile.SoundFile]:
    """The file for a decoder. LibsndfileError: it is not audio. OSError: it cannot be opened."""
    with path.open("rb") as file:
        changes = _find_corrections(file, os.fstat(file.fileno()).st_size)
        source = _CorrectedFile(file, changes) if changes else str(path)
        with soundfile.SoundFile(source) as sound:
            yield sound


def _find_corrections(file: BinaryIO, end: int) -> dict[int, bytes]:
    """Place -> the bytes that should be there."""
    start = find_container_start(file)
    kind = mpeg.read_bytes_at(file, start, 4)
    if kind in riff.RIFF_KINDS:
        return riff.correct_data_size(file, start, end)
    return ogg.correct_opus_rate(file, start) if kind == b"OggS" else {}


class _CorrectedFile:
    """A file some bytes of which read as others; what soundfile asks of one."""

    def __init__(self, file: BinaryIO, changes: Mapping[int, bytes]) -> None:
        self._file, self._changes = file, changes
        file.seek(0)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, count: int = -1) -> bytes:
        start = self._file.tell()
        content = bytearray(self._file.read(count))
        for place, change in self._changes.items():
            for i, byte in enumerate(change, place - start):
                if 0 <= i < len(content):
                    content[i] = byte
        return bytes(content)
