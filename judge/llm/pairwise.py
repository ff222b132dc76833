"""Pairs of replies to one prompt, each asked in both orders -> win rates on the scale.

Invariant: a pair counts only when both orders came, so that a leaning to the first reply cancels; a reply has
a rate only when all its pairs with the other survivors have. What is missing alone decides who leaves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import permutations
from math import sqrt
from typing import Any

from judge.endpoint.chat import ChatAnswer
from judge.llm.answers import (
    CHOICE_FORM,
    AnswerMode,
    AnswerSampling,
    Reading,
    build_answer_settings,
    write_answer_instructions,
)
from judge.llm.caller import JudgeCaller, JudgeQuestion, hash_speeches
from judge.llm.capabilities import Capabilities
from judge.llm.reply_judge import ask_questions, failure_to_missing, read_single_answer, rescale_score
from judge.llm.rubric import (
    EVIDENCE_NOTICE,
    ChatMessage,
    Rubric,
    build_audio_parts,
    build_text_parts,
    select_rubric_clips,
)
from judge.types import CallFailed, JudgeTask, MissingVerdict, Scale, ScoredVerdict, Verdict
from rollout.types import Speech

PAIRWISE_VERSION = 1
FLOOR_COMPARISON_JUDGE = "comparison/1"  # the rule for replies that cannot be judged
OrderedPair = tuple[int, int]  # (shown as A, shown as B)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One reply of a group: its sound and what a recogniser heard in it."""

    transcript: str
    speech: Speech


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """Share of the others that a reply beats, a tie half; ``spread``: of the mean, by the two orders."""

    share: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Replies to one prompt that are held against each other under a rubric. ``case``: its name in the log.

    ValueError: fewer than two replies.
    """

    rubric: Rubric
    task: JudgeTask
    candidates: Sequence[Candidate]
    user_audio: Speech | None = None
    case: str = ""

    def __post_init__(self) -> None:
        if len(self.candidates) < 2:
            raise ValueError(f"a comparison needs at least two replies: got {len(self.candidates)}")

    @cached_property
    def about(self) -> str:
        """See ``JudgeQuestion.about``."""
        return hash_speeches(*(candidate.speech for candidate in self.candidates))

    def question(
        self,
        shown: Mapping[str, Candidate],
        *,
        kind: str,
        judge: str,
        answer_rule: str,
        settings: dict[str, Any],
        read: Callable[[ChatAnswer], Sequence[Reading]],
        repeat: int = 0,
        readings: int = 1,
    ) -> JudgeQuestion:
        """One call about named replies. ``kind``: of comparison, rubric and versions."""
        return JudgeQuestion(
            about=self.about,
            case=self.case,
            judge=judge,
            rubric=kind,
            messages=build_comparison_messages(self, shown, answer_rule),
            settings=settings,
            clips=select_rubric_clips(
                self.rubric, self.user_audio, *(candidate.speech for candidate in shown.values())
            ),
            repeat=repeat,
            read=read,
            readings=readings,
        )


async def compare_pairwise(
    caller: JudgeCaller, capabilities: Capabilities, contest: Contest, *, scale: Scale, sampling: AnswerSampling
) -> list[Verdict]:
    """A verdict per candidate, in order: n (n - 1) calls."""
    count = len(contest.candidates)
    pairs: list[OrderedPair] = list(permutations(range(count), 2))
    name = f"openai({caller.model} {_pairwise_rubric_id(contest)} {capabilities.mode})"
    questions = [
        build_pair_question(
            contest, pair, mode=capabilities.mode, forced=capabilities.forced, sampling=sampling, judge=name
        )
        for pair in pairs
    ]
    outcomes = dict(zip(pairs, await ask_questions(caller, questions), strict=True))
    return [
        verdict if isinstance(verdict, MissingVerdict) else rescale_score(verdict, 0.0, 1.0, scale)
        for verdict in score_win_rates(outcomes, count, name)
    ]


def build_pair_question(
    contest: Contest, pair: OrderedPair, *, mode: AnswerMode, forced: bool, sampling: AnswerSampling, judge: str = ""
) -> JudgeQuestion:
    """What is asked about two candidates in one order."""
    first, second = (contest.candidates[index] for index in pair)
    return contest.question(
        {"A": first, "B": second},
        kind=_pairwise_rubric_id(contest),
        judge=judge,
        answer_rule=write_answer_instructions(CHOICE_FORM, mode),
        settings=build_answer_settings(CHOICE_FORM, mode, sampling, forced=forced),
        read=partial(read_single_answer, CHOICE_FORM, mode),
    )


def _pairwise_rubric_id(contest: Contest) -> str:
    return f"pairwise-{PAIRWISE_VERSION}:{contest.rubric.id}"


def score_win_rates(
    outcomes: Mapping[OrderedPair, list[ScoredVerdict] | CallFailed], count: int, judge: str
) -> list[ScoredVerdict | MissingVerdict]:
    """Win rates of ``count`` replies, in order; Missing: why a reply has none."""
    scores = {pair: outcome[0] for pair, outcome in outcomes.items() if not isinstance(outcome, CallFailed)}
    rates = compute_win_rates({pair: score.value for pair, score in scores.items()}, count)

    def score_reply(index: int) -> ScoredVerdict | MissingVerdict:
        own_pairs = [pair for pair in outcomes if index in pair]
        if index not in rates:
            # Whoever left missed a pair, and so did the other of the last two.
            failures = (outcome for pair in own_pairs if isinstance(outcome := outcomes[pair], CallFailed))
            return failure_to_missing(next(failures), judge)
        rate = rates[index]
        why = f"beats {rate.share:.2f} of the others"
        cached = all(scores[pair].cached for pair in own_pairs if pair in scores)
        return ScoredVerdict(value=rate.share, judge=judge, spread=rate.spread, why=why, cached=cached)

    return [score_reply(index) for index in range(count)]


def score_unopposed(unjudgeable: int, scale: Scale) -> Verdict:
    """The verdict on the only reply of a group that can be judged, beside ``unjudgeable`` that earn the floor."""
    if unjudgeable:
        return ScoredVerdict(
            value=scale.hi, judge=FLOOR_COMPARISON_JUDGE, why=f"beats {unjudgeable} that cannot be judged"
        )
    reason = "no other reply of the group can be judged"
    return MissingVerdict(judge=FLOOR_COMPARISON_JUDGE, reason=reason, kind="nothing_to_check")


def add_floor_wins(verdicts: Sequence[Verdict], unjudgeable: int, scale: Scale) -> list[Verdict]:
    """A comparison's verdicts in a group with ``unjudgeable`` more replies, which lose to each of these by rule.

    So a reply that the policy made unjudgeable counts among those that are beaten, as any bad one would.
    """
    other_scored = sum(isinstance(verdict, ScoredVerdict) for verdict in verdicts) - 1
    if not unjudgeable or other_scored < 1:
        return list(verdicts)
    weight = other_scored / (other_scored + unjudgeable)

    def raise_verdict(verdict: Verdict) -> Verdict:
        if isinstance(verdict, MissingVerdict):
            return verdict
        value = scale.hi - weight * (scale.hi - verdict.value)
        why = f"{verdict.why}, and {unjudgeable} that cannot be judged"
        return replace(verdict, value=value, spread=weight * verdict.spread, why=why)

    return [raise_verdict(verdict) for verdict in verdicts]


def build_comparison_messages(
    contest: Contest, candidates_by_name: Mapping[str, Candidate], answer_rule: str
) -> list[ChatMessage]:
    """The chat that holds named replies to one prompt against each other, by a rubric's brief and levels."""
    rubric, task, user_audio = contest.rubric, contest.task, contest.user_audio
    listed = "\n".join(f"{level}. {words}" for level, words in enumerate(rubric.levels, start=1))
    system = (
        f"{rubric.system}\n\n{EVIDENCE_NOTICE}\n\nHere you compare replies to one and the same request. These levels "
        f"say what is better:\n{listed}\n\nThe order in which the replies come means nothing. Do not call "
        f"one better for a difference that a listener would not notice.\n\n{answer_rule}"
    )
    texts = {"request": task.question} if rubric.reads else {}
    if rubric.hears_reply and task.style is not None:
        texts["manner asked for"] = task.style
    if rubric.reads:
        texts |= {f"transcript {name}": candidate.transcript for name, candidate in candidates_by_name.items()}
    audio = {"What the user said": user_audio} if rubric.hears_user and user_audio is not None else {}
    if rubric.hears_reply:
        audio |= {f"Reply {name}": candidate.speech for name, candidate in candidates_by_name.items()}
    user = {"role": "user", "content": [*build_text_parts(texts), *build_audio_parts(audio)]}
    return [{"role": "system", "content": system}, user]


