"""Turns of a dialogue with their clips bound to them: cut, read from older history."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal

from pydantic import BaseModel

from speech.data.manifest import split_at_markers
from speech.data.problems import RowProblems

SourceClip = tuple[str, Any]  # the name of its field, and the clip as the source has it
SourceTurnPart = str | tuple[SourceClip, ...]  # words, or the clips of one marker
SourceTurn = tuple[str, tuple[SourceTurnPart, ...]]  # role, and what is said in its order
HISTORY_MARK = re.compile(r"\[(USER|ASSISTANT)\]")


class SourceMessage(BaseModel):
    """A turn as others write it; what else they keep in it is not read."""

    role: Literal["system", "user", "assistant"]
    content: str


def list_source_clips(field: str, given: Any) -> tuple[SourceClip, ...]:
    """One clip, or a list of clips that are played one after another; nothing: none."""
    if isinstance(given, (list, tuple)):
        return tuple((f"{field}[{i}]", clip) for i, clip in enumerate(given))
    return () if given is None or given == "" else ((field, given),)


def bind_clips_to_turns(
    messages: Sequence[SourceMessage], audios: Any, marker: str, problems: RowProblems
) -> list[SourceTurn]:
    """The turns, a marker's clips in its place. A written turn loses the white space around it, no other."""
    given = list(audios) if isinstance(audios, (list, tuple)) else [] if audios is None else [audios]
    markers = sum(message.content.count(marker) for message in messages)
    if markers != len(given):
        problems.append(("audios", f"must have one entry per {marker}: got {len(given)} for {markers}"))
        return []
    entries = iter([list_source_clips(f"audios[{i}]", entry) for i, entry in enumerate(given)])
    turns: list[SourceTurn] = []
    for i, message in enumerate(messages):
        written = marker not in message.content
        parts = split_at_markers(message.content.strip() if written else message.content, marker)
        if not parts:
            problems.append((f"messages[{i}].content", "must not be blank"))
        turns.append((message.role, tuple(next(entries) if part == marker else part for part in parts)))
    problems += [
        (f"audios[{i}]", "must name a clip") for i, entry in enumerate(given) if not list_source_clips("", entry)
    ]
    return turns


def drop_trailing_replies(turns: Sequence[SourceTurn]) -> list[SourceTurn]:
    """Without the assistant's turns at the end: what was answered then is no part of the prompt."""
    end = len(turns)
    while end and turns[end - 1][0] == "assistant":
        end -= 1
    return list(turns[:end])


def split_off_reply(
    turns: Sequence[SourceTurn], problems: RowProblems
) -> tuple[list[SourceTurn], str, tuple[SourceClip, ...]]:
    """The turns before the last answer, its words, its clips."""
    prompt = drop_trailing_replies(turns)
    answer = turns[len(prompt) :]
    if not answer and not problems:
        problems.append(("messages", "must end with the assistant's turn, which is the reference reply"))
    spoken = [any(not isinstance(part, str) for part in parts) for _, parts in answer]
    if any(spoken) and not all(spoken):
        silent = len(prompt) + spoken.index(False)
        problems.append((f"messages[{silent}]", "must have sound, as the other turns of the reference reply have"))
    return (
        prompt,
        " ".join(_collect_words(answer)),
        tuple(clip for marker_clips in collect_turn_clips(answer) for clip in marker_clips),
    )


def collect_turn_clips(turns: Iterable[SourceTurn]) -> tuple[tuple[SourceClip, ...], ...]:
    """The clips of every marker, in order."""
    return tuple(part for _, parts in turns for part in parts if not isinstance(part, str))


def _collect_words(turns: Iterable[SourceTurn]) -> list[str]:
    """Every stretch of words, without white space around it."""
    return [part.strip() for _, parts in turns for part in parts if isinstance(part, str) and part.strip()]


def parse_history(text: str | None) -> Iterator[SourceTurn]:
    """ "[USER] hello [ASSISTANT] hi" as turns; without both of these marks, one turn of the user's."""
    text = (text or "").strip()
    marks = {match[1] for match in HISTORY_MARK.finditer(text)}
    if marks != {"USER", "ASSISTANT"}:
        yield from [("user", (text,))] if text else []
        return
    pieces = HISTORY_MARK.split(text[text.index("[USER]") :])[1:]  # what stands before the first is not said
    for role, words in zip(pieces[::2], pieces[1::2], strict=True):
        if words.strip():
            yield role.lower(), (words.strip(),)


def collect_question_words(turns: Iterable[SourceTurn]) -> str:
    """The user's words, all turns of them; nothing where the last question is sound alone."""
    turns = list(turns)
    last = takewhile(lambda turn: turn[0] == "user", reversed(turns))
    return "\n\n".join(_collect_words(turn for turn in turns if turn[0] == "user")) if _collect_words(last) else ""
