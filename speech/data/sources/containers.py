"""Which container a source is, by its name alone: .jsonl, .parquet, .tar, or a folder of ``save_to_disk``."""

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path

from speech.data.problems import RowProblems, iterate_numbered_lines, parse_object
from speech.data.sources.record import SourceRecord

SOURCE_SUFFIXES = (".jsonl", ".parquet", ".tar")
SAVED_STATE_FILE = "state.json"
ARRAY_SEARCH_BYTES = 4096  # bytes in which white space may precede an array


def list_source_files(paths: Sequence[Path]) -> list[Path]:
    """The files that hold the rows, in the order they are read. ValueError: not a source that is read."""
    first = paths[0]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: does not exist")
        if not path.is_dir() and not path.is_file():
            raise ValueError(f"{path}: must be a file, which can be read twice: got a pipe or a device")
        if path.is_dir() and len(paths) > 1:
            raise ValueError(f"{path}: a folder must be the only source: got {len(paths)}")
    named: dict[tuple[int, int], Path] = {}
    for path in paths:
        inode = path.stat().st_dev, path.stat().st_ino
        if inode in named:
            raise ValueError(f"{path}: must be named once: it is the same file as {named[inode]}")
        named[inode] = path
    if first.is_dir():
        if not (first / SAVED_STATE_FILE).is_file():
            raise ValueError(_explain_unread_folder(first))
        from speech.data.sources.tables import list_saved_files

        return list_saved_files(first)
    for path in paths:
        if path.suffix not in SOURCE_SUFFIXES:
            rule = f"must be {', '.join(SOURCE_SUFFIXES)} or a folder that save_to_disk wrote"
            raise ValueError(f"{path}: {rule}: got {path.suffix or 'no suffix'}")
        if path.suffix != first.suffix:
            raise ValueError(f"{path}: sources must be of one kind: got {path.suffix} beside {first.suffix}")
        if path.suffix == ".jsonl" and _begins_array(path):
            raise ValueError(f"{path}: must have an object on each line, it is one array: jq -c '.[]' IN > OUT")
    return list(paths)


def read_records(files: Sequence[Path]) -> Iterator[SourceRecord]:
    """Every row of ``list_source_files`` a source. The same files give the same records in the same order."""
    for file in files:
        match file.suffix:
            case ".jsonl":
                yield from _read_json_records(file)
            case ".tar":
                from speech.data.sources.shards import read_shard_samples

                yield from read_shard_samples(file)
            case _:
                from speech.data.sources.tables import read_table_rows

                yield from read_table_rows(file)


def _read_json_records(file: Path) -> Iterator[SourceRecord]:
    for number, _, text in iterate_numbered_lines(file):
        problems: RowProblems = []
        yield SourceRecord(file=file, line=number, content=parse_object(text, problems), problems=problems)


def _begins_array(path: Path) -> bool:
    """Whether a file of JSON is one list, on one line or on many."""
    with path.open("rb") as file:
        return file.read(ARRAY_SEARCH_BYTES).removeprefix(BOM_UTF8).lstrip().startswith(b"[")


def _explain_unread_folder(folder: Path) -> str:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{SAVED_STATE_FILE}"))
        return f"{folder}: holds several data sets, name one of its folders: {', '.join(splits)}"
    return (
        f"{folder}: a folder must be one that save_to_disk wrote, with {SAVED_STATE_FILE}; name files one by one "
        f"({folder}/*.parquet)"
    )
