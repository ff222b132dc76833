"""A source of others as a manifest of ours, row by row: what ``wavgate data convert`` does.

Invariant: a row is in the manifest as it was, or dropped with a reason that is counted and written down as
file:line:field or shard:key:field. What is in the manifest passes ``wavgate data check``.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from speech.data.clips import ClipInspector
from speech.data.manifest import list_clip_fields, make_file_safe_id, validate_manifest_row
from speech.data.problems import MAX_LINE, RowProblems, strip_problem_values
from speech.data.sources.containers import list_source_files, read_records
from speech.data.sources.folder import ConversionFolder, ConversionProgress
from speech.data.sources.forms import DraftRow, detect_row_form, draft_row, list_unread_keys
from speech.data.sources.keep import ClipStore
from speech.data.sources.record import SourceRecord

SAVE_INTERVAL_ROWS = 64  # rows of the source between two notes of how far it is
FORM_CHECK_ROWS = 1000  # rows of the source before one must have been of a form that is read
MAX_ROW_PROBLEMS = 100  # of one row that are written down
MAX_COUNTED_NAMES = 100  # of reasons and keys that are counted apart; a hostile source has no end of them


def convert_source(
    sources: Sequence[Path],
    to: Path,
    max_seconds: float,
    limit: int | None = None,
    audio: Path | None = None,
    tell: Callable[[ConversionProgress], None] = lambda progress: None,
) -> ConversionProgress:
    """Begin, or go on where it was stopped. ``tell`` hears of every row.

    ``limit``: rows of the source that are read; None: all. ``audio``: the folder that names of clips start
    from; None: that of the source. ValueError: not a source, or ``to`` is not for it. OSError: no place.
    """
    files = list_source_files(sources)
    root = audio or (sources[0] if sources[0].is_dir() else sources[0].parent)
    if not root.is_dir():
        raise ValueError(f"--audio {root}: must be a folder")
    source = _identify_source(files, root, max_seconds, limit)
    with ConversionFolder(to, source, lambda: _check_form(files)) as folder:
        progress = folder.progress
        if not progress.finished:
            clips = ClipInspector(to, max_seconds, deep=True)
            keeper = ClipStore(to, root, max_seconds, clips)
            ids = _RowIds(files, progress, folder.read_written_ids())
            for record in islice(read_records(files), progress.done, limit):
                progress.done += 1
                ids.start_file(record.file)
                row = _convert_row(record, progress, keeper, clips, ids)
                if row is None:
                    _drop_row(record, progress, folder)
                else:
                    folder.manifest.write(row)
                    progress.rows += 1
                if progress.done % SAVE_INTERVAL_ROWS == 0:
                    folder.save_progress()
                tell(progress)
            folder.publish()
    return progress


class _RowIds:
    """The ids of the manifest. Within a file of the source each must be new; one that a row of a file before
    has gets the file's name in front, for shards count from the start each.
    """

    def __init__(self, files: Sequence[Path], progress: ConversionProgress, written: Sequence[str]) -> None:
        self._files, self._progress = files, progress
        self._before, self._here = set(written[: progress.before]), set(written[progress.before :])
        stems = [file.stem for file in files]
        counts = Counter(stems)
        self._names = [stem if counts[stem] == 1 else f"{stem}-{at}" for at, stem in enumerate(stems)]

    def start_file(self, file: Path) -> None:
        """The next row is of this file."""
        if file != self._files[self._progress.file]:
            self._before |= self._here
            self._here = set()
            self._progress.file, self._progress.before = self._files.index(file), self._progress.rows

    def claim_id(self, wanted: str, problems: RowProblems) -> str | None:
        """The id that the row has; None: a row of the same file has it, which goes to ``problems``."""
        own = wanted
        if wanted in self._before and wanted not in self._here:
            own = make_file_safe_id(f"{self._names[self._progress.file]}-{wanted}")
            self._progress.renamed += own not in self._before and own not in self._here
        if own in self._before or own in self._here:
            problems.append(("id", f"must be unique: {own} was there before"))
            return None
        self._here.add(own)
        return own


def _convert_row(
    record: SourceRecord, progress: ConversionProgress, keeper: ClipStore, clips: ClipInspector, ids: _RowIds
) -> bytes | None:
    """The line of the manifest, or None: ``record.problems`` says why."""
    form = None if record.content is None or record.problems else detect_row_form(record)
    if form is None:
        return None
    progress.forms[form] = progress.forms.get(form, 0) + 1
    _count_names(progress.unread, list_unread_keys(record, form))
    drafted = draft_row(record, form)
    if drafted is None:
        return None
    wanted = _choose_row_id(record, drafted.fields["id"], progress.done)
    _count_names(progress.unread, _list_unread_files(record, drafted))
    content = _store_clips(record, drafted, keeper) | {"id": wanted}
    if record.problems:
        return None
    row = validate_manifest_row(content, record.problems)
    record.problems.extend(clips.find_problems(list_clip_fields(content)))
    if row is None or record.problems:
        return None
    own = ids.claim_id(wanted, record.problems)
    if own is None:
        return None
    line = row.model_copy(update={"id": own}).model_dump_json(exclude_none=True).encode() + b"\n"
    if len(line) > MAX_LINE:
        record.problems.append(("", f"must have at most {MAX_LINE} bytes: got {len(line)}"))
        return None
    return line


def _list_unread_files(record: SourceRecord, drafted: DraftRow) -> set[str]:
    """Files of a shard's sample that its row does not use."""
    used = {clip for entry in (*drafted.audios, drafted.reply) for _, clip in entry if isinstance(clip, str)}
    return {f"KEY.{name}" for name in record.files if not used & {name, f"{record.key}.{name}"}}


