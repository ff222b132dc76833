"""What the rows of a source mean: whose keys they have, and the row that they make.

    ours      messages, audios, sft_target_text, sft_target_audio: WavAlign's published rows, and our own
    history   WavAlign's older rows: question_text, question_audio, history, answer_text, answer_audio_path
    swift     ms-swift's messages and audios; the last assistant turn is the reference reply

Invariant: a clip is bound to its marker before a turn is left out, so none can change places.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field

from speech.manifest import MARKER
from speech.problems import validated
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

Form = Literal["ours", "history", "swift"]
FORMS: dict[Form, str] = {
    "ours": "rows with sft_target_text and sft_target_audio (WavAlign's, or wavgate's own)",
    "history": "WavAlign's older rows (question_text, history, answer_text)",
    "swift": "ms-swift's rows (the last assistant turn is the reference reply)",
}
TAG = "<audio>"  # ms-swift's marker


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row whose clips are not files yet. ``id`` may be missing, and may be no file name."""

    fields: dict[str, Any]  # of a Row, but for its clips
    audios: tuple[tuple[Clip, ...], ...]
    reply: tuple[Clip, ...]


class _Any(BaseModel):
    """What a row of any form may have; keys that no form has are not read."""

    id: str | int | None = None
    question_text: str | None = None
    task_type: str | None = None


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


MODELS: dict[Form, type[_Any]] = {"ours": _Ours, "history": _Older, "swift": _Swift}
KEYS = frozenset(key for model in MODELS.values() for key in model.model_fields)  # that a form reads


def given(record: Record) -> dict[str, Any]:
    """The keys of a row that have a value: tables have null where a row has nothing."""
    return {key: value for key, value in (record.content or {}).items() if value is not None}


def form_of(record: Record) -> Form:
    """Whose keys a row has. ValueError: nobody's that are read."""
    keys = given(record).keys()
    if "messages" in keys:
        return "ours" if keys & {"sft_target_text", "sft_target_audio"} else "swift"
    if keys & {"question_text", "question_audio"}:
        return "history"
    rule = "must have messages, or question_text and answer_text"
    raise ValueError(str(record.problem("", f"{rule}: got {', '.join(sorted(keys)[:20]) or 'nothing'}")))


def draft(record: Record, form: Form) -> Draft | None:
    """The row, or None; what is wrong with it goes to ``record.found``."""
    found, checked = record.found, None
    match validated(MODELS[form], given(record), found):
        case _Ours() as row:
            turns = up_to_the_question(bound(row.messages, row.audios, MARKER, found))
            text, reply = row.sft_target_text, clips("sft_target_audio", row.sft_target_audio)
            checked = {"answer": row.answer, "style": row.style}
        case _Older() as row:
            turns, text, reply = _older(row)
        case _Swift() as row:
            turns, text, reply = replied(bound(row.messages, row.audios, TAG, found), found)
        case _:
            return None
    if not reply and not found:
        found.append(("sft_target_audio", "the reference reply must have sound: no clip is named"))
    question = row.question_text or asked(turns)
    if not question and not found:
        found.append(
            ("question_text", "key is missing, and the last question has no words to take its place")
        )
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


def _older(row: _Older) -> tuple[list[Turn], str, tuple[Clip, ...]]:
    """History, then the question's words and sound, as their loader puts them together."""
    turns = list(of_history(row.history or row.history_text))
    words = (row.question_text or "").strip()
    sound = clips("question_audio", row.question_audio)
    between = "\n\n" if words and sound else ""
    question: list[Part] = [*([words + between] if words else []), *([sound] if sound else [])]
    turns += [("user", tuple(question))] if question else []
    reply = clips("answer_audio_path", row.answer_audio_path) or clips(
        "sft_target_audio", row.sft_target_audio
    )
    return turns, row.answer_text or row.sft_target_text or "", reply
