"""What files of rows have in common: validation and test are held out, or it is told that they are not."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from actors.errors import UserError
from conf.schema import DataConfig
from speech.data.lazy_rows import LazyRows
from speech.data.manifest import ManifestRow
from speech.data.pairs import PairRow
from speech.data.traces import describe_overlap

RowsFile = tuple[Path, LazyRows[ManifestRow] | LazyRows[PairRow]]
RowsFilesByName = Mapping[str, RowsFile]  # by what they are called


def describe_overlaps(files: RowsFilesByName) -> list[str]:
    """What there is to say, as lines. UserError: two of them are one file, or have the same lines."""
    return [
        line for first_name, other in combinations(files, 2) for line in _describe_overlap(files, first_name, other)
    ] + [
        f"{name}: {rows.traces.echoes} rows have the question's own sound as their reply"
        for name, (_, rows) in files.items()
        if rows.traces.echoes
    ]


def check_held_out(
    data: DataConfig, manifests: Sequence[LazyRows[ManifestRow]], pairs: Sequence[PairRow]
) -> list[str]:
    """What a run should know of its rows, as lines. UserError: it would be tested on what it trains on."""
    train, *held_out = zip((data.train, data.validation, data.test), manifests, strict=True)
    learnt: RowsFilesByName = {"data.train": train}
    if data.pairs is not None and isinstance(pairs, LazyRows):
        learnt = {**learnt, "data.pairs": (data.pairs, pairs)}
    notes = [line for name, file in learnt.items() for line in describe_overlaps({name: file})]
    for name, file in zip(("data.validation", "data.test"), held_out, strict=True):
        notes += [
            line for learnt_name in learnt for line in _describe_overlap({**learnt, name: file}, learnt_name, name)
        ]
    return notes


def _describe_overlap(files: RowsFilesByName, first_name: str, other: str) -> Iterator[str]:
    (path, rows), (second, others) = files[first_name], files[other]
    same = path.samefile(second)
    if same or rows.digest == others.digest:
        got = "the same file" if same else "a copy of it"
        raise UserError(
            f"{other}: must hold other rows than {first_name}, or nothing is held out: got {got}, {second}"
        )
    if common := describe_overlap(rows.traces, others.traces):
        yield f"{other}: is not held out from {first_name}: it shares {common}"
