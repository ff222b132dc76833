"""A source of others as a manifest of ours, row by row: what ``wavgate data convert`` does.

Invariant: a row is in the manifest as it was, or dropped with a reason that is counted and written down as
file:line:field or shard:key:field. What is in the manifest passes ``wavgate data check``.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from speech.manifest import ID, clip_fields, sound
from speech.problems import MAX_LINE, Clips
from speech.sources.containers import files_of, records
from speech.sources.folder import Folder, Progress
from speech.sources.forms import MODELS, Draft, Form, draft, form_of, given
from speech.sources.keep import Keeper
from speech.sources.record import Record

EVERY = 64  # rows of the source between two notes of how far it is
KINDS = 100  # of reasons and keys that are counted apart; a hostile source has no end of them


def convert(
    sources: Sequence[Path],
    to: Path,
    max_seconds: float,
    limit: int | None = None,
    audio: Path | None = None,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Begin, or go on where it was stopped. ``tell`` hears of every row.

    ``limit``: rows of the source that are read; None: all. ``audio``: the folder that names of clips start
    from; None: that of the source. ValueError: not a source, or ``to`` is not for it. OSError: no place.
    """
    files = files_of(sources)
    root = audio or (sources[0] if sources[0].is_dir() else sources[0].parent)
    if not root.is_dir():
        raise ValueError(f"--audio {root}: must be a folder")
    source = _identity(files, root, max_seconds, limit)
    with Folder(to, source, lambda: _form(files)) as folder:
        progress = folder.progress
        if not progress.finished:
            keeper, clips, ids = (
                Keeper(to, root, max_seconds),
                Clips(to, max_seconds, deep=False),
                folder.ids(),
            )
            for record in islice(records(files), progress.done, limit):
                progress.done += 1
                row = _row(record, progress, keeper, clips, ids)
                if row is None:
                    _drop(record, progress, folder)
                else:
                    folder.manifest.write(row)
                    progress.rows += 1
                if progress.done % EVERY == 0:
                    folder.note()
                tell(progress)
            folder.finish()
    return progress


def _row(record: Record, progress: Progress, keeper: Keeper, clips: Clips, ids: set[str]) -> bytes | None:
    """The line of the manifest, or None: ``record.found`` says why."""
    _count(progress.unread, given(record).keys() - MODELS[progress.form].model_fields.keys())
    drafted = None if record.content is None or record.found else draft(record, progress.form)
    if drafted is None:
        return None
    content = _kept(record, drafted, keeper) | {"id": _id(record, drafted.fields["id"], progress.done)}
    if record.found:
        return None
    row = sound(content, record.found)
    record.found.extend(clips.problems(clip_fields(content)))
    if row is None or record.found:
        return None
    line = row.model_dump_json(exclude_none=True).encode() + b"\n"
    if len(line) > MAX_LINE:
        record.found.append(("", f"must have at most {MAX_LINE} bytes: got {len(line)}"))
    elif row.id in ids:
        record.found.append(("id", f"must be unique: {row.id} was there before"))
    else:
        ids.add(row.id)
        return line
    return None


def _kept(record: Record, drafted: Draft, keeper: Keeper) -> dict[str, Any]:
    """The row's fields with its clips as files."""

    def names(entry: Sequence[tuple[str, Any]]) -> Iterator[str]:
        for field, clip in entry:
            try:
                yield keeper.keep(clip, record.members)
            except ValueError as error:
                record.found.append((field, str(error)))

    audios = [list(names(entry)) for entry in drafted.audios]
    return drafted.fields | {"audios": audios, "sft_target_audio": list(names(drafted.reply))}


def _id(record: Record, said: str | int | None, number: int) -> str:
    """The source's own, as one that can be part of a file name; else the row's number."""
    own = record.key if said is None else str(said)
    if not own:
        return f"row-{number}"
    if re.fullmatch(ID, own):
        return own
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", own).strip("-._")[:100] or "row"
    return f"{readable}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"


def _drop(record: Record, progress: Progress, folder: Folder) -> None:
    assert record.found, "a row is dropped for a reason"
    for field, message in record.found:
        folder.problems.write(f"{record.problem(field, message)}\n".encode())
    _count(progress.reasons, {_reason(field, message) for field, message in record.found})


def _reason(field: str, message: str) -> str:
    """The rule without the values: what rows can be counted by."""
    where = re.sub(r"\[\d+\]", "", field)
    return f"{where}: {message.partition(': ')[0]}".removeprefix(": ")[:120]


def _count(counts: dict[str, int], names: set[str]) -> None:
    for name in sorted(names):
        name = name if name in counts or len(counts) < KINDS else "others"
        counts[name] = counts.get(name, 0) + 1


def _form(files: Sequence[Path]) -> Form:
    """Of the first row that can be read."""
    why = f"{files[0]}: has no row"
    for record in records(files):
        if record.content is not None:
            return form_of(record)
        why = str(record.problem(*record.found[0]))
    raise ValueError(why)


def _identity(files: Sequence[Path], root: Path, max_seconds: float, limit: int | None) -> dict[str, Any]:
    stats = [(file, file.stat()) for file in files]
    return {
        "files": [[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in stats],
        "audio": str(root.absolute()),
        "max_seconds": max_seconds,
        "limit": limit,
    }
