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

from speech.data.manifest import AUDIO_MARKER
from speech.data.problems import RowProblems, validate_model
from speech.data.sources.bound_turns import (
    SourceClip,
    SourceMessage,
    SourceTurn,
    SourceTurnPart,
    bind_clips_to_turns,
    collect_question_words,
    collect_turn_clips,
    drop_trailing_replies,
    list_source_clips,
    parse_history,
    split_off_reply,
)
from speech.data.sources.record import SourceRecord

SourceForm = Literal["ours", "history", "swift", "vita"]
SOURCE_FORMS: dict[SourceForm, str] = {
    "ours": "rows with sft_target_text and sft_target_audio (WavAlign's, or wavgate's own)",
    "history": "WavAlign's older rows (question_text, history, answer_text)",
    "swift": "ms-swift's rows (the last assistant turn is the reference reply)",
    "vita": "VITA-Audio's rows (the last assistant turn is the reference reply)",
}
SWIFT_MARKER = "<audio>"  # ms-swift's marker
REFERENCE_KEYS = frozenset({"sft_target_text", "sft_target_audio"})
SYSTEM_PROMPT_KEYS = ("system", "system_prompt")
CLIP_KEYS = frozenset(  # a sound beside the words, under the names that others give it
    "audio audio_path audio_paths audio_url audio_urls audio_tokens input_audio prompt_audio sound speech wav".split()
)
UNREAD_PROMPT_KEYS = CLIP_KEYS | frozenset(
    "tools functions images image videos video objects documents context conversation conversations input "
    "instruction prompt query system_message".split()
)
UNREAD_TURN_KEYS = UNREAD_PROMPT_KEYS | {"tool_calls", "function_call", "audios", "message_type"}
"""Keys, of a row and of a turn, that change a prompt and that nothing is made of."""
HISTORY_KEYS = frozenset({"history", "question_audio"})
"""The same beside ``messages``; WavAlign's published rows keep ``history_text`` for people, and it stays one."""
EXCLUDED = (False, 0, "false", "False", "0")  # what a mark says of a reply that is no example


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRow:
    """A row whose clips are not files yet. ``id`` may be missing, and may be no file name."""

    fields: dict[str, Any]  # of a ManifestRow, but for its clips
    audios: tuple[tuple[SourceClip, ...], ...]
    reply: tuple[SourceClip, ...]


class _CommonRow(BaseModel):
    """What a row of any form may have; keys that no form has are not read."""

    id: Annotated[str | None, BeforeValidator(lambda given: str(given) if type(given) is int else given)] = None
    question_text: str | None = None
    task_type: str | None = None
    system: str | None = None
    system_prompt: str | None = None


class _OwnRow(_CommonRow):
    messages: tuple[SourceMessage, ...] = Field(min_length=1)
    audios: Any = None
    sft_target_text: str
    sft_target_audio: Any = None
    answer: Any = None
    style: Any = None


class _HistoryRow(_CommonRow):
    question_audio: Any = None
    history: str | None = None
    history_text: str | None = None
    answer_text: str | None = None
    sft_target_text: str | None = None
    answer_audio_path: Any = None
    sft_target_audio: Any = None


class _SwiftRow(_CommonRow):
    messages: tuple[SourceMessage, ...] = Field(min_length=1)
    audios: Any = None


FORM_MODELS: dict[SourceForm, type[_CommonRow]] = {
    "ours": _OwnRow,
    "history": _HistoryRow,
    "swift": _SwiftRow,
    "vita": _SwiftRow,
}
SOURCE_ROW_KEYS = UNREAD_PROMPT_KEYS.union(*(model.model_fields for model in FORM_MODELS.values()))
"""Keys of rows that are looked at."""


SAME_THINGS = (
    ("history", "history_text"),
    ("answer_text", "sft_target_text"),
    ("answer_audio_path", "sft_target_audio"),
)
"""Two names of one thing in an older row: the one that is read first."""


def drop_null_keys(record: SourceRecord) -> dict[str, Any]:
    """The keys of a row that have a value: tables have null where a row has nothing."""
    return {key: value for key, value in (record.content or {}).items() if value is not None}


def detect_row_form(record: SourceRecord) -> SourceForm | None:
    """Whose keys a row has; None: nobody's that are read, which goes to ``record.problems``."""
    row = drop_null_keys(record)
    if "messages" in row:
        written = "".join(turn["content"] for turn in _list_turns(row) if isinstance(turn.get("content"), str))
        null = REFERENCE_KEYS & (record.content or {}).keys()  # a column, in which this row has nothing
        if REFERENCE_KEYS & row.keys() or (null and not (SWIFT_MARKER in written and AUDIO_MARKER not in written)):
            return "ours"
        return "vita" if AUDIO_MARKER in written and SWIFT_MARKER not in written else "swift"
    if row.keys() & {"question_text", "question_audio"}:
        return "history"
    rule = "must have messages, or question_text and answer_text"
    record.problems.append(("", f"{rule}: got {', '.join(sorted(row)[:20]) or 'nothing'}"))
    return None