def _store_clips(record: SourceRecord, drafted: DraftRow, keeper: ClipStore) -> dict[str, Any]:
    """The row's fields with its clips as files."""

    def names(entry: Sequence[tuple[str, Any]]) -> Iterator[str]:
        for field, clip in entry:
            try:
                yield keeper.store_clip(clip, record.members)
            except ValueError as error:
                record.problems.append((field, str(error)))

    audios = [list(names(entry)) for entry in drafted.audios]
    return drafted.fields | {"audios": audios, "sft_target_audio": list(names(drafted.reply))}


def _choose_row_id(record: SourceRecord, given_id: str | None, number: int) -> str:
    """The source's own, as one that can be part of a file name; else the row's number."""
    own = record.key if given_id is None else given_id
    return make_file_safe_id(own) if own else f"row-{number}"


def _drop_row(record: SourceRecord, progress: ConversionProgress, folder: ConversionFolder) -> None:
    assert record.problems, "a row is dropped for a reason"
    for field, message in record.problems[:MAX_ROW_PROBLEMS]:
        folder.problems.write(f"{record.locate_problem(field, message)}\n".encode())
    if len(record.problems) > MAX_ROW_PROBLEMS:
        message = f"{len(record.problems)} problems in all, {MAX_ROW_PROBLEMS} listed"
        folder.problems.write(f"{record.locate_problem('', message)}\n".encode())
    _count_names(progress.reasons, {strip_problem_values(field, message) for field, message in record.problems})


def _count_names(counts: dict[str, int], names: set[str]) -> None:
    for name in sorted(names):
        name = name if name in counts or len(counts) < MAX_COUNTED_NAMES else "others"
        counts[name] = counts.get(name, 0) + 1


def _check_form(files: Sequence[Path]) -> None:
    """ValueError: no row among the first has the keys of a form that is read; why the first has not."""
    why: str | None = None
    for record in islice(read_records(files), FORM_CHECK_ROWS):
        if record.content is not None and detect_row_form(record) is not None:
            return
        why = why or str(record.locate_problem(*record.problems[0]))
    raise ValueError(why or f"{files[0]}: has no row")


def _identify_source(files: Sequence[Path], root: Path, max_seconds: float, limit: int | None) -> dict[str, Any]:
    stats = [(file, file.stat()) for file in files]
    return {
        "files": [[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in stats],
        "audio": str(root.absolute()),
        "max_seconds": max_seconds,
        "limit": limit,
    }
