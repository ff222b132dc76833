"""The lines of a run directory's jsonl files: one frozen model per kind of line, for writer and reader alike.

Invariant: nothing stands in for what is not known. A missing score has a reason and no value, a number
that does not exist is null; NaN and infinity do not exist in these files. docs/design.md §4.

Example:
    file.write(record.model_dump_json() + "\\n")
    record = RolloutRecord.model_validate_json(line)
"""

from math import isfinite
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _check_path_inside(path: str) -> str:
    """A path that stays in the run directory: relative, forward slashes, no '..'."""
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path or not path:
        raise ValueError(f"audio must be a relative path inside the run directory: got {path!r}")
    return path


def _nan_to_none(value: object) -> object:
    """NaN and infinity become null: JSON has neither, and neither is a number to plot."""
    return None if isinstance(value, float) and not isfinite(value) else value


FiniteValue = Annotated[float, Field(allow_inf_nan=False)]
NullableNumber = Annotated[FiniteValue | None, BeforeValidator(_nan_to_none)]  # null: not known
PathInsideRun = Annotated[str, AfterValidator(_check_path_inside)]


class FrozenRecord(BaseModel):
    """Frozen; an unknown key is an error, so that a misspelt field cannot vanish."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreRecord(FrozenRecord):
    """A judge's number on one axis, with its provenance."""

    value: FiniteValue
    spread: FiniteValue = 0.0
    judge: str
    why: str = ""
    cached: bool = False  # nobody was asked again


class MissingScoreRecord(FrozenRecord):
    """No number on this axis, and why. ``kind``: of judge.types.MissingKind; older runs have none."""

    missing: str = Field(min_length=1)
    kind: str = "unknown"


VerdictRecord = ScoreRecord | MissingScoreRecord


class RolloutRecord(FrozenRecord):
    """One judged reply. Per-token lists have one entry per id, the stop token included."""

    step: int
    prompt_id: str
    group: int  # place of the prompt in the step
    index: int  # place of the reply in its group
    policy_version: int
    question: str
    expected: str | None
    style: str | None
    prompt_ids: list[int] | None = None  # what the reply answers; older runs do not tell
    ids: list[int]
    channels: str  # T A B E P
    text: str  # the TEXT channel
    transcript: str | None  # what the recogniser heard; null: not recognised
    finish: Literal["stop", "length", "abort"]
    audio: PathInsideRun | None  # "audio/step_000010/<prompt>_<index>.ogg"; null: not kept
    seconds: NullableNumber = None  # of audio
    judge_latency_s: NullableNumber = None  # from the reply's arrival at a judge to its verdict
    scores: dict[str, VerdictRecord]  # by axis
    second: dict[str, VerdictRecord] = {}  # by axis, of the second judge; empty: it was not asked
    reward: FiniteValue | None
    missing: str | None  # why there is no reward
    penalty: FiniteValue | None = None  # taken off the reward before advantages; null: nothing is
    well_formed: bool | None = None  # to the family's grammar; older runs do not tell
    advantage: FiniteValue | None  # null: no reward, the group was dropped, or ``advantages`` has several
    advantages: dict[str, FiniteValue] | None = None  # of text, audio and form, where they are not the same
    weights: list[NullableNumber] | None  # preference weight per token: advantage * channel weight; null: none
    behaviour_logps: list[NullableNumber]  # natural log, of the engine that sampled
    learner_logps: list[NullableNumber] | None  # before the update; null where the learner did not need them
    dropped: str | None  # why this reply taught nothing; null: it did

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {"channels": self.channels, "behaviour_logps": self.behaviour_logps}
        lengths |= {"weights": self.weights} if self.weights is not None else {}
        lengths |= {"learner_logps": self.learner_logps} if self.learner_logps is not None else {}
        for name, values in lengths.items():
            if len(values) != len(self.ids):
                raise ValueError(f"{name} must have one entry per id: got {len(values)} for {len(self.ids)} ids")
        if strangers := set(self.channels) - set("TABEP"):
            raise ValueError(f"channels must be letters of TABEP: got {sorted(strangers)}")
        if (self.reward is None) != (self.missing is not None):
            raise ValueError(
                f"either a reward or a reason in missing: got reward={self.reward}, missing={self.missing!r}"
            )
        return self


