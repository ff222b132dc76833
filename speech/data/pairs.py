"""Pairs: two replies to one prompt, of which one is preferred. One JSON object per line (docs/pairs.md).

Two forms are read. Which of them a file has is decided once, by the keys of its first object:

    chosen, rejected                 ours, what ``wavgate pairs`` writes: ``PairRow`` below
    rejected_text, rejected_audio    WavAlign's: speech/data/wavalign.py

Invariant: the two replies of a row that ``read_pairs`` returns differ, the preferred one was not scored below the
other, and each is there as token ids or as words and sound. All mistakes are listed as file:line:field.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from conf.fields import StrictModel
from speech.data import wavalign
from speech.data.clips import ClipInspector
from speech.data.lazy_rows import LazyRows, examine_rows
from speech.data.manifest import DialogueMessage, ExpectedAnswer, check_dialogue, list_prompt_clips
from speech.data.problems import (
    ID_PATTERN,
    ManifestError,
    Problem,
    RowProblems,
    iterate_numbered_lines,
    parse_object,
    validate_model,
)

PairsForm = Literal["prompts", "pairs", "wavalign"]
PAIRS_FORMS: dict[PairsForm, str] = {
    "prompts": "prompts",
    "pairs": "wavgate's pairs (its first row has chosen or rejected)",
    "wavalign": "WavAlign's pairs (its first row has rejected_text or rejected_audio)",
}
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
TokenIds = Annotated[tuple[TokenId, ...], Field(fail_fast=True, min_length=1)]  # the first that is wrong is told


class AxisScore(StrictModel):
    """What a judge gave on one axis."""

    value: FiniteNumber
    spread: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    judge: str
    """Who, with which version of which rule."""


class PairReply(StrictModel):
    """One of the two replies: as tokens, which are used as they stand, or as words and sound."""

    text: str
    """Its words. Empty only where there are tokens."""
    audio: tuple[str, ...] = ()
    """Clips; as many as words: word-aligned. None only where there are tokens."""
    index: Annotated[int, Field(ge=0)] | None = None
    """Which of the samples it was."""
    ids: TokenIds | None = None
    """The tokens that were sampled."""
    channels: Annotated[str, Field(pattern=r"^[TABEP]*$")] | None = None
    """T A B E P, one letter per id."""
    sampled: Annotated[str, Field(pattern=r"^[01]*$")] | None = None
    """1, or 0 for an id that was forced, one digit per id."""
    finish: Literal["stop", "length"] | None = None
    transcript: str | None = None
    """What a recogniser heard."""
    scores: dict[str, AxisScore] = Field(default_factory=dict)
    """By axis."""
    reward: FiniteNumber | None = None
    judge: str | None = None
    """Who put the axes together."""

    @model_validator(mode="after")
    def _check_complete(self) -> Self:
        parts = (self.ids, self.channels, self.sampled)
        if any((part is None) != (self.ids is None) for part in parts):
            raise ValueError("ids, channels and sampled must come together")
        if len({len(part) for part in parts if part is not None}) > 1 or self.ids == ():
            raise ValueError("ids, channels and sampled must have one entry per id, at least one")
        if self.ids is None and not (self.text.strip() and self.audio):
            raise ValueError("a reply without ids must have text and audio")
        return self


class PairProvenance(StrictModel):
    """How the replies of a row came to be."""

    model: str
    """Fingerprint of the weights that were sampled."""
    family: str
    layout: str
    """Fingerprint of what the ids mean (speech/checkpoints/layout.py)."""
    weights: dict[str, FiniteNumber]
    """Of the axes in the reward."""
    samples: Annotated[int, Field(ge=2)]
    """Replies to the prompt, of which these are the best and the worst."""
    temperature: FiniteNumber
    max_new_tokens: int
    grammar: bool
    seed: int
    commit: str | None
    """Of the source tree; null: not a git checkout."""
    source: str
    """Hash of the source tree."""


class PairRow(StrictModel):
    """A prompt with two replies. Audio paths are relative to the file's folder."""

    id: str = Field(pattern=ID_PATTERN)
    """Unique; the prompt's."""
    messages: tuple[DialogueMessage, ...] = Field(min_length=1)
    """The dialogue so far; the last turn is the user's."""
    audios: tuple[tuple[str, ...], ...] = ()
    """One entry per ``<|audio|>``: clips played one after another."""
    question_text: Annotated[str, Field(min_length=1)] | None = None
    """The user's words; null: not known."""
    task_type: Annotated[str, Field(min_length=1)] | None = None
    answer: ExpectedAnswer | None = None
    style: Literal["slow", "loud"] | None = None
    chosen: PairReply
    """The preferred reply."""
    rejected: PairReply
    """The other one."""
    margin: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """How much better the preferred one was scored; null: not known."""
    weight: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Of this pair in the loss."""
    prompt_ids: TokenIds | None = None
    """The tokens of the prompt; there if and only if the replies have theirs."""
    provenance: PairProvenance | None = None


def detect_pairs_form(path: Path) -> PairsForm:
    """What a file holds, by its first object; ``prompts`` where no key of pairs says otherwise."""
    for _, _, text in iterate_numbered_lines(path) if path.is_file() else ():
        content = parse_object(text, [])
        if content is not None:
            keys = content.keys()
            own_keys, wavalign_keys = keys & {"chosen", "rejected"}, keys & {"rejected_text", "rejected_audio"}
            return "pairs" if own_keys else "wavalign" if wavalign_keys else "prompts"
    return "prompts"


def read_pairs(path: Path, max_seconds: float, deep: bool = False) -> LazyRows[PairRow]:
    """The rows of a sound file of either form, each read when it is used. ManifestError lists every problem.

    ``deep`` decodes every distinct clip; else only headers are read.
    """
    rows, problems = _examine_pairs(path, max_seconds, deep)
    if problems:
        raise ManifestError(problems)
    return rows


def count_below_margin(rows: Sequence[PairRow], margin: float) -> int:
    """How many rows have a known margin that is less."""
    return sum(row.margin is not None and row.margin < margin for row in rows)


def describe_pairs(rows: Sequence[PairRow], form: PairsForm) -> Iterator[str]:
    """What there is to say about sound rows, as lines."""
    margins = [row.margin for row in rows if row.margin is not None]
    sampled = sum(row.prompt_ids is not None for row in rows)
    yield f"read as {PAIRS_FORMS[form]}; {sampled} with their tokens, {len(rows) - sampled} as words and sound"
    if margins:
        yield f"score of chosen above rejected: {min(margins):g} to {max(margins):g}, known of {len(margins)}"


def _examine_pairs(path: Path, max_seconds: float, deep: bool) -> tuple[LazyRows[PairRow], list[Problem]]:
    form = detect_pairs_form(path)
    clips = ClipInspector(path.parent, max_seconds, deep)

    def row_of(line: int, content: dict[str, Any], problems: RowProblems) -> PairRow | None:
        row = (
            _validate_pair(content, clips, problems)
            if form == "pairs"
            else _validate_wavalign_pair(line, content, clips, problems)
        )
        problems[:] = [(field, _add_form_hint(message, form)) for field, message in problems]
        return row

    if form == "prompts" and path.is_file():
        wanted = "chosen and rejected (wavgate's), or rejected_text and rejected_audio (WavAlign's)"
        return LazyRows(path, row_of), [Problem(path, 0, "", f"must hold pairs: its first row must have {wanted}")]
    return examine_rows(path, row_of, _list_pair_clips if form == "pairs" else wavalign.list_wavalign_clips, clips)


def _add_form_hint(message: str, form: PairsForm) -> str:
    """A key that is missing or unknown is so in the form that the file was taken for."""
    keys = message.startswith(("unknown key", "key is missing"))
    return f"{message}; the file is read as {PAIRS_FORMS[form]}" if keys else message


def _validate_pair(content: dict[str, Any], clips: ClipInspector, problems: RowProblems) -> PairRow | None:
    row = validate_model(PairRow, content, problems)
    if row is not None:
        problems += check_dialogue(row.messages, len(row.audios))
        problems += _check_pair(row, clips)
    return row


def _check_pair(row: PairRow, clips: ClipInspector) -> Iterator[tuple[str, str]]:
    """Rules over both replies."""
    tokens = [part is not None for part in (row.prompt_ids, row.chosen.ids, row.rejected.ids)]
    if any(tokens) and not all(tokens):
        yield "prompt_ids", "must come with the ids of both replies, or none of the three"
    if any(tokens) and row.provenance is None:
        yield "provenance", "must be there where there are ids: it says what they mean"
    if _is_same_reply(row.chosen, row.rejected, clips):
        yield "rejected", "must not be the same reply as chosen: same words, same sound"
    if _is_less(row.chosen.reward, row.rejected.reward):
        yield "chosen.reward", f"must not be below that of rejected: got {row.chosen.reward}"


def _is_same_reply(reply: PairReply, other: PairReply, clips: ClipInspector) -> bool:
    """Nothing could be learnt from such a pair."""
    if reply.ids is not None or other.ids is not None:
        return reply.ids == other.ids
    if reply.text.split() != other.text.split():
        return False
    return reply.audio == other.audio or clips.are_same_sound(reply.audio, other.audio)


def _validate_wavalign_pair(
    line: int, content: dict[str, Any], clips: ClipInspector, problems: RowProblems
) -> PairRow | None:
    given = validate_model(wavalign.WavAlignRow, content, problems)
    if given is None:
        return None
    messages = wavalign.drop_final_answers(given.messages) or given.messages
    problems += check_dialogue(messages, len(given.audios))
    problems += _check_wavalign_scores(given)
    if problems:
        return None
    gap = given.score_gap
    if gap is None and given.chosen_score is not None and given.rejected_score is not None:
        gap = given.chosen_score - given.rejected_score
    row = PairRow(
        id=given.id or f"line-{line}",
        messages=wavalign.strip_written_messages(messages),
        audios=tuple((clip,) for clip in given.audios),
        question_text=given.question_text or None,
        task_type=given.task_type or None,
        chosen=PairReply(text=given.sft_target_text, audio=(given.sft_target_audio,), reward=given.chosen_score),
        rejected=PairReply(text=given.rejected_text, audio=(given.rejected_audio,), reward=given.rejected_score),
        margin=gap,
    )
    if _is_same_reply(row.chosen, row.rejected, clips):
        problems.append(("rejected_audio", "must not be the same reply as sft_target_audio: same words, same sound"))
        return None
    return row


def _check_wavalign_scores(row: wavalign.WavAlignRow) -> Iterator[tuple[str, str]]:
    for field in ("sft_target_text", "rejected_text"):
        if not getattr(row, field).strip():
            yield field, "must not be blank"
    if _is_less(row.chosen_score, row.rejected_score):
        yield "chosen_score", f"must not be below rejected_score: got {row.chosen_score}"


def _is_less(value: float | None, other: float | None) -> bool:
    return value is not None and other is not None and value < other


def _list_pair_clips(content: dict[str, Any]) -> list[tuple[str, Any]]:
    sides = [(name, content.get(name)) for name in ("chosen", "rejected")]
    clips = [(f"{name}.audio", side.get("audio")) for name, side in sides if isinstance(side, dict)]
    return [*list_prompt_clips(content), *clips]
