"""Verdicts: a number on a declared scale with its spread and provenance, or missing with a reason.

There is no third case and no default: nothing in this package turns a failure into a number (docs/method.md §5).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Scale:
    """The closed interval a score lies on; the paper's is 1..5."""

    lo: float = 1.0
    hi: float = 5.0

    def __post_init__(self) -> None:
        if not self.lo < self.hi:
            raise ValueError(f"scale must have lo < hi: got [{self.lo}, {self.hi}]")

    @property
    def point(self) -> float:
        """One of the four steps between five levels."""
        return (self.hi - self.lo) / 4

    def at(self, fraction: float) -> float:
        """The point at ``fraction`` (0..1) of the way from lo to hi."""
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must lie in [0, 1]: got {fraction}")
        return self.lo + fraction * (self.hi - self.lo)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredVerdict:
    """A number on the scale. ``why`` is for people: what was heard, what was expected.

    ValueError: not a number. Nothing would notice it later: a mean with it is NaN, and NaN is above no bound.
    """

    value: float
    judge: str  # provenance: who scored, with which version of which rule
    spread: float = 0.0  # standard deviation over the judge's own repeats; 0 for a deterministic rule
    why: str = ""
    cached: bool = False

    def __post_init__(self) -> None:
        if not isfinite(self.value) or not 0.0 <= self.spread < inf:
            rule = "a score must be a finite number and its spread one of at least 0"
            raise ValueError(f"{rule}: {self.judge} gave {self.value} and {self.spread}")


MissingKind = Literal[
    "nothing_to_check",  # the task has no checkable answer
    "aborted",  # the system cut the reply off
    "recogniser",  # the transcript could not be had
    "deadline",  # no whole answer in time
    "network",  # refused, reset, cut off
    "rate_limited",  # 429 to the end
    "quota",  # the account is used up: no retry helps
    "server",  # 5xx to the end
    "rejected",  # another 4xx
    "redirect",  # never followed
    "not_json",  # HTML, truncated, invalid
    "too_large",  # more bytes than any verdict has
    "empty",  # no choice, no content
    "refusal",
    "malformed",  # no score, several, not a number
    "out_of_range",
    "language",  # reasons in a language that was not asked for
    "wrong_model",
    "unsure",  # too little probability on the scores
    "spend_cap",
    "breaker",  # the endpoint stayed down for longer than a run waits
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingVerdict:
    """No number, and why. ``retryable``: the judge failed, another call may succeed."""

    judge: str
    reason: str
    kind: MissingKind
    retryable: bool = False


class CallFailed(Exception):
    """A judge call that gave no score."""

    def __init__(
        self, kind: MissingKind, reason: str, *, retryable: bool = False, tokens: tuple[int, int] = (0, 0)
    ) -> None:
        """``tokens``: (prompt, completion) of an answer that was paid for and is of no use."""
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason, self.retryable, self.tokens = kind, reason, retryable, tokens

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole on the other side of a process border, where ``args`` alone would not do."""
        return _rebuild_call_failed, (self.kind, self.reason, self.retryable, self.tokens)


def _rebuild_call_failed(kind: MissingKind, reason: str, retryable: bool, tokens: tuple[int, int]) -> CallFailed:
    return CallFailed(kind, reason, retryable=retryable, tokens=tokens)


Verdict = ScoredVerdict | MissingVerdict


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTask:
    """What a reply is held against; taken from the manifest row, never from the policy."""

    task_type: str
    question: str  # the user's words
    match: str | None  # a ``speech.answers.expected.AnswerMatch``; None: there is no checkable answer
    answer: str | None
    style: str | None  # "slow" | "loud" | None
    user_audio: tuple[Path, ...] = ()  # the user's last turn where it was spoken: clips, one after another


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyJudgement:
    """All verdicts on one reply, and what was measured beside them.

    ``axes``: verdict per axis ("semantic", "acoustic", "holistic"). ``reward`` combines them on the same
    scale, or is missing as soon as one weighted axis is. ``transcript``: what the recogniser heard (None: not
    recognised).
    ``figures``: plain measurements logged beside the scores and never part of them by themselves
    (seconds, latency_s, truncated, well_formed, counts of tokens; unjudgeable, unless the system cut it off;
    wer, text_right, heard_right, style_followed where they apply; of one that was heard also rate, level,
    pace, silence, pause, clipping, loop, vetoed, and whatever the vetoes rest on). A figure that nobody
    could take is not there.
    ``second``: what the second judge says, by axis, where it was asked; never part of the reward.
    """

    prompt_id: str
    index: int
    axes: Mapping[str, Verdict]
    reward: Verdict
    transcript: str | None
    figures: Mapping[str, float] = field(default_factory=dict)
    second: Mapping[str, Verdict] = field(default_factory=dict)
