"""What files of rows have in common: validation and test are held out, or it is told that they are not."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from actors.errors import UserError
from conf.schema import Config
from speech.manifest import Row
from speech.pairs import PairRow
from speech.rows import Rows
from speech.traces import shared

File = tuple[Path, Rows[Row] | Rows[PairRow]]
Files = Mapping[str, File]  # by what they are called


def overlaps(files: Files) -> list[str]:
    """What there is to say, as lines. UserError: two of them are one file, or have the same lines."""
    return [line for one, other in combinations(files, 2) for line in _between(files, one, other)] + [
        f"{name}: {rows.traces.echoes} rows have the question's own sound as their reply"
        for name, (_, rows) in files.items()
        if rows.traces.echoes
    ]


def held_out(config: Config, manifests: Sequence[Rows[Row]], pairs: Sequence[PairRow]) -> list[str]:
    """What a run should know of its rows, as lines. UserError: it would be tested on what it trains on."""
    data = config.data
    train, *held = zip((data.train, data.validation, data.test), manifests, strict=True)
    learnt: Files = {"data.train": train}
    if data.pairs is not None and isinstance(pairs, Rows):
        learnt = {**learnt, "data.pairs": (data.pairs, pairs)}
    told = [line for name, file in learnt.items() for line in overlaps({name: file})]
    for name, file in zip(("data.validation", "data.test"), held, strict=True):
        told += [line for one in learnt for line in _between({**learnt, name: file}, one, name)]
    return told


def _between(files: Files, one: str, other: str) -> Iterator[str]:
    (path, rows), (second, others) = files[one], files[other]
    same = path.samefile(second)
    if same or rows.digest == others.digest:
        got = "the same file" if same else "a copy of it"
        raise UserError(f"{other}: must hold other rows than {one}, or nothing is held out: got {got}, {second}")
    if common := shared(rows.traces, others.traces):
        yield f"{other}: is not held out from {one}: it shares {common}"
