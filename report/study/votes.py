"""What people said who listened blind: several raters' files put together, and a sign test.

A prompt goes to the side that more than half of all votes on it prefer, over raters and seeds, else it is a
tie; who skipped it has not voted. Seeds of a prompt are not independent, so a prompt counts once. The test is
two-sided and leaves ties out, as the paper's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from report.records import FrozenRecord
from report.run.table import align_columns
from report.study.paired import sign_test
from speech.data.problems import UNPRINTABLE_CHARACTERS

VoteFormat = Literal["wavgate-votes-2"]
VoteQuestion = Literal["helpfulness", "naturalness", "overall"]
VOTE_FORMAT: VoteFormat = "wavgate-votes-2"
VOTE_QUESTIONS: tuple[VoteQuestion, ...] = get_args(VoteQuestion)
VoteChoice = Literal["left", "right", "tie", "skip"]


def _check_printable(text: str) -> str:
    if UNPRINTABLE_CHARACTERS.search(text):
        raise ValueError("must have no control characters")
    return text


PrintableText = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_check_printable)]


class Vote(FrozenRecord):
    """One answer about one pair."""

    item: PrintableText  # row_id/seed
    question: VoteQuestion
    vote: VoteChoice


class RaterVotes(FrozenRecord):
    """A rater's file, as the listening page saves it. ``left`` and ``right``: the sides, not the buttons."""

    format: VoteFormat
    page: str = Field(pattern=r"^[0-9a-f]{16}$")  # whose votes these are: other pages have other pairs
    rater: PrintableText
    left: PrintableText
    right: PrintableText
    votes: tuple[Vote, ...]

    @model_validator(mode="before")
    @classmethod
    def _refuse_unfinished(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.get("left", "") is None:
            raise ValueError("was saved midway, without the sides: answer the rest, then save again")
        return content

    @model_validator(mode="after")
    def _check_one_vote_each(self) -> Self:
        votes_by_question = Counter((vote.item, vote.question) for vote in self.votes)
        twice = next((key for key, count in votes_by_question.items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"a pair must have one vote per question: {twice[0]}, {twice[1]} has more")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteTally:
    """Prompts by who won them. ``share``: wins of wins and losses; None: nobody preferred anything."""

    question: VoteQuestion
    wins: int
    losses: int
    ties: int
    unvoted: int  # every rater skipped it
    share: float | None
    p: float


def read_votes(file: Path) -> RaterVotes:
    """ValueError: not a file that the listening page saved, as file: field: rule."""
    try:
        return RaterVotes.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file}: must be a readable file: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = f"{f'{field}: ' if field else ''}{first['msg']}"
        raise ValueError(
            f"{file}: {UNPRINTABLE_CHARACTERS.sub(lambda match: ascii(match[0])[1:-1], problem)}"
        ) from None


def tally_votes(files: Sequence[tuple[Path, RaterVotes]]) -> list[VoteTally]:
    """One tally per question. ValueError: another page than the first file's, or a rater twice."""
    (first, known), *others = files
    for file, votes in others:
        if votes.page != known.page:
            raise ValueError(f"{file}: must be of page {known.page} as {first}: got {votes.page}")
        if (votes.left, votes.right) != (known.left, known.right):
            rule = f"must be about {known.left} and {known.right} as in {first}"
            raise ValueError(f"{file}: {rule}: got {votes.left} and {votes.right}")
    raters: dict[str, Path] = {}
    for file, votes in files:
        if raters.setdefault(votes.rater, file) != file:
            rule = f"every file must be another rater's: {votes.rater!r} is in {raters[votes.rater]} too"
            raise ValueError(f"{file}: {rule}")
    return [_tally_question(question, [votes for _, votes in files]) for question in VOTE_QUESTIONS]


def _tally_question(question: VoteQuestion, files: Sequence[RaterVotes]) -> VoteTally:
    by_prompt: dict[str, list[VoteChoice]] = {}
    for votes in files:
        for vote in votes.votes:
            if vote.question == question:
                prompt = vote.item.rpartition("/")[0] or vote.item
                by_prompt.setdefault(prompt, []).append(vote.vote)
    counts = Counter(find_majority(choices) for choices in by_prompt.values())
    wins, losses = counts["left"], counts["right"]
    return VoteTally(
        question=question,
        wins=wins,
        losses=losses,
        ties=counts["tie"],
        unvoted=counts["skip"],
        share=wins / (wins + losses) if wins + losses else None,
        p=sign_test(wins, losses),
    )


def find_majority(choices: Sequence[VoteChoice]) -> VoteChoice:
    """What more than half of those who voted say, else a tie; "skip" when nobody voted."""
    voted = [choice for choice in choices if choice != "skip"]
    if not voted:
        return "skip"
    choice, count = Counter(voted).most_common(1)[0]
    return choice if 2 * count > len(voted) else "tie"


def format_votes(files: Sequence[tuple[Path, RaterVotes]]) -> list[str]:
    """For a terminal."""
    known = files[0][1]
    raters = ", ".join(votes.rater for _, votes in files)
    table: list[tuple[str, ...]] = [("", f"{known.left} wins", f"{known.right} wins", "ties", "no vote", "share", "p")]
    for tally in tally_votes(files):
        share = "-" if tally.share is None else f"{tally.share:.1%}"
        counts = (tally.wins, tally.losses, tally.ties, tally.unvoted)
        table.append((tally.question, *map(str, counts), share, f"{tally.p:.4f}"))
    caption = f"{len(files)} raters: {raters}; a prompt goes to who has more than half of its votes"
    return [caption, *align_columns(table)]
