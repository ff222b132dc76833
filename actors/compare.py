"""``wavgate compare``: a study's page for any finished runs, a blind listening page, and what people said."""

import sys
from collections.abc import Sequence
from pathlib import Path

from actors.errors import UserError
from report import listen, study, votes
from report.study_of_runs import study_of
from report.study_tables import summary

OK = 0
MOST_PAIRS = 200


def compare(runs: Sequence[Path], to: Path, sides: Sequence[str] | None, most: int, seed: int) -> int:
    """Write ``to``/compare.html and its tables, and listen.html where the runs kept audio.

    UserError: not finished runs of the same test prompts and judge, or no such side.
    """
    if not runs:
        raise UserError("compare: give one finished run or more, or --votes FILE")
    if not 1 <= most <= MOST_PAIRS:
        raise UserError(f"--pairs: must be from 1 to {MOST_PAIRS}: got {most}")
    try:
        given = study_of(runs)
        chosen = listen.sides_of(given, sides)
        found = study.find(given)
        written = study.write(found, to, "compare")
    except ValueError as error:
        raise UserError(str(error)) from error
    print("\n".join(summary(found)))
    print(f"page:   {written[0]}")
    try:
        page = listen.write(*chosen, to, most, seed)
    except ValueError as error:
        print(f"note: no listening page: {error}", file=sys.stderr)
        return OK
    print(f"listen: {page} ({chosen[0].name} against {chosen[1].name}, which the page hides)")
    return OK


def add_up(files: Sequence[Path], runs: Sequence[Path]) -> int:
    """What several raters said. UserError: not files that the listening page saved, or not about the same."""
    if runs:
        raise UserError("--votes: stands without runs: the files know what they are about")
    try:
        read = [(file, votes.read_votes(file)) for file in files]
        print("\n".join(votes.lines(read)))
    except ValueError as error:
        raise UserError(str(error)) from error
    return OK
