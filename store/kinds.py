"""What a file is that was given in another's place, by its first bytes: for the words of an error alone."""

KNOWN_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: git lfs pull"),
    (b"\x1f\x8b", "compressed (gzip): unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstandard): unpack it"),
    (b"BZh", "compressed (bzip2): unpack it"),
    (b"\xfd7zXZ\0", "compressed (xz): unpack it"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"PAR1", "a parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x93NUMPY", "a NumPy array: write the sound as WAV"),
    (b"<!DOCTYPE", "a web page, as a download without permission gives"),
    (b"<html", "a web page, as a download without permission gives"),
    (b"FORM", "AIFF: ffmpeg -i IN OUT.wav"),
    (b"caff", "CAF: ffmpeg -i IN OUT.wav"),
    (b".snd", "AU: ffmpeg -i IN OUT.wav"),
    (b"riff", "W64: ffmpeg -i IN OUT.wav"),
    (b"BW64", "BW64: ffmpeg -i IN OUT.wav"),
    (b"#!AMR", "AMR: ffmpeg -i IN OUT.wav"),
    (b"\x30\x26\xb2\x75", "WMA: ffmpeg -i IN OUT.wav"),
    (b"\x1a\x45\xdf\xa3", "WebM or Matroska: ffmpeg -i IN OUT.wav"),
    (b"\xff\xf1", "AAC: ffmpeg -i IN OUT.wav"),
    (b"\xff\xf9", "AAC: ffmpeg -i IN OUT.wav"),
)
LONGEST_BEGINNING = 32  # bytes that are needed to tell


def name_foreign_kind(head: bytes) -> str:
    """What a file that begins with ``head`` is, and how to make another of it; nothing: not known."""
    if head[4:8] == b"ftyp":
        return "MPEG-4 (m4a, mp4): ffmpeg -i IN OUT.wav"
    return next((kind for beginning, kind in KNOWN_BEGINNINGS if head.startswith(beginning)), "")
