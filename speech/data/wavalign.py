"""WavAlign's own pairs, as its pair builder writes them and its loader takes them: one JSON object per line.

    messages, audios                     the dialogue; a turn may hold words and <|audio|>, mixed
    sft_target_text, sft_target_audio    the preferred reply
    rejected_text, rejected_audio        the other one
    chosen_score, rejected_score, score_gap, question_text, task_type, id    where known

Words that stand beside ``<|audio|>`` are kept as they are, line breaks included, as WavAlign encodes them.
Assistant turns behind the user's last are what was answered then, no part of the prompt: they are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from conf.fields import StrictModel
from speech.data.manifest import AUDIO_MARKER, DialogueMessage, make_file_safe_id

NonEmptyText = Annotated[str, Field(min_length=1)]
OptionalScore = Annotated[float, Field(allow_inf_nan=False)] | None


class WavAlignRow(StrictModel):
    """A line. Audio paths are relative to the file's folder."""

    messages: tuple[DialogueMessage, ...] = Field(min_length=1)
    audios: tuple[str, ...] = ()
    """One clip per ``<|audio|>``."""
    sft_target_text: NonEmptyText
    sft_target_audio: NonEmptyText
    rejected_text: NonEmptyText
    rejected_audio: NonEmptyText
    chosen_score: OptionalScore = None
    rejected_score: OptionalScore = None
    score_gap: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    question_text: str | None = None
    task_type: str | None = None
    id: Annotated[
        str | None,
        BeforeValidator(lambda given: str(given) if type(given) is int else given),
        AfterValidator(lambda given: make_file_safe_id(given) if given else None),
    ] = None
    """Of the data set it came from, made fit for file names. None: made of the line's number."""

    # Where a pair came from; kept for people, never read.
    chosen_key: Any = None
    rejected_key: Any = None
    best_output_key: Any = None
    best_output_score: Any = None
    worst_output_key: Any = None
    worst_output_score: Any = None
    output_score_gap: Any = None
    orig_sft_target_text: Any = None
    orig_sft_target_audio: Any = None
    question_text_raw: Any = None
    history_text: Any = None
    source_dataset: Any = None


def drop_final_answers(messages: Sequence[DialogueMessage]) -> tuple[DialogueMessage, ...]:
    """The dialogue up to the last turn that is not the assistant's."""
    end = len(messages)
    while end and messages[end - 1].role == "assistant":
        end -= 1
    return tuple(messages[:end])


def strip_written_messages(messages: Sequence[DialogueMessage]) -> tuple[DialogueMessage, ...]:
    """Written turns without the white space around them; words beside ``<|audio|>`` as they stand."""
    return tuple(
        message
        if AUDIO_MARKER in message.content
        else DialogueMessage(role=message.role, content=message.content.strip())
        for message in messages
    )


def list_wavalign_clips(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every clip of a row as parsed, with the name of its field."""
    audios = content.get("audios")
    prompt = [(f"audios[{i}]", clip) for i, clip in enumerate(audios)] if isinstance(audios, list) else []
    fields = [*prompt, *((name, content.get(name)) for name in ("sft_target_audio", "rejected_audio"))]
    return [(name, clip) for name, clip in fields if isinstance(clip, str) and clip]
