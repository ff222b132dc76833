"""Pairs: two replies to one prompt, of which one is preferred. One JSON object per line (docs/pairs.md).

Two forms are read. Which of them a file has is decided once, by the keys of its first object:

    chosen, rejected                 ours, what ``wavgate pairs`` writes: ``PairRow`` below
    rejected_text, rejected_audio    WavAlign's: speech/wavalign.py

Invariant: the two replies of a row that ``read`` returns differ, the preferred one was not scored below the
other, and each is there as token ids or as words and sound. All mistakes are listed as file:line:field.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from conf.fields import Strict
from speech import wavalign
from speech.clips import Clips
from speech.manifest import Answer, Message, audio_fields, dialogue
from speech.problems import (
    ID,
    Found,
    ManifestError,
    Problem,
    lines,
    parse_object,
    validated,
)
from speech.rows import Rows, examine

Form = Literal["prompts", "pairs", "wavalign"]
FORMS: dict[Form, str] = {
    "prompts": "prompts",
    "pairs": "wavgate's pairs (its first row has chosen or rejected)",
    "wavalign": "WavAlign's pairs (its first row has rejected_text or rejected_audio)",
}
Finite = Annotated[float, Field(allow_inf_nan=False)]
Id = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Ids = Annotated[tuple[Id, ...], Field(fail_fast=True, min_length=1)]  # the first that is wrong is told


class AxisScore(Strict):
    """What a judge gave on one axis."""

    value: Finite
    spread: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    judge: str
    """Who, with which version of which rule."""


class Side(Strict):
    """One of the two replies: as tokens, which are used as they stand, or as words and sound."""

    text: str
    """Its words. Empty only where there are tokens."""
    audio: tuple[str, ...] = ()
    """Clips; as many as words: word-aligned. None only where there are tokens."""
    index: Annotated[int, Field(ge=0)] | None = None
    """Which of the samples it was."""
    ids: Ids | None = None
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
    reward: Finite | None = None
    judge: str | None = None
    """Who put the axes together."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        parts = (self.ids, self.channels, self.sampled)
        if any((part is None) != (self.ids is None) for part in parts):
            raise ValueError("ids, channels and sampled must come together")
        if len({len(part) for part in parts if part is not None}) > 1 or self.ids == ():
            raise ValueError("ids, channels and sampled must have one entry per id, at least one")
        if self.ids is None and not (self.text.strip() and self.audio):
            raise ValueError("a reply without ids must have text and audio")
        return self


class Provenance(Strict):
    """How the replies of a row came to be."""

    model: str
    """Fingerprint of the weights that were sampled."""
    family: str
    layout: str
    """Fingerprint of what the ids mean (speech/layout.py)."""
    weights: dict[str, Finite]
    """Of the axes in the reward."""
    samples: Annotated[int, Field(ge=2)]
    """Replies to the prompt, of which these are the best and the worst."""
    temperature: Finite
    max_new_tokens: int
    grammar: bool
    seed: int
    commit: str | None
    """Of the source tree; null: not a git checkout."""
    source: str
    """Hash of the source tree."""


class PairRow(Strict):
    """A prompt with two replies. Audio paths are relative to the file's folder."""

    id: str = Field(pattern=ID)
    """Unique; the prompt's."""
    messages: tuple[Message, ...] = Field(min_length=1)
    """The dialogue so far; the last turn is the user's."""
    audios: tuple[tuple[str, ...], ...] = ()
    """One entry per ``<|audio|>``: clips played one after another."""
    question_text: Annotated[str, Field(min_length=1)] | None = None
    """The user's words; null: not known."""
    task_type: Annotated[str, Field(min_length=1)] | None = None
    answer: Answer | None = None
    style: Literal["slow", "loud"] | None = None
    chosen: Side
    """The preferred reply."""
    rejected: Side
    """The other one."""
    margin: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    """How much better the preferred one was scored; null: not known."""
    weight: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    """Of this pair in the loss."""
    prompt_ids: Ids | None = None
    """The tokens of the prompt; there if and only if the replies have theirs."""
    provenance: Provenance | None = None


def form_of(path: Path) -> Form:
    """What a file holds, by its first object; ``prompts`` where no key of pairs says otherwise."""
    for _, _, text in lines(path) if path.is_file() else ():
        content = parse_object(text, [])
        if content is not None:
            keys = content.keys()
            ours, theirs = keys & {"chosen", "rejected"}, keys & {"rejected_text", "rejected_audio"}
            return "pairs" if ours else "wavalign" if theirs else "prompts"
    return "prompts"


def read(path: Path, max_seconds: float, deep: bool = False) -> Rows[PairRow]:
    """The rows of a sound file of either form, each read when it is used. ManifestError lists every problem.

    ``deep`` decodes every distinct clip; else only headers are read.
    """
    rows, problems = _examine(path, max_seconds, deep)
    if problems:
        raise ManifestError(problems)
    return rows


