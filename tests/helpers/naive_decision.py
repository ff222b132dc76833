"""docs/method.md §3 and §4's advantages and pairs written a second time: loops, one formula each.

See ``naive_objective``: nothing is imported from the product, settings are read by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp, sqrt
from typing import Any


@dataclass(kw_only=True, eq=False)
class JudgedReply:
    """What is known of one reply when the step is decided."""

    reward: float | None
    axes: dict[str, float | None] = field(default_factory=dict)
    spread: float = 0.0  # the judge's standard deviation on the reward
    well_formed: bool = True
    vetoed: bool = False
    penalty: float = 0.0  # sum_t b_c(t) k_t, where the KL is part of the reward


def survivors(rewards: Sequence[float | None]) -> list[int]:
    """Replies of a group that count: those with a reward, if there are max(2, ceil(G/2)) of them. docs/method.md §3."""
    valid = [i for i, reward in enumerate(rewards) if reward is not None]
    return valid if len(valid) >= max(2, -(-len(rewards) // 2)) else []


def equal(values: Sequence[float]) -> bool:
    """Equal up to rounding."""
    return max(values) - min(values) <= 1e-9 * max(1.0, abs(sum(values) / len(values)))


def normalised(values: Sequence[float], how: str, faithful: bool) -> list[float]:
    """Advantages within one group. docs/method.md §2; the released code adds 1e-4 to the standard deviation."""
    if equal(values):
        return [0.0] * len(values)
    n, mean = len(values), sum(values) / len(values)
    if how == "leave_one_out":
        return [x - (sum(values) - x) / (n - 1) for x in values]
    if how == "none":
        return [x - mean for x in values]
    std = sqrt(sum((x - mean) ** 2 for x in values) / n)
    return [(x - mean) / (std + (1e-4 if faithful else 0.0)) for x in values]


def axis(reply: JudgedReply, name: str, lo: float) -> float:
    """A veto counts as the floor on every axis."""
    value = lo if reply.vetoed else reply.axes[name]
    assert value is not None
    return value


def advantages(
    group: Sequence[JudgedReply], algo: Any, weights: dict[str, float], lo: float
) -> list[dict[str, float]]:
    """Of a group's surviving replies, by channel."""

    def of(values: list[float]) -> list[float]:
        return normalised(values, algo.normalise, algo.faithful)

    if algo.routed:  # each axis to its own tokens, normalised apart: docs/method.md §4
        said, sounded = (of([axis(reply, name, lo) for reply in group]) for name in ("semantic", "acoustic"))
        formed = of([1.0 if reply.well_formed else 0.0 for reply in group])
        return [{"T": t, "A": a, "B": f, "E": f} for t, a, f in zip(said, sounded, formed, strict=True)]
    if algo.normalise_by == "axis":
        counted = {name: weight for name, weight in weights.items() if weight > 0}
        parts = {name: of([axis(reply, name, lo) for reply in group]) for name in counted}
        mixed = [
            sum(weight * parts[name][i] for name, weight in counted.items()) / sum(counted.values())
            for i in range(len(group))
        ]
    else:
        earned = [reply.reward for reply in group if reply.reward is not None]
        paid = [reward - reply.penalty for reward, reply in zip(earned, group, strict=True)]
        own = equal(earned) and any(reply.penalty for reply in group)  # then a penalty keeps its own size
        mixed = normalised(paid, "none", False) if own else of(paid)
    return [dict.fromkeys("TABE", value) for value in mixed]


def differs(group: Sequence[JudgedReply], algo: Any, weights: dict[str, float], lo: float) -> bool:
    """Whether the judge's scores, before any penalty, give some reply an advantage."""
    unpaid = [replace(reply, penalty=0.0) for reply in group]
    return any(value for each in advantages(unpaid, algo, weights, lo) for value in each.values())


def raw_lambda(group: Sequence[JudgedReply], gate: Any, lo: float, hi: float, readings: int = 1) -> float:
    """lambda_max * g_R * v of one group's surviving replies. docs/method.md §3.

    A reward that is the mean of k readings with standard deviation s has the variance s^2 / (k - 1).
    """
    rewards = [reply.reward for reply in group if reply.reward is not None]
    mean = sum(rewards) / len(rewards)
    variance = 0.0 if equal(rewards) else sum((r - mean) ** 2 for r in rewards) / len(rewards)
    noise = sum(reply.spread**2 for reply in group) / len(group) / max(1, readings - 1) if gate.denoise else 0.0
    shown = variance - noise * (len(rewards) - 1) / len(rewards)
    information = min(max(shown / ((hi - lo) / 2) ** 2, 0.0), 1.0)
    theta = (lo + hi) / 2 if gate.theta is None else gate.theta
    k = 5 * 4 / (hi - lo) if gate.k is None else gate.k
    slope = k * (max(rewards) - theta)
    direction = 1 / (1 + exp(-slope)) if slope > -700 else 0.0
    return float(gate.lambda_max * direction * information)


def next_lambda(
    groups: Sequence[Sequence[JudgedReply]],
    algo: Any,
    previous: float | None,
    step: int,
    lo: float,
    hi: float,
    readings: int = 1,
) -> float:
    """Lambda of a step. ``groups``: the survivors of each; ``previous``: of the last step that had any."""
    if algo.mix == "fixed":
        return float(algo.fixed_lambda)
    if algo.mix == "two_stage":
        return 0.0 if step <= algo.sft_steps else float(algo.fixed_lambda)
    if not groups:
        return 0.0 if previous is None else previous
    raw = sum(raw_lambda(group, algo.gate, lo, hi, readings) for group in groups) / len(groups)
    return raw if previous is None else (1 - algo.gate.alpha) * raw + algo.gate.alpha * previous


def extremes(group: Sequence[JudgedReply], least: float) -> tuple[int, int] | None:
    """Best and worst surviving reply of a group, first of equals, if they are ``least`` apart and not equal;
    both up to rounding."""
    rewards = [reply.reward for reply in group if reply.reward is not None]
    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    gap, noise = rewards[best] - rewards[worst], 1e-9 * max(1.0, abs(rewards[best]))
    return (best, worst) if gap > noise and gap >= least - noise else None
