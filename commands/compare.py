"""``wavgate compare``: a study's page for any finished runs, a blind listening page, and what people said."""

import sys
from collections.abc import Sequence
from pathlib import Path

from actors.errors import UserError
from actors.exits import OK
from report.study import findings as study
from report.study import listen, votes
from report.study.of_runs import build_study_from_runs
from report.study.tables import summarise_study
from report.study.write import write_study_files

MAX_LISTENING_PAIRS = 200


def compare_runs(runs: Sequence[Path], to: Path, sides: Sequence[str] | None, most: int, seed: int) -> int:
    """Write ``to``/compare.html and its tables, and listen.html where the runs kept audio.

    UserError: not finished runs of the same test prompts and judge, or no such side.
    """
    if not runs:
        raise UserError("compare: give one finished run or more, or --votes FILE")
    if not 1 <= most <= MAX_LISTENING_PAIRS:
        raise UserError(f"--pairs: must be from 1 to {MAX_LISTENING_PAIRS}: got {most}")
    try:
        given = build_study_from_runs(runs)
        chosen = listen.choose_sides(given, sides)
        study_figures = study.compute_findings(given)
        written = write_study_files(study_figures, to, "compare")
    except ValueError as error:
        raise UserError(str(error)) from error
    print("\n".join(summarise_study(study_figures)))
    print(f"page:   {written[0]}")
    try:
        page = listen.write_listening_page(*chosen, to, most, seed)
    except ValueError as error:
        print(f"note: no listening page: {error}", file=sys.stderr)
        return OK
    print(f"listen: {page} ({chosen[0].name} against {chosen[1].name}, which the page hides)")
    return OK


def print_vote_summary(files: Sequence[Path], runs: Sequence[Path]) -> int:
    """What several raters said. UserError: not files that the listening page saved, or not about the same."""
    if runs:
        raise UserError("--votes: stands without runs: the files know what they are about")
    try:
        read = [(file, votes.read_votes(file)) for file in files]
        print("\n".join(votes.format_votes(read)))
    except ValueError as error:
        raise UserError(str(error)) from error
    return OK
