"""Tar shards as webdataset writes them: files of one sample follow each other and share a key.

    000017.json                  the row
    000017.wav, 000017.a.flac    its clips, named "wav" and "a.flac", or by their whole name

A key is the name up to the first dot of its last part; names are compared as NFC, for macOS writes others.
Nothing is written to disk. Only plain files count: a
link, a device, an absolute name or one with ``..`` is a problem of its sample, and sizes are checked before a
byte is read. Archives are not compressed: of one that is, a few bytes may stand for a full memory.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from unicodedata import normalize

from speech.data.problems import MAX_LINE, RowProblems, parse_object
from speech.data.sources.record import MAX_CLIP_BYTES, MAX_SAMPLE_BYTES, SourceRecord
from speech.data.sources.tar import TarMember, read_tar_members
from speech.sound.audio import READABLE_SUFFIXES
from store.kinds import LONGEST_BEGINNING, name_foreign_kind

MAX_SAMPLE_FILES = 1000  # of one sample
ADJACENT_FILES_RULE = "files of a sample must follow each other, as tar --sort=name packs them"
FOREIGN_SUFFIXES = set("aac aif aiff amr au caf m4a mka mp4 webm wma".split())  # sound, and refused as it is
CLIP_SUFFIXES = {suffix.removeprefix(".") for suffix in READABLE_SUFFIXES} | FOREIGN_SUFFIXES


class _Sample:
    """What was read of a sample so far."""

    def __init__(self, key: str, is_repeated: bool) -> None:
        """``is_repeated``: other files of it came before, and were a sample."""
        self.key, self.is_repeated = key, is_repeated
        self.text: bytes | None = None
        self.clips: dict[str, bytes] = {}
        self.files: list[str] = []  # names of all of them but the row
        self.size = self.count = 0
        self.problems: RowProblems = []

    def to_record(self, file: Path) -> SourceRecord:
        content = None
        if self.is_repeated:
            self.problems.append(("", f"{ADJACENT_FILES_RULE}: some of this one came before"))
        elif self.text is None:
            dotted = next((name for name in self.files if name.endswith(".json")), None)
            why = ADJACENT_FILES_RULE if dotted is None else f"a key ends at the first dot of a name: got {dotted}"
            self.problems.append(("json", f"the sample must hold this file; {why}"))
        else:
            content = parse_object(self.text, self.problems)
        if content is not None:
            _name_conventional_clips(content, self.clips, self.problems)
        members = self.clips | {f"{self.key}.{name}": clip for name, clip in self.clips.items()}
        return SourceRecord(
            file=file,
            key=self.key,
            content=content,
            problems=self.problems,
            members=members,
            files=tuple(self.files),
        )


def read_shard_samples(file: Path) -> Iterator[SourceRecord]:
    """Every sample; where the archive is damaged, a record without content is the last."""
    sample: _Sample | None = None
    keys: set[int] = set()  # hashes of what was there
    try:
        with file.open("rb") as raw:
            for member in read_tar_members(raw, os.fstat(raw.fileno()).st_size):
                key, _, suffix = _split_member_name(normalize("NFC", member.name))
                if member.folder or not suffix or PurePosixPath(member.name).name.startswith("."):
                    continue
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample.to_record(file)
                    sample = _Sample(key, is_repeated=hash(key) in keys)
                    keys.add(hash(key))
                _add_member(raw, member, suffix.lower(), sample)
    except (ValueError, OSError) as error:
        if sample is not None:
            sample.problems.append(("", f"the archive cannot be read any further: {error}"))
        else:
            why = _name_kind(file) or str(error)
            yield SourceRecord(
                file=file, content=None, problems=[("", f"cannot be read as an uncompressed tar: {why}")]
            )
    if sample is not None:
        yield sample.to_record(file)


def _add_member(file: BinaryIO, member: TarMember, suffix: str, sample: _Sample) -> None:
    wanted = suffix == "json" or suffix.rpartition(".")[2] in CLIP_SUFFIXES
    bound = MAX_LINE if suffix == "json" else MAX_CLIP_BYTES
    sample.count += 1
    if suffix != "json" and sample.count <= MAX_SAMPLE_FILES:
        sample.files.append(suffix)
    wrong = None
    if not member.plain:
        wrong = "must be a plain file, not a link or a device"
    elif PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
        wrong = f"must not lead out of the archive: got {member.name!r}"
    elif sample.count > MAX_SAMPLE_FILES:
        wrong = f"a sample has at most {MAX_SAMPLE_FILES} files" if sample.count == MAX_SAMPLE_FILES + 1 else ""
    elif wanted and member.size > bound:
        wrong = f"must have at most {bound} bytes: got {member.size}"
    elif wanted and sample.size + member.size > MAX_SAMPLE_BYTES:
        wrong = f"files of a sample must have at most {MAX_SAMPLE_BYTES} bytes together"
    elif suffix in sample.clips or (suffix == "json" and sample.text is not None):
        wrong = "must not be there twice"
    if wrong is not None:
        sample.problems += [(suffix, wrong)] * bool(wrong)
        return
    if not wanted:
        return
    file.seek(member.place)
    content = file.read(member.size)
    if len(content) < member.size:
        raise ValueError("unexpected end of data")
    sample.size += member.size
    if suffix == "json":
        sample.text = content
    else:
        sample.clips[suffix] = content


def _name_kind(file: Path) -> str:
    with file.open("rb") as raw:
        kind = name_foreign_kind(raw.read(LONGEST_BEGINNING))
    return f"it is {kind}" if kind else ""


def _split_member_name(name: str) -> tuple[str, str, str]:
    """("a/b.c.wav") -> ("a/b", ".", "c.wav")."""
    folder, slash, last = name.rpartition("/")
    key, dot, suffix = last.partition(".")
    return folder + slash + key, dot, suffix


def _name_conventional_clips(content: dict[str, object], clips: dict[str, bytes], problems: RowProblems) -> None:
    """KEY.wav is the question and KEY.target.wav the reply where the row does not name its clips."""
    field = "audios" if "messages" in content else "question_audio"
    for key, names in ((field, CLIP_SUFFIXES), ("sft_target_audio", {f"target.{suffix}" for suffix in CLIP_SUFFIXES})):
        there = sorted(names & clips.keys())
        if there and content.get(key) is None:
            if len(there) > 1:
                problems.append((key, f"must be named where there are several: got {', '.join(there)}"))
            content[key] = [there[0]] if key == "audios" else there[0]
