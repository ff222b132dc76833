"""A whole group ranked in one call -> win rates on the scale.

Invariant: a ranking names every reply once, or it is none. Repeats show the group in another order each (odd
ones backwards), so that a leaning to a place shows as spread.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from judge.endpoint.chat import ChatAnswer
from judge.llm.answers import (
    AnswerMode,
    AnswerSampling,
    Reading,
    check_english,
    constrain_to_schema,
    parse_json_reply,
    parse_tag_content,
    quote_answer,
    shorten_reason,
)
from judge.llm.caller import JudgeCaller, JudgeQuestion
from judge.llm.capabilities import Capabilities
from judge.llm.pairwise import Contest
from judge.llm.reply_judge import ask_questions, combine_repeats, rescale_score
from judge.types import CallFailed, MissingVerdict, Scale, Verdict

GROUPWISE_VERSION = 1
RANKING_DESCRIPTION = "the numbers of all replies, the best one first"


class RankingReply(BaseModel):
    """What a judge returns for a group."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str
    ranking: list[int]


async def rank_candidates(
    caller: JudgeCaller,
    capabilities: Capabilities,
    contest: Contest,
    *,
    scale: Scale,
    repeats: int,
    sampling: AnswerSampling,
) -> list[Verdict]:
    """A verdict per candidate, in order: ``repeats`` calls, all needed. ValueError: no repeats."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1: got {repeats}")
    mode = capabilities.ranking
    name = f"openai({caller.model} {_groupwise_rubric_id(contest)} {mode})"
    questions = [
        build_ranking_question(contest, mode=mode, sampling=sampling, judge=name, repeat=repeat)
        for repeat in range(repeats)
    ]
    outcomes = await ask_questions(caller, questions)
    verdicts: list[Verdict] = []
    for index in range(len(contest.candidates)):
        candidate_outcomes = [outcome if isinstance(outcome, CallFailed) else [outcome[index]] for outcome in outcomes]
        verdict = combine_repeats(candidate_outcomes, name)
        verdicts.append(verdict if isinstance(verdict, MissingVerdict) else rescale_score(verdict, 0.0, 1.0, scale))
    return verdicts


def build_ranking_question(
    contest: Contest, *, mode: AnswerMode, sampling: AnswerSampling, judge: str = "", repeat: int = 0
) -> JudgeQuestion:
    """What is asked about a whole group, shown in the order of this repeat."""
    order = order_candidates(len(contest.candidates), repeat)
    return contest.question(
        {str(place): contest.candidates[index] for place, index in enumerate(order, start=1)},
        kind=_groupwise_rubric_id(contest),
        judge=judge,
        answer_rule=write_ranking_instructions(mode),
        settings=_build_ranking_settings(mode, sampling),
        read=partial(read_ranking, mode, order),
        repeat=repeat,
        readings=len(order),
    )


def _groupwise_rubric_id(contest: Contest) -> str:
    return f"groupwise-{GROUPWISE_VERSION}:{contest.rubric.id}"


def order_candidates(count: int, repeat: int) -> tuple[int, ...]:
    """Which reply is shown in which place: turned on by one every second repeat, odd repeats backwards."""
    turned = [(place + repeat // 2) % count for place in range(count)]
    return tuple(turned if repeat % 2 == 0 else reversed(turned))


def write_ranking_instructions(mode: AnswerMode) -> str:
    """The words that tell the judge how to answer."""
    if mode == "schema":
        return (
            'Answer with one JSON object of two fields in this order: "reason", one or two English '
            f'sentences, then "ranking", {RANKING_DESCRIPTION}.'
        )
    return (
        "Give your reason in one or two English sentences. Then end your answer with "
        f"<ranking>...</ranking>, once, and between the tags {RANKING_DESCRIPTION}, with commas between them."
    )


def read_ranking(mode: AnswerMode, order: Sequence[int], answer: ChatAnswer) -> list[Reading]:
    """Share of the others that each reply beats, by its index in the group. CallFailed: no ranking."""
    places, reason = parse_ranking(mode, answer.text, len(order))
    check_english(reason)
    shares = {order[place - 1]: 1 - rank / (len(order) - 1) for rank, place in enumerate(places)}
    why = f"ranked {[order[place - 1] for place in places]}: {shorten_reason(reason)}"
    return [Reading(number=shares[index], own_std=None, reason=why) for index in range(len(order))]


def parse_ranking(mode: AnswerMode, text: str, count: int) -> tuple[list[int], str]:
    """(places 1..count, best first; the reason). CallFailed: malformed, out_of_range."""
    if mode == "schema":
        reply = parse_json_reply(RankingReply, text)
        places, reason = reply.ranking, reply.reason
    else:
        listed, reason = parse_tag_content("ranking", text)
        if not re.fullmatch(r"[0-9]{1,4}( *, *[0-9]{1,4})*", listed):
            raise CallFailed("malformed", f"a ranking must be numbers and commas: got {quote_answer(listed)}")
        places = [int(place) for place in listed.split(",")]
    if any(not 1 <= place <= count for place in places):
        raise CallFailed("out_of_range", f"a ranking must name replies 1 to {count}: got {quote_answer(text)}")
    if sorted(places) != list(range(1, count + 1)):
        raise CallFailed("malformed", f"a ranking must name each of {count} once: got {quote_answer(text)}")
    return places, reason


def _build_ranking_settings(mode: AnswerMode, sampling: AnswerSampling) -> dict[str, Any]:
    body = sampling.fields(mode)
    if mode == "tagged":
        return body
    schema = {
        "type": "object",
        "properties": {
            "reason": {"type": "string"},
            "ranking": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["reason", "ranking"],
        "additionalProperties": False,
    }
    return body | constrain_to_schema("ranking", schema)
