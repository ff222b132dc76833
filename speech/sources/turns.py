"""Turns of a dialogue with their clips bound to them: cut, read from older history."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal

from pydantic import BaseModel

from speech.manifest import parts
from speech.problems import Found

Clip = tuple[str, Any]  # the name of its field, and the clip as the source has it
Part = str | tuple[Clip, ...]  # words, or the clips of one marker
Turn = tuple[str, tuple[Part, ...]]  # role, and what is said in its order
HISTORY = re.compile(r"\[(USER|ASSISTANT)\]")


class Said(BaseModel):
    """A turn as others write it; what else they keep in it is not read."""

    role: Literal["system", "user", "assistant"]
    content: str


def clips(field: str, given: Any) -> tuple[Clip, ...]:
    """One clip, or a list of clips that are played one after another; nothing: none."""
    if isinstance(given, (list, tuple)):
        return tuple((f"{field}[{i}]", one) for i, one in enumerate(given))
    return () if given is None or given == "" else ((field, given),)


def bound(messages: Sequence[Said], audios: Any, marker: str, found: Found) -> list[Turn]:
    """The turns, a marker's clips in its place. A written turn loses the white space around it, no other."""
    given = list(audios) if isinstance(audios, (list, tuple)) else [] if audios is None else [audios]
    markers = sum(message.content.count(marker) for message in messages)
    if markers != len(given):
        found.append(("audios", f"must have one entry per {marker}: got {len(given)} for {markers}"))
        return []
    entries = iter([clips(f"audios[{i}]", one) for i, one in enumerate(given)])
    turns: list[Turn] = []
    for i, message in enumerate(messages):
        written = marker not in message.content
        said = parts(message.content.strip() if written else message.content, marker)
        if not said:
            found.append((f"messages[{i}].content", "must not be blank"))
        turns.append((message.role, tuple(next(entries) if part == marker else part for part in said)))
    found += [(f"audios[{i}]", "must name a clip") for i, one in enumerate(given) if not clips("", one)]
    return turns


def up_to_the_question(turns: Sequence[Turn]) -> list[Turn]:
    """Without the assistant's turns at the end: what was answered then is no part of the prompt."""
    end = len(turns)
    while end and turns[end - 1][0] == "assistant":
        end -= 1
    return list(turns[:end])


def replied(turns: Sequence[Turn], found: Found) -> tuple[list[Turn], str, tuple[Clip, ...]]:
    """The turns before the last answer, its words, its clips."""
    prompt = up_to_the_question(turns)
    answer = turns[len(prompt) :]
    if not answer and not found:
        found.append(("messages", "must end with the assistant's turn, which is the reference reply"))
    return prompt, " ".join(_words(answer)), tuple(clip for one in sounds(answer) for clip in one)


def sounds(turns: Iterable[Turn]) -> tuple[tuple[Clip, ...], ...]:
    """The clips of every marker, in order."""
    return tuple(part for _, said in turns for part in said if not isinstance(part, str))


def _words(turns: Iterable[Turn]) -> list[str]:
    """Every stretch of words, without white space around it."""
    return [part.strip() for _, said in turns for part in said if isinstance(part, str) and part.strip()]


def of_history(text: str | None) -> Iterator[Turn]:
    """ "[USER] hello [ASSISTANT] hi" as turns; without both of these marks, one turn of the user's."""
    text = (text or "").strip()
    marks = {match[1] for match in HISTORY.finditer(text)}
    if marks != {"USER", "ASSISTANT"}:
        yield from [("user", (text,))] if text else []
        return
    told = HISTORY.split(text[text.index("[USER]") :])[1:]  # what stands before the first is not said
    for role, said in zip(told[::2], told[1::2], strict=True):
        if said.strip():
            yield role.lower(), (said.strip(),)


def asked(turns: Iterable[Turn]) -> str:
    """The user's words, all turns of them; nothing where the last question is sound alone."""
    turns = list(turns)
    last = takewhile(lambda turn: turn[0] == "user", reversed(turns))
    return "\n\n".join(_words(turn for turn in turns if turn[0] == "user")) if _words(last) else ""
