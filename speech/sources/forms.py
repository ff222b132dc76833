"""What the rows of a source mean: whose keys they have, and the row that they make.

    ours      messages, audios, sft_target_text, sft_target_audio: WavAlign's published rows, and our own
    history   WavAlign's older rows: question_text, question_audio, history, answer_text, answer_audio_path
    swift     ms-swift's messages and audios; the last assistant turn is the reference reply
    vita      VITA-Audio's own: the same with WavAlign's marker

Each row is read as what it is: a source may hold several. Invariant: a clip is bound to its marker before a
turn is left out, so none can change places; what changes a prompt is read, or its row is not used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from speech.manifest import MARKER
from speech.problems import Found, validated
from speech.sources.record import Record
from speech.sources.turns import (
    Clip,
    Part,
    Said,
    Turn,
    asked,
    bound,
    clips,
    of_history,
    replied,
    sounds,
    up_to_the_question,
)

Form = Literal["ours", "history", "swift", "vita"]
FORMS: dict[Form, str] = {
    "ours": "rows with sft_target_text and sft_target_audio (WavAlign's, or wavgate's own)",
    "history": "WavAlign's older rows (question_text, history, answer_text)",
    "swift": "ms-swift's rows (the last assistant turn is the reference reply)",
    "vita": "VITA-Audio's rows (the last assistant turn is the reference reply)",
}
TAG = "<audio>"  # ms-swift's marker
REFERENCE = frozenset({"sft_target_text", "sft_target_audio"})
SYSTEM = ("system", "system_prompt")
PROMPT = frozenset({"tools", "functions", "images", "image", "videos", "video", "documents"})
TURN = PROMPT | {"tool_calls", "function_call", "audio", "audios"}
"""Keys, of a row and of a turn, that change a prompt and that nothing is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row whose clips are not files yet. ``id`` may be missing, and may be no file name."""

    fields: dict[str, Any]  # of a Row, but for its clips
    audios: tuple[tuple[Clip, ...], ...]
    reply: tuple[Clip, ...]


class _Any(BaseModel):
    """What a row of any form may have; keys that no form has are not read."""

    id: Annotated[str | None, BeforeValidator(lambda given: str(given) if type(given) is int else given)] = None
    question_text: str | None = None
    task_type: str | None = None
    system: str | None = None
    system_prompt: str | None = None


class _Ours(_Any):
    messages: tuple[Said, ...] = Field(min_length=1)
    audios: Any = None
    sft_target_text: str
    sft_target_audio: Any = None
    answer: Any = None
    style: Any = None


class _Older(_Any):
    question_audio: Any = None
    history: str | None = None
    history_text: str | None = None
    answer_text: str | None = None
    sft_target_text: str | None = None
    answer_audio_path: Any = None
    sft_target_audio: Any = None


class _Swift(_Any):
    messages: tuple[Said, ...] = Field(min_length=1)
    audios: Any = None


MODELS: dict[Form, type[_Any]] = {"ours": _Ours, "history": _Older, "swift": _Swift, "vita": _Swift}
KEYS = PROMPT.union(*(model.model_fields for model in MODELS.values()))
"""Keys of rows that are looked at."""


def given(record: Record) -> dict[str, Any]:
    """The keys of a row that have a value: tables have null where a row has nothing."""
    return {key: value for key, value in (record.content or {}).items() if value is not None}


def form_of(record: Record) -> Form | None:
    """Whose keys a row has; None: nobody's that are read, which goes to ``record.found``."""
    row = given(record)
    if "messages" in row:
        written = "".join(turn["content"] for turn in _turns(row) if isinstance(turn.get("content"), str))
        null = REFERENCE & (record.content or {}).keys()  # a column, in which this row has nothing
        if REFERENCE & row.keys() or (null and not (TAG in written and MARKER not in written)):
            return "ours"
        return "vita" if MARKER in written and TAG not in written else "swift"
    if row.keys() & {"question_text", "question_audio"}:
        return "history"
    rule = "must have messages, or question_text and answer_text"
    record.found.append(("", f"{rule}: got {', '.join(sorted(row)[:20]) or 'nothing'}"))
    return None


