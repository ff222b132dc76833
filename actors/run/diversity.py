"""How different the replies of a group are, per axis.

What a group-relative method learns from is the difference between replies to one prompt. Pure. Invariant: a
group counts for a figure when at least two of its replies have it, and a figure over no group is left out.
"""

from collections.abc import Callable, Hashable, Sequence
from math import sqrt

from actors.run.metrics import mean_or_none
from judge.types import ReplyJudgement, ScoredVerdict
from learner.decide import ReplyGroup, reward_of
from learner.statistics import compute_mean_and_variance
from rollout.types import Reply


def compute_diversity_metrics(groups: Sequence[ReplyGroup]) -> dict[str, float]:
    """The diversity/* metrics of a step, each a mean over its groups.

    AXIS and ``reward``: standard deviation within a group, in points. ``equal_groups``: share of groups whose
    rewards are all equal. ``text``, ``audio``: different texts or audio token sequences / replies.
    """
    axes = sorted({axis for group in groups for _, judged in group.replies for axis in judged.axes})
    rewards = _compute_deviations(groups, reward_of)
    named = {
        **{axis: mean_or_none(_compute_deviations(groups, _make_axis_reader(axis))) for axis in axes},
        "reward": mean_or_none(rewards),
        "equal_groups": mean_or_none([float(deviation == 0.0) for deviation in rewards]),
        "text": mean_or_none(_compute_distinct_shares(groups, lambda reply: reply.text)),
        "audio": mean_or_none(_compute_distinct_shares(groups, _extract_audio_codes)),
    }
    return {f"diversity/{name}": value for name, value in named.items() if value is not None}


def _make_axis_reader(axis: str) -> Callable[[ReplyJudgement], float | None]:
    def value(judged: ReplyJudgement) -> float | None:
        verdict = judged.axes.get(axis)
        return verdict.value if isinstance(verdict, ScoredVerdict) else None

    return value


def _compute_deviations(groups: Sequence[ReplyGroup], value: Callable[[ReplyJudgement], float | None]) -> list[float]:
    """Population standard deviation of each group; exactly 0 where its values are equal up to rounding."""
    values_by_group = [[value(judged) for _, judged in group.replies] for group in groups]
    valid = [[number for number in values if number is not None] for values in values_by_group]
    return [sqrt(compute_mean_and_variance(values)[1]) for values in valid if len(values) > 1]


def _compute_distinct_shares(groups: Sequence[ReplyGroup], content: Callable[[Reply], Hashable]) -> list[float]:
    several = [group.replies for group in groups if len(group.replies) > 1]
    return [len({content(reply) for reply, _ in replies}) / len(replies) for replies in several]


def _extract_audio_codes(reply: Reply) -> tuple[int, ...]:
    return tuple(code for code, channel in zip(reply.ids, reply.channels, strict=True) if channel == "A")
