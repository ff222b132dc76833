"""What the learner is given: replies with their advantages, anchors, pairs, and one lambda for the whole step.

Every rank receives the same ``StepBatch`` and cuts its own share out of it, so every global count is
known everywhere without communication.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rollout.request import example_to_prompt
from rollout.types import Prompt, Reply, ReplyKey
from speech.dataset import Example, Response
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
LogpsByReply = dict[ReplyKey, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReply:
    """A prompt, a reply to it, and how much better it was than its siblings.

    A ``Reply`` was sampled by this run. A ``Response`` was written: an anchor, or a side of a manifest's pair. An
    advantage of zero: the reply only matters to a component that reads none.
    """

    prompt: Prompt
    reply: Reply | Response
    advantage: Advantage = NO_ADVANTAGE

    @property
    def key(self) -> ReplyKey | None:
        """Names a reply that this run sampled; None for any other."""
        return self.reply.key if isinstance(self.reply, Reply) else None


def example_to_anchor(example: Example) -> TrainingReply:
    """A row's reference reply."""
    return TrainingReply(prompt=example_to_prompt(example), reply=example.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two replies to one prompt, of which one was found better; ``weight`` > 0 among the step's pairs."""

    chosen: TrainingReply
    rejected: TrainingReply
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One optimiser step: L = (1 - weight) * SFT(anchors) + weight * PO(rollouts, pairs). docs/method.md §2."""

    step: int
    weight: float  # lambda_t
    rollouts: tuple[TrainingReply, ...]
    anchors: tuple[TrainingReply, ...]  # reference replies: cross-entropy on every response position
    pairs: tuple[PreferencePair, ...] = ()

    @property
    def replies(self) -> tuple[TrainingReply, ...]:
        """Every reply of this run's own sampling, each once."""
        paired = (reply for pair in self.pairs for reply in (pair.chosen, pair.rejected))
        return (*self.rollouts, *(reply for reply in paired if reply.key is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did.

    ``metrics`` has the names that users see in metrics.jsonl. ``learner_logps`` holds, per reply, the learner's
    log-prob of each id before the update, NaN where not needed.
    """

    version: int
    metrics: dict[str, float]
    learner_logps: LogpsByReply
