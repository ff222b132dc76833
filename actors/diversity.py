"""How different the replies of a group are, per axis.

What a group-relative method learns from is the difference between replies to one prompt. Pure. Invariant: a
group counts for a figure when at least two of its replies have it, and a figure over no group is left out.
"""

from collections.abc import Callable, Hashable, Sequence
from math import sqrt

from actors.decide import Group, reward_of
from actors.figures import mean
from judge.types import Judged, Scored
from learner.statistics import mean_and_variance
from rollout.types import Reply


def diversity(groups: Sequence[Group]) -> dict[str, float]:
    """The diversity/* metrics of a step, each a mean over its groups.

    AXIS and ``reward``: standard deviation within a group, in points. ``equal_groups``: share of groups whose
    rewards are all equal. ``text``, ``audio``: different texts or audio token sequences / replies.
    """
    axes = sorted({axis for group in groups for _, judged in group.replies for axis in judged.axes})
    rewards = _deviations(groups, reward_of)
    named = {
        **{axis: mean(_deviations(groups, _on(axis))) for axis in axes},
        "reward": mean(rewards),
        "equal_groups": mean([float(deviation == 0.0) for deviation in rewards]),
        "text": mean(_distinct(groups, lambda reply: reply.text)),
        "audio": mean(_distinct(groups, _codes)),
    }
    return {f"diversity/{name}": value for name, value in named.items() if value is not None}


def _on(axis: str) -> Callable[[Judged], float | None]:
    def value(judged: Judged) -> float | None:
        verdict = judged.axes.get(axis)
        return verdict.value if isinstance(verdict, Scored) else None

    return value


def _deviations(groups: Sequence[Group], value: Callable[[Judged], float | None]) -> list[float]:
    """Population standard deviation of each group; exactly 0 where its values are equal up to rounding."""
    found = [[value(judged) for _, judged in group.replies] for group in groups]
    valid = [[one for one in values if one is not None] for values in found]
    return [sqrt(mean_and_variance(values)[1]) for values in valid if len(values) > 1]


def _distinct(groups: Sequence[Group], content: Callable[[Reply], Hashable]) -> list[float]:
    several = [group.replies for group in groups if len(group.replies) > 1]
    return [len({content(reply) for reply, _ in replies}) / len(replies) for replies in several]


def _codes(reply: Reply) -> tuple[int, ...]:
    return tuple(code for code, channel in zip(reply.ids, reply.channels, strict=True) if channel == "A")