def list_unread_keys(record: SourceRecord, form: SourceForm) -> set[str]:
    """Keys of a row, and of its turns, that nothing is made of."""
    row = drop_null_keys(record)
    turns = {f"messages.{key}" for turn in _list_turns(row) for key, value in turn.items() if _is_filled(value)}
    return (row.keys() - FORM_MODELS[form].model_fields.keys()) | (turns - {"messages.role", "messages.content"})


def draft_row(record: SourceRecord, form: SourceForm) -> DraftRow | None:
    """The row, or None; what is wrong with it goes to ``record.problems``."""
    problems, checked = record.problems, None
    problems += _check_prompt_keys(drop_null_keys(record), form)
    match validate_model(FORM_MODELS[form], drop_null_keys(record), problems):
        case _OwnRow() as row:
            turns = drop_trailing_replies(bind_clips_to_turns(row.messages, row.audios, AUDIO_MARKER, problems))
            text, reply = row.sft_target_text, list_source_clips("sft_target_audio", row.sft_target_audio)
            checked = {"answer": row.answer, "style": row.style}
        case _HistoryRow() as row:
            turns, text, reply = _read_history_row(row)
        case _SwiftRow() as row:
            marker = AUDIO_MARKER if form == "vita" else SWIFT_MARKER
            turns, text, reply = split_off_reply(
                bind_clips_to_turns(row.messages, row.audios, marker, problems), problems
            )
        case _:
            return None
    turns = _add_system_prompt(turns, row, problems)
    if not reply and not problems:
        problems.append(("sft_target_audio", "the reference reply must have sound: no clip is named"))
    question = row.question_text or collect_question_words(turns)
    if not question and not problems:
        problems.append(("question_text", "key is missing, and the last question has no words to take its place"))
    if problems:
        return None
    messages = [
        {"role": role, "content": "".join(part if isinstance(part, str) else AUDIO_MARKER for part in parts)}
        for role, parts in turns
    ]
    audios = collect_turn_clips(turns)
    fields = {
        "id": row.id,
        "messages": messages,
        "question_text": question,
        "task_type": row.task_type or ("s2s" if audios else "tts"),  # WavAlign's words for the two
        "sft_target_text": text,
    }
    return DraftRow(fields=fields | (checked or {}), audios=audios, reply=reply)


def _list_turns(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turns of a row that was not validated."""
    messages = row.get("messages")
    return [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []


def _is_filled(value: Any) -> bool:
    content = value.strip() if isinstance(value, str) else value  # ms-swift's rows hold lists as JSON
    return content is not None and content not in ("", "[]", "{}", "null", [], {}, ())


def _check_prompt_keys(row: Mapping[str, Any], form: SourceForm) -> Iterator[tuple[str, str]]:
    """Keys without which the row would be another question, or another reply."""
    rule = "must be empty: it is part of the prompt, and nothing is made of it"
    unread = UNREAD_PROMPT_KEYS if form == "history" else UNREAD_PROMPT_KEYS | HISTORY_KEYS
    yield from ((key, rule) for key in sorted(unread & row.keys()) if _is_filled(row[key]))
    for i, turn in enumerate(_list_turns(row)):
        yield from (
            (f"messages[{i}].{key}", rule) for key in sorted(UNREAD_TURN_KEYS & turn.keys()) if _is_filled(turn[key])
        )
    rule = "must not be false: the last turn would be the reference reply, and it is marked as none"
    place = f"messages[{len(_list_turns(row)) - 1}]."
    last = (_list_turns(row) or [{}])[-1]
    marks = [*((key, row[key]) for key in ("label", "kto_tag") if key in row)]
    marks += [(place + key, last[key]) for key in ("loss", "weight") if key in last]
    yield from ((mark, rule) for mark, value in marks if not isinstance(value, (list, dict)) and value in EXCLUDED)
    if form == "history":
        rule = "must say the same as {}, which is read"
        yield from (
            (key, rule.format(read))
            for read, key in SAME_THINGS
            if _is_filled(row.get(read)) and _is_filled(row.get(key)) and row[read] != row[key]
        )


def _add_system_prompt(turns: list[SourceTurn], row: _CommonRow, problems: RowProblems) -> list[SourceTurn]:
    """With the system prompt of a key of its own as the first turn."""
    for field in SYSTEM_PROMPT_KEYS:
        words = (getattr(row, field) or "").strip()
        first = turns[0] if turns and turns[0][0] == "system" else None
        if words and first is None:
            turns = [("system", (words,)), *turns]
        elif words and first is not None and first[1] != (words,):
            problems.append((field, "must not stand beside a system turn, or another such key, of other words"))
    return turns


def _read_history_row(row: _HistoryRow) -> tuple[list[SourceTurn], str, tuple[SourceClip, ...]]:
    """History, then the question's words and sound, as their loader puts them together."""
    turns = list(parse_history(row.history or row.history_text))
    words = (row.question_text or "").strip()
    sound = list_source_clips("question_audio", row.question_audio)
    between = "\n\n" if words and sound else ""
    question: list[SourceTurnPart] = [*([words + between] if words else []), *([sound] if sound else [])]
    turns += [("user", tuple(question))] if question else []
    reply = list_source_clips("answer_audio_path", row.answer_audio_path) or list_source_clips(
        "sft_target_audio", row.sft_target_audio
    )
    return turns, row.answer_text or row.sft_target_text or "", reply
