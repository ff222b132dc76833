"""A source of others as a manifest of ours, row by row: what ``wavgate data convert`` does.

Invariant: a row is in the manifest as it was, or dropped with a reason that is counted and written down as
file:line:field or shard:key:field. What is in the manifest passes ``wavgate data check``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from speech.clips import Clips
from speech.manifest import clip_fields, fitting, sound
from speech.problems import MAX_LINE, Found, rule_of
from speech.sources.containers import files_of, records
from speech.sources.folder import Folder, Progress
from speech.sources.forms import Draft, draft, form_of, unread
from speech.sources.keep import Keeper
from speech.sources.record import Record

EVERY = 64  # rows of the source between two notes of how far it is
LOOKED = 1000  # rows of the source before one must have been of a form that is read
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
    with Folder(to, source, lambda: _check_form(files)) as folder:
        progress = folder.progress
        if not progress.finished:
            clips = Clips(to, max_seconds, deep=True)
            keeper = Keeper(to, root, max_seconds, clips)
            ids = _Ids(files, progress, folder.ids())
            for record in islice(records(files), progress.done, limit):
                progress.done += 1
                ids.enter(record.file)
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


class _Ids:
    """The ids of the manifest. Within a file of the source each must be new; one that a row of a file before
    has gets the file's name in front, for shards count from the start each.
    """

    def __init__(self, files: Sequence[Path], progress: Progress, written: Sequence[str]) -> None:
        self._files, self._progress = files, progress
        self._before, self._here = set(written[: progress.before]), set(written[progress.before :])
        stems = [file.stem for file in files]
        counts = Counter(stems)
        self._names = [stem if counts[stem] == 1 else f"{stem}-{at}" for at, stem in enumerate(stems)]

    def enter(self, file: Path) -> None:
        """The next row is of this file."""
        if file != self._files[self._progress.file]:
            self._before |= self._here
            self._here = set()
            self._progress.file, self._progress.before = self._files.index(file), self._progress.rows

    def take(self, wanted: str, found: Found) -> str | None:
        """The id that the row has; None: a row of the same file has it, which goes to ``found``."""
        own = wanted
        if wanted in self._before and wanted not in self._here:
            own = fitting(f"{self._names[self._progress.file]}-{wanted}")
            self._progress.renamed += own not in self._before and own not in self._here
        if own in self._before or own in self._here:
            found.append(("id", f"must be unique: {own} was there before"))
            return None
        self._here.add(own)
        return own


def _row(record: Record, progress: Progress, keeper: Keeper, clips: Clips, ids: _Ids) -> bytes | None:
    """The line of the manifest, or None: ``record.found`` says why."""
    form = None if record.content is None or record.found else form_of(record)
    if form is None:
        return None
    progress.forms[form] = progress.forms.get(form, 0) + 1
    _count(progress.unread, unread(record, form))
    drafted = draft(record, form)
    if drafted is None:
        return None
    wanted = _id(record, drafted.fields["id"], progress.done)
    content = _kept(record, drafted, keeper) | {"id": wanted}
    if record.found:
        return None
    row = sound(content, record.found)
    record.found.extend(clips.problems(clip_fields(content)))
    if row is None or record.found:
        return None
    own = ids.take(wanted, record.found)
    if own is None:
        return None
    line = row.model_copy(update={"id": own}).model_dump_json(exclude_none=True).encode() + b"\n"
    if len(line) > MAX_LINE:
        record.found.append(("", f"must have at most {MAX_LINE} bytes: got {len(line)}"))
        return None
    return line


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


def _id(record: Record, said: str | None, number: int) -> str:
    """The source's own, as one that can be part of a file name; else the row's number."""
    own = record.key if said is None else said
    return fitting(own) if own else f"row-{number}"


def _drop(record: Record, progress: Progress, folder: Folder) -> None:
    assert record.found, "a row is dropped for a reason"
    for field, message in record.found:
        folder.problems.write(f"{record.problem(field, message)}\n".encode())
    _count(progress.reasons, {rule_of(field, message) for field, message in record.found})


def _count(counts: dict[str, int], names: set[str]) -> None:
    for name in sorted(names):
        name = name if name in counts or len(counts) < KINDS else "others"
        counts[name] = counts.get(name, 0) + 1


def _check_form(files: Sequence[Path]) -> None:
    """ValueError: no row among the first has the keys of a form that is read; why the first has not."""
    why: str | None = None
    for record in islice(records(files), LOOKED):
        if record.content is not None and form_of(record) is not None:
            return
        why = why or str(record.problem(*record.found[0]))
    raise ValueError(why or f"{files[0]}: has no row")


def _identity(files: Sequence[Path], root: Path, max_seconds: float, limit: int | None) -> dict[str, Any]:
    stats = [(file, file.stat()) for file in files]
    return {
        "files": [[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in stats],
        "audio": str(root.absolute()),
        "max_seconds": max_seconds,
        "limit": limit,
    }
