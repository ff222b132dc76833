"""What the learner is given: rows of ids with a meaning per row, and one lambda for the whole step.

Every rank receives the same ``StepBatch`` and cuts its own share out of it, so every global count is
known everywhere without communication.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speech.features import AudioFeatures
from speech.grammar.channels import Channel


@dataclass(frozen=True, slots=True)
class Advantage:
    """How much better a reply was than its siblings, for each kind of token."""

    text: float
    audio: float
    form: float  # BOUNDARY and STOP

    @classmethod
    def shared(cls, value: float) -> "Advantage":
        """The same for every token."""
        return cls(value, value, value)

    @property
    def whole(self) -> float | None:
        """The one number where every token has the same, else None."""
        return self.text if self.text == self.audio == self.form else None

    def per_position(self, channels_R: NDArray[np.int8]) -> NDArray[np.float64]:
        """One advantage per position; PAD has none."""
        table = np.zeros(len(Channel))
        table[[Channel.TEXT, Channel.AUDIO]] = self.text, self.audio
        table[[Channel.BOUNDARY, Channel.STOP]] = self.form
        return np.asarray(table[channels_R])


NO_ADVANTAGE = Advantage.shared(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A reply as a preference row. An advantage of zero: the row only matters to a KL or entropy term."""

    prompt_id: str
    index: int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logps: tuple[float, ...] | None  # behaviour log-probs, one per id; None: this run did not sample it
    channels: str  # T A B E P, one per id
    sampled: tuple[bool, ...]
    advantage: Advantage = NO_ADVANTAGE
    features: AudioFeatures | None = None  # of the prompt

    @property
    def key(self) -> str:
        """Names the reply in a step."""
        return f"{self.prompt_id}/{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two replies to one prompt, of which one was found better; ``weight`` > 0 among the step's pairs."""

    chosen: Rollout
    rejected: Rollout
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A reference reply as a supervised row: cross-entropy on every response position."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    channels: str
    features: AudioFeatures | None = None  # of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One optimiser step: L = (1 - weight) * SFT(anchors) + weight * PO(rollouts, pairs). docs/method.md §2."""

    step: int
    weight: float  # lambda_t
    rollouts: tuple[Rollout, ...]
    anchors: tuple[Anchor, ...]
    pairs: tuple[PreferencePair, ...] = ()

    @property
    def replies(self) -> tuple[Rollout, ...]:
        """Every reply of this run's own sampling, each once."""
        paired = (reply for pair in self.pairs for reply in (pair.chosen, pair.rejected))
        return (*self.rollouts, *(reply for reply in paired if reply.logps is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did.

    ``metrics`` has the names that users see in metrics.jsonl. ``learner_logps`` holds, per rollout key
    ``f"{prompt_id}/{index}"``, the learner's log-prob of each id before the update, NaN where not needed.
    """

    version: int
    metrics: dict[str, float]
    learner_logps: dict[str, list[float]]
