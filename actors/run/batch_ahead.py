"""The batch that was sampled ahead, as a checkpoint keeps it: ``run.staleness=1`` resumes exactly.

A batch of step n + 1 comes from the weights before step n was learnt, which nobody has after a checkpoint of
step n: it cannot be drawn again. What follows from its rows (prompts, reference replies, pairs) is encoded
anew; kept are the rows' places, the replies and their verdicts.
"""

from dataclasses import dataclass

from judge.types import ReplyJudgement
from rollout.types import Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRows:
    """The rows of one step, by their places in their manifests."""

    step: int
    prompts: tuple[int, ...]
    own: int  # the first prompts whose reference replies are anchors
    further: tuple[int, ...]  # anchors beside those
    pairs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefetchedBatch:
    """A batch without what its rows say. ``groups``: per prompt, by index; empty where nothing is sampled."""

    draw: DrawnRows
    groups: tuple[tuple[tuple[Reply, ReplyJudgement], ...], ...]
    generate_s: float
    judge_s: float
    overlap_s: float
