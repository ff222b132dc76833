"""A whole group ranked in one call -> win rates on the scale.

Invariant: a ranking names every reply once, or it is none. Repeats show the group in another order each (odd
ones backwards), so that a leaning to a place shows as spread.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from judge.answers import (
    Mode,
    Reading,
    Sampling,
    check_english,
    json_reply,
    quoted,
    shaped,
    shortened,
    tag_content,
)
from judge.caller import Caller, Question
from judge.capabilities import Capabilities
from judge.chat import Answer
from judge.compare import Contest
from judge.openai_judge import combined, on_scale, settled
from judge.types import CallFailed, Missing, Scale, Verdict

VERSION = 1
MEANS = "the numbers of all replies, the best one first"


class RankingReply(BaseModel):
    """What a judge returns for a group."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reason: str
    ranking: list[int]


async def groupwise(
    caller: Caller,
    capabilities: Capabilities,
    contest: Contest,
    *,
    scale: Scale,
    repeats: int,
    sampling: Sampling,
) -> list[Verdict]:
    """A verdict per candidate, in order: ``repeats`` calls, all needed. ValueError: no repeats."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1: got {repeats}")
    mode = capabilities.ranking
    name = f"openai({caller.model} {_kind(contest)} {mode})"
    questions = [
        ranking_question(contest, mode=mode, sampling=sampling, judge=name, repeat=repeat) for repeat in range(repeats)
    ]
    outcomes = await settled(caller, questions)
    verdicts: list[Verdict] = []
    for index in range(len(contest.candidates)):
        own = [found if isinstance(found, CallFailed) else [found[index]] for found in outcomes]
        verdict = combined(own, name)
        verdicts.append(verdict if isinstance(verdict, Missing) else on_scale(verdict, 0.0, 1.0, scale))
    return verdicts


def ranking_question(
    contest: Contest, *, mode: Mode, sampling: Sampling, judge: str = "", repeat: int = 0
) -> Question:
    """What is asked about a whole group, shown in the order of this repeat."""
    order = presented(len(contest.candidates), repeat)
    return contest.question(
        {str(place): contest.candidates[index] for place, index in enumerate(order, start=1)},
        kind=_kind(contest),
        judge=judge,
        answer_rule=ranking_rule(mode),
        settings=_settings(mode, sampling),
        read=partial(read_ranking, mode, order),
        repeat=repeat,
        readings=len(order),
    )


def _kind(contest: Contest) -> str:
    return f"groupwise-{VERSION}:{contest.rubric.id}"


def presented(count: int, repeat: int) -> tuple[int, ...]:
    """Which reply is shown in which place: turned on by one every second repeat, odd repeats backwards."""
    turned = [(place + repeat // 2) % count for place in range(count)]
    return tuple(turned if repeat % 2 == 0 else reversed(turned))


def ranking_rule(mode: Mode) -> str:
    """The words that tell the judge how to answer."""
    if mode == "schema":
        return (
            'Answer with one JSON object of two fields in this order: "reason", one or two English '
            f'sentences, then "ranking", {MEANS}.'
        )
    return (
        "Give your reason in one or two English sentences. Then end your answer with "
        f"<ranking>...</ranking>, once, and between the tags {MEANS}, with commas between them."
    )


def read_ranking(mode: Mode, order: Sequence[int], answer: Answer) -> list[Reading]:
    """Share of the others that each reply beats, by its index in the group. CallFailed: no ranking."""
    places, reason = parse_ranking(mode, answer.text, len(order))
    check_english(reason)
    shares = {order[place - 1]: 1 - rank / (len(order) - 1) for rank, place in enumerate(places)}
    why = f"ranked {[order[place - 1] for place in places]}: {shortened(reason)}"
    return [Reading(number=shares[index], own_std=None, reason=why) for index in range(len(order))]


def parse_ranking(mode: Mode, text: str, count: int) -> tuple[list[int], str]:
    """(places 1..count, best first; the reason). CallFailed: malformed, out_of_range."""
    if mode == "schema":
        reply = json_reply(RankingReply, text)
        places, reason = reply.ranking, reply.reason
    else:
        listed, reason = tag_content("ranking", text)
        if not re.fullmatch(r"[0-9]{1,4}( *, *[0-9]{1,4})*", listed):
            raise CallFailed("malformed", f"a ranking must be numbers and commas: got {quoted(listed)}")
        places = [int(place) for place in listed.split(",")]
    if any(not 1 <= place <= count for place in places):
        raise CallFailed("out_of_range", f"a ranking must name replies 1 to {count}: got {quoted(text)}")
    if sorted(places) != list(range(1, count + 1)):
        raise CallFailed("malformed", f"a ranking must name each of {count} once: got {quoted(text)}")
    return places, reason


def _settings(mode: Mode, sampling: Sampling) -> dict[str, Any]:
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
    return body | shaped("ranking", schema)
