"""Whether a file holds the whole of its sound, and no other: decoders give what is left of one that was cut.

    RIFF    speech/sound/riff.py    the data ends within the file; behind it are chunks
    Ogg     speech/sound/ogg.py     one stream, all of whose pages are whole
    FLAC    speech/sound/flac.py    as many samples as its header counts; ``audio.read`` sees to fewer
    MP3     speech/sound/mpeg.py    as many samples as were decoded

A file is hostile: each step leads on, and how many there may be has a bound.
"""

import os
from pathlib import Path
from typing import BinaryIO

from speech.sound import flac, mpeg, ogg, riff
from speech.sound.headers import find_container_start


def check_whole_recording(path: Path, decoded: int) -> None:
    """ValueError: a file of which so many samples were decoded was cut, or holds more than that."""
    try:
        with path.open("rb") as file:
            wrong = find_container_problem(file, os.fstat(file.fileno()).st_size, decoded)
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened: {error.strerror}") from error
    if wrong:
        raise ValueError(f"{path}: audio {wrong}")


def find_container_problem(file: BinaryIO, end: int, decoded: int) -> str | None:
    """What is wrong with a file of ``end`` bytes, of which so many samples were decoded."""
    start = find_container_start(file)
    kind = mpeg.read_bytes_at(file, start, 4)
    if kind in riff.RIFF_KINDS:
        return riff.find_riff_problem(file, start, end)
    if kind == b"OggS":
        return ogg.find_ogg_problem(file, start, end, decoded)
    return (
        flac.find_flac_problem(file, start, end)
        if kind == b"fLaC"
        else mpeg.find_mpeg_problem(file, start, end, decoded)
    )
