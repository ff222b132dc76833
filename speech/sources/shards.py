"""Tar shards as webdataset writes them: files of one sample follow each other and share a key.

    000017.json                  the row
    000017.wav, 000017.a.flac    its clips, named "wav" and "a.flac", or by their whole name

A key is the name up to the first dot of its last part. Nothing is written to disk. Only plain files count: a
link, a device, an absolute name or one with ``..`` is a problem of its sample, and sizes are checked before a
byte is read. Archives are not compressed: of one that is, a few bytes may stand for a full memory.
"""

import tarfile
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path, PurePosixPath

from speech.audio import READABLE
from speech.problems import MAX_LINE, Found, parse_object
from speech.sources.record import MAX_CLIP, MAX_SAMPLE, Record

MAX_MEMBERS = 1000  # of one sample
DAMAGED = (tarfile.TarError, ValueError, OSError, EOFError, OverflowError, RecursionError)
SPOKEN = {suffix.removeprefix(".") for suffix in READABLE}


class _Sample:
    """What was read of a sample so far."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.text: bytes | None = None
        self.clips: dict[str, bytes] = {}
        self.size = self.count = 0
        self.found: Found = []

    def record(self, file: Path) -> Record:
        content = None
        if self.text is None:
            self.found.append(("json", "the sample must hold this file"))
        else:
            content = parse_object(self.text, self.found)
        if content is not None:
            _named_by_convention(content, self.clips)
        members = self.clips | {f"{self.key}.{name}": clip for name, clip in self.clips.items()}
        return Record(file=file, key=self.key, content=content, found=self.found, members=members)


def samples(file: Path) -> Iterator[Record]:
    """Every sample; where the archive is damaged, a record without content is the last."""
    sample: _Sample | None = None
    try:
        with _Bounded(FileIO(file)) as raw, tarfile.open(None, "r:", raw, errors="replace") as archive:
            for member in _members(archive):
                key, _, suffix = _split(member.name)
                if member.isdir() or not suffix or PurePosixPath(member.name).name.startswith("."):
                    continue
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample.record(file)
                    sample = _Sample(key)
                _take(archive, member, suffix.lower(), sample)
            raw.seek(archive.offset)
            if raw.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes it for the end
                raise ValueError("a header is damaged")
    except DAMAGED as error:
        if sample is not None:
            sample.found.append(("", f"the archive cannot be read any further: {error}"))
        else:
            yield Record(
                file=file, content=None, found=[("", f"cannot be read as an uncompressed tar: {error}")]
            )
    if sample is not None:
        yield sample.record(file)


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, sample: _Sample) -> None:
    wanted = suffix == "json" or suffix.rpartition(".")[2] in SPOKEN
    bound = MAX_LINE if suffix == "json" else MAX_CLIP
    sample.count += 1
    wrong = None
    if not member.isreg() or member.issparse():
        wrong = "must be a plain file, not a link or a device"
    elif PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
        wrong = f"must not lead out of the archive: got {member.name!r}"
    elif sample.count > MAX_MEMBERS:
        wrong = f"a sample has at most {MAX_MEMBERS} files" if sample.count == MAX_MEMBERS + 1 else ""
    elif wanted and member.size > bound:
        wrong = f"must have at most {bound} bytes: got {member.size}"
    elif wanted and sample.size + member.size > MAX_SAMPLE:
        wrong = f"files of a sample must have at most {MAX_SAMPLE} bytes together"
    elif suffix in sample.clips or (suffix == "json" and sample.text is not None):
        wrong = "must not be there twice"
    if wrong is not None:
        sample.found += [(suffix, wrong)] * bool(wrong)
        return
    if not wanted:
        return
    data = archive.extractfile(member)
    assert data is not None, "a plain file has content"
    content = data.read()
    if len(content) != member.size:
        raise ValueError(f"{member.name} is cut short")
    sample.size += member.size
    if suffix == "json":
        sample.text = content
    else:
        sample.clips[suffix] = content


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Headers one by one; the list that tarfile keeps of them is emptied, and it must move on."""
    at = -1
    while (member := archive.next()) is not None:
        if member.size < 0 or archive.offset <= at:
            raise ValueError("a header with a size below zero")
        at = archive.offset
        yield member
        archive.members = []  # type: ignore[attr-defined]


def _split(name: str) -> tuple[str, str, str]:
    """("a/b.c.wav") -> ("a/b", ".", "c.wav")."""
    folder, slash, last = name.rpartition("/")
    key, dot, suffix = last.partition(".")
    return folder + slash + key, dot, suffix


def _named_by_convention(content: dict[str, object], clips: dict[str, bytes]) -> None:
    """KEY.wav is the question and KEY.target.wav the reply where the row does not name its clips."""
    asked = "audios" if "messages" in content else "question_audio"
    for key, names in ((asked, SPOKEN), ("sft_target_audio", {f"target.{suffix}" for suffix in SPOKEN})):
        there = sorted(names & clips.keys())
        if there and content.get(key) is None:
            content[key] = [there[0]] if key == "audios" else there[0]


class _Bounded(BufferedReader):
    """A file of which no more than the largest clip is read at once, however large a header says it is."""

    def read(self, size: int | None = -1, /) -> bytes:
        """``size`` bytes. ValueError: more than a clip may have."""
        if size is None or not 0 <= size <= MAX_CLIP:
            raise ValueError(f"a part of the archive must have at most {MAX_CLIP} bytes: got {size}")
        return super().read(size)