def unread(record: Record, form: Form) -> set[str]:
    """Keys of a row, and of its turns, that nothing is made of."""
    row = given(record)
    turns = {f"messages.{key}" for turn in _turns(row) for key, value in turn.items() if _filled(value)}
    return (row.keys() - MODELS[form].model_fields.keys()) | (turns - {"messages.role", "messages.content"})


def draft(record: Record, form: Form) -> Draft | None:
    """The row, or None; what is wrong with it goes to ``record.found``."""
    found, checked = record.found, None
    found += _unread_prompt(given(record))
    match validated(MODELS[form], given(record), found):
        case _Ours() as row:
            turns = up_to_the_question(bound(row.messages, row.audios, MARKER, found))
            text, reply = row.sft_target_text, clips("sft_target_audio", row.sft_target_audio)
            checked = {"answer": row.answer, "style": row.style}
        case _Older() as row:
            turns, text, reply = _older(row)
        case _Swift() as row:
            marker = MARKER if form == "vita" else TAG
            turns, text, reply = replied(bound(row.messages, row.audios, marker, found), found)
        case _:
            return None
    turns = _instructed(turns, row, found)
    if not reply and not found:
        found.append(("sft_target_audio", "the reference reply must have sound: no clip is named"))
    question = row.question_text or asked(turns)
    if not question and not found:
        found.append(("question_text", "key is missing, and the last question has no words to take its place"))
    if found:
        return None
    messages = [
        {"role": role, "content": "".join(part if isinstance(part, str) else MARKER for part in said)}
        for role, said in turns
    ]
    audios = sounds(turns)
    fields = {
        "id": row.id,
        "messages": messages,
        "question_text": question,
        "task_type": row.task_type or ("s2s" if audios else "tts"),  # WavAlign's words for the two
        "sft_target_text": text,
    }
    return Draft(fields=fields | (checked or {}), audios=audios, reply=reply)


def _turns(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turns of a row that was not validated."""
    messages = row.get("messages")
    return [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []


def _filled(value: Any) -> bool:
    said = value.strip() if isinstance(value, str) else value  # ms-swift's rows hold lists as JSON
    return said is not None and said not in ("", "[]", "{}", "null", [], {}, ())


def _unread_prompt(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys without which the row would be another question."""
    rule = "must be empty: it is part of the prompt, and nothing is made of it"
    yield from ((key, rule) for key in sorted(PROMPT & row.keys()) if _filled(row[key]))
    for i, turn in enumerate(_turns(row)):
        yield from ((f"messages[{i}].{key}", rule) for key in sorted(TURN & turn.keys()) if _filled(turn[key]))
    rule = "must not be false: the last turn would be the reference reply, and it is marked as none"
    marks = (("label", row), (f"messages[{len(_turns(row)) - 1}].loss", (_turns(row) or [{}])[-1]))
    yield from ((place, rule) for place, of in marks if of.get(place.rpartition(".")[2]) is False)


def _instructed(turns: list[Turn], row: _Any, found: Found) -> list[Turn]:
    """With the system prompt of a key of its own as the first turn."""
    for field in SYSTEM:
        words = (getattr(row, field) or "").strip()
        first = turns[0] if turns and turns[0][0] == "system" else None
        if words and first is None:
            turns = [("system", (words,)), *turns]
        elif words and first is not None and first[1] != (words,):
            found.append((field, "must not stand beside a system turn, or another such key, of other words"))
    return turns


def _older(row: _Older) -> tuple[list[Turn], str, tuple[Clip, ...]]:
    """History, then the question's words and sound, as their loader puts them together."""
    turns = list(of_history(row.history or row.history_text))
    words = (row.question_text or "").strip()
    sound = clips("question_audio", row.question_audio)
    between = "\n\n" if words and sound else ""
    question: list[Part] = [*([words + between] if words else []), *([sound] if sound else [])]
    turns += [("user", tuple(question))] if question else []
    reply = clips("answer_audio_path", row.answer_audio_path) or clips("sft_target_audio", row.sft_target_audio)
    return turns, row.answer_text or row.sft_target_text or "", reply