class HeldOutReply(FrozenRecord):
    """The judged greedy reply to one held-out prompt; a file per evaluation, in the manifest's order."""

    split: Literal["test", "validation"]
    when: Literal["before", "during", "after"]
    step: int
    row_id: str
    task_type: str
    style: str | None
    text: str  # the TEXT channel
    transcript: str | None  # what the recogniser heard; null: not recognised
    finish: Literal["stop", "length", "abort"]
    well_formed: bool
    seconds: NullableNumber  # of audio
    codes: list[int]  # ids of the AUDIO tokens in order
    scores: dict[str, VerdictRecord]  # by axis
    reward: FiniteValue | None
    missing: str | None  # why there is no reward
    figures: dict[str, FiniteValue]  # judge.types.ReplyJudgement; a figure that nobody could take is not there

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.reward is None) != (self.missing is not None):
            raise ValueError(
                f"either a reward or a reason in missing: got reward={self.reward}, missing={self.missing!r}"
            )
        return self


class CanaryRecord(FrozenRecord):
    """What a judge made of a reply that deserves nothing."""

    step: int
    axis: str
    name: str
    judge: str
    value: NullableNumber  # null: no score
    most: NullableNumber  # the highest score that is not pay; null: unknown
    fate: Literal["passed", "paid", "unknown"]
    detail: str = ""


class PartGradientRecord(FrozenRecord):
    """The gradients of one part of the model: norms, and the angles between them. null: not defined.

    ``text``, ``audio``: of the preference loss over that channel alone, without lambda; ``sft``: of the
    reference replies' loss.
    """

    name: str  # embedding, layer 0, ..., norm, head; "embedding, head": one matrix; model: all of them
    parameters: int
    text: NullableNumber
    audio: NullableNumber
    sft: NullableNumber
    text_audio_ratio: NullableNumber
    text_audio_cosine: NullableNumber
    sft_text_cosine: NullableNumber


class ChannelShiftRecord(FrozenRecord):
    """Log-probs of the policy minus those of the reference policy, in nats per token."""

    mean: NullableNumber
    mean_abs: NullableNumber
    tokens: int


class DiagnosisRecord(FrozenRecord):
    """A look at the policy before the update of its step. A shift without positions is not there."""

    step: int
    policy_version: int
    tied: bool  # embedding and head are one matrix
    layers: list[PartGradientRecord]  # from input to output
    model: PartGradientRecord
    shift: dict[str, ChannelShiftRecord]  # {rollout,anchor,chosen,rejected}_{text,audio}


class Evaluation(FrozenRecord):
    """Greedy replies to held-out prompts, summed up. Shares lie in [0, 1]; null: no row of that kind."""

    step: int
    split: Literal["test", "validation"]
    when: Literal["before", "during", "after"]
    count: int  # prompts
    heard_right: NullableNumber  # the answer is right in what the recogniser heard
    text_right: NullableNumber  # the answer is right in the text channel
    style_followed: NullableNumber  # of the prompts that ask for a style
    wer: NullableNumber  # own text against heard words
    reward: NullableNumber
    seconds: NullableNumber  # mean length of a reply
    truncated: NullableNumber
    well_formed: NullableNumber
    by_task: dict[str, NullableNumber] = {}  # heard_right of each task type
    took_s: NullableNumber = None  # of the clock; older runs do not tell


class Sample(FrozenRecord):
    """One held-out reply to listen to."""

    when: Literal["before", "after"]
    row_id: str
    question: str
    expected: str | None
    style: str | None
    text: str
    transcript: str | None
    right: bool | None  # as heard; null: no checkable answer
    audio: PathInsideRun | None


class Event(FrozenRecord):
    """Something that happened to the run. Further keys are welcome and shown as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    time: Annotated[float, Field(ge=0, lt=1e11, allow_inf_nan=False)]  # seconds since 1970, UTC
    kind: str = Field(min_length=1)  # groups events: restart, drop, judge_missing, checkpoint, ...
    detail: str  # one sentence: what, and why
    step: int | None = None
    count: int = 1  # how many alike this line stands for
