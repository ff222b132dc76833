"""Which container a source is, by its name alone: .jsonl, .parquet, .tar, or a folder of ``save_to_disk``."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from speech.problems import Found, lines, parse_object
from speech.sources.record import Record

SUFFIXES = (".jsonl", ".parquet", ".tar")
STATE = "state.json"


def files_of(paths: Sequence[Path]) -> list[Path]:
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
        where = path.stat().st_dev, path.stat().st_ino
        if where in named:
            raise ValueError(f"{path}: must be named once: it is the same file as {named[where]}")
        named[where] = path
    if first.is_dir():
        if not (first / STATE).is_file():
            raise ValueError(_not_a_data_set(first))
        from speech.sources.tables import saved_files

        return saved_files(first)
    for path in paths:
        if path.suffix not in SUFFIXES:
            rule = f"must be {', '.join(SUFFIXES)} or a folder that save_to_disk wrote"
            raise ValueError(f"{path}: {rule}: got {path.suffix or 'no suffix'}")
        if path.suffix != first.suffix:
            raise ValueError(f"{path}: sources must be of one kind: got {path.suffix} beside {first.suffix}")
    return list(paths)


def records(files: Sequence[Path]) -> Iterator[Record]:
    """Every row of ``files_of`` a source. The same files give the same records in the same order."""
    for file in files:
        match file.suffix:
            case ".jsonl":
                yield from _lines(file)
            case ".tar":
                from speech.sources.shards import samples

                yield from samples(file)
            case _:
                from speech.sources.tables import rows

                yield from rows(file)


def _lines(file: Path) -> Iterator[Record]:
    for number, _, text in lines(file):
        found: Found = []
        yield Record(file=file, line=number, content=parse_object(text, found), found=found)


def _not_a_data_set(folder: Path) -> str:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        return f"{folder}: holds several data sets, name one of its folders: {', '.join(splits)}"
    return (
        f"{folder}: a folder must be one that save_to_disk wrote, with {STATE}; name files one by one "
        f"({folder}/*.parquet)"
    )