def below(rows: Sequence[PairRow], margin: float) -> int:
    """How many rows have a known margin that is less."""
    return sum(row.margin is not None and row.margin < margin for row in rows)


def described(rows: Sequence[PairRow], form: Form) -> Iterator[str]:
    """What there is to say about sound rows, as lines."""
    margins = [row.margin for row in rows if row.margin is not None]
    sampled = sum(row.prompt_ids is not None for row in rows)
    yield f"read as {FORMS[form]}; {sampled} with their tokens, {len(rows) - sampled} as words and sound"
    if margins:
        yield f"score of chosen above rejected: {min(margins):g} to {max(margins):g}, known of {len(margins)}"


def _examine(path: Path, max_seconds: float, deep: bool) -> tuple[Rows[PairRow], list[Problem]]:
    form = form_of(path)
    clips = Clips(path.parent, max_seconds, deep)

    def row_of(line: int, content: dict[str, Any], found: Found) -> PairRow | None:
        row = _ours(content, clips, found) if form == "pairs" else _theirs(line, content, clips, found)
        found[:] = [(field, _placed(message, form)) for field, message in found]
        return row

    if form == "prompts" and path.is_file():
        wanted = "chosen and rejected (wavgate's), or rejected_text and rejected_audio (WavAlign's)"
        return Rows(path, row_of), [Problem(path, 0, "", f"must hold pairs: its first row must have {wanted}")]
    return examine(path, row_of, _fields if form == "pairs" else wavalign.audio_fields, clips)


def _placed(message: str, form: Form) -> str:
    """A key that is missing or unknown is so in the form that the file was taken for."""
    keys = message.startswith(("unknown key", "key is missing"))
    return f"{message}; the file is read as {FORMS[form]}" if keys else message


def _ours(content: dict[str, Any], clips: Clips, found: Found) -> PairRow | None:
    row = validated(PairRow, content, found)
    if row is not None:
        found += dialogue(row.messages, len(row.audios))
        found += _rules(row, clips)
    return row


def _rules(row: PairRow, clips: Clips) -> Iterator[tuple[str, str]]:
    """Rules over both replies."""
    tokens = [part is not None for part in (row.prompt_ids, row.chosen.ids, row.rejected.ids)]
    if any(tokens) and not all(tokens):
        yield "prompt_ids", "must come with the ids of both replies, or none of the three"
    if any(tokens) and row.provenance is None:
        yield "provenance", "must be there where there are ids: it says what they mean"
    if _same(row.chosen, row.rejected, clips):
        yield "rejected", "must not be the same reply as chosen: same words, same sound"
    if _less(row.chosen.reward, row.rejected.reward):
        yield "chosen.reward", f"must not be below that of rejected: got {row.chosen.reward}"


def _same(one: Side, other: Side, clips: Clips) -> bool:
    """Nothing could be learnt from such a pair."""
    if one.ids is not None or other.ids is not None:
        return one.ids == other.ids
    if one.text.split() != other.text.split():
        return False
    return one.audio == other.audio or clips.alike(one.audio, other.audio)


def _theirs(line: int, content: dict[str, Any], clips: Clips, found: Found) -> PairRow | None:
    given = validated(wavalign.WavAlignRow, content, found)
    if given is None:
        return None
    messages = wavalign.prompt_of(given.messages) or given.messages
    found += dialogue(messages, len(given.audios))
    found += _their_rules(given)
    if found:
        return None
    gap = given.score_gap
    if gap is None and given.chosen_score is not None and given.rejected_score is not None:
        gap = given.chosen_score - given.rejected_score
    row = PairRow(
        id=given.id or f"line-{line}",
        messages=wavalign.bare(messages),
        audios=tuple((clip,) for clip in given.audios),
        question_text=given.question_text or None,
        task_type=given.task_type or None,
        chosen=Side(text=given.sft_target_text, audio=(given.sft_target_audio,), reward=given.chosen_score),
        rejected=Side(text=given.rejected_text, audio=(given.rejected_audio,), reward=given.rejected_score),
        margin=gap,
    )
    if _same(row.chosen, row.rejected, clips):
        found.append(("rejected_audio", "must not be the same reply as sft_target_audio: same words, same sound"))
        return None
    return row


def _their_rules(row: wavalign.WavAlignRow) -> Iterator[tuple[str, str]]:
    for field in ("sft_target_text", "rejected_text"):
        if not getattr(row, field).strip():
            yield field, "must not be blank"
    if _less(row.chosen_score, row.rejected_score):
        yield "chosen_score", f"must not be below rejected_score: got {row.chosen_score}"


def _less(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one < other


def _fields(content: dict[str, Any]) -> list[tuple[str, Any]]:
    sides = [(name, content.get(name)) for name in ("chosen", "rejected")]
    clips = [(f"{name}.audio", side.get("audio")) for name, side in sides if isinstance(side, dict)]
    return [*audio_fields(content), *clips]