def compute_win_rates(chances: Mapping[OrderedPair, float], count: int) -> dict[int, WinRate]:
    """Win rates of ``count`` replies among those that are left when whoever misses most pairs has gone.

    ``chances``: (a, b) -> chance that a, shown first, is better; an order that did not come is not in it.
    Fewer than two survivors: nobody has a rate.
    """
    survivors = select_fully_compared(chances, count)
    rates: dict[int, WinRate] = {}
    for reply in survivors:
        others = [other for other in survivors if other != reply]
        orders = [(chances[reply, other], 1 - chances[other, reply]) for other in others]
        share = sum((first + second) / 2 for first, second in orders) / len(others)
        spread = sqrt(sum(((first - second) / 2) ** 2 for first, second in orders)) / len(others)
        rates[reply] = WinRate(share=share, spread=spread)
    return rates


def select_fully_compared(chances: Mapping[OrderedPair, float], count: int) -> list[int]:
    """Replies with every pair in both orders; whoever misses most leaves first, of equals the last."""
    survivors = list(range(count))
    while True:
        missed_pairs = {
            reply: sum(
                (reply, other) not in chances or (other, reply) not in chances for other in survivors if other != reply
            )
            for reply in survivors
        }
        if not any(missed_pairs.values()):
            return survivors if len(survivors) > 1 else []
        survivors.remove(max(survivors, key=lambda reply: (missed_pairs[reply], reply)))
