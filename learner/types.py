"""What the learner is given: rows of ids with a meaning per row, and one lambda for the whole step.

Every rank receives the same ``StepBatch`` and cuts its own share out of it, so every global count is
known everywhere without communication.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A judged reply as a preference row. Zero advantage: the row only matters to a KL term."""

    prompt_id: str
    index: int
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logps: tuple[float, ...]  # behaviour log-probs, one per id
    channels: str  # T A B E P, one per id
    sampled: tuple[bool, ...]
    advantage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A reference reply as a supervised row: cross-entropy on every response position."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    channels: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One optimiser step: L = (1 - weight) * SFT(anchors) + weight * PO(rollouts). METHOD §2."""

    step: int
    weight: float  # lambda_t
    rollouts: tuple[Rollout, ...]
    anchors: tuple[Anchor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one step did.

    ``metrics`` has the names that users see in metrics.jsonl. ``learner_logps`` holds, per rollout key
    ``f"{prompt_id}/{index}"``, the learner's log-prob of each id before the update, NaN where not needed.
    """

    version: int
    metrics: dict[str, float]
    learner_logps: dict[str, list[float]]
