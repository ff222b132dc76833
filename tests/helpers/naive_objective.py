"""docs/method.md §2 and §4's losses written a second time, to hold the product to: float64, loops, one formula each.

Nothing here is fast, packed, trimmed or shared, and nothing is imported from the product. Log-probs are
lists with one scalar tensor per response position; settings are read from any object with the names of
``conf`` (an ``AlgoConfig``). Positions that a formula does not ask for are never looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any

import torch
from torch import Tensor

FIELDS = {"T": "text", "A": "audio", "B": "boundary", "E": "stop"}
CLASSES = ("A", "TBE")  # of KL and entropy: AUDIO, and the rest


@dataclass(kw_only=True, eq=False)
class Scored:
    """One sequence with everything that a loss can ask of its response positions."""

    channels: str
    sampled: Sequence[bool]
    now: list[Tensor]  # log-probs, differentiable
    old: Sequence[float] = ()  # before the first update on this batch
    behaviour: Sequence[float] = ()
    start: Sequence[float] = ()  # of the frozen start policy
    entropy: Sequence[Tensor] = ()
    advantage: dict[str, float] = field(default_factory=dict)  # by channel


# -- from a padded batch of logits to log-probs


def log_probs(logits_LV: Tensor, ids: Sequence[int], prompt: int, temperature: float) -> list[Tensor]:
    """Position j of the response is predicted one position earlier; ids: prompt and response."""
    return [torch.log_softmax(logits_LV[at - 1] / temperature, -1)[ids[at]] for at in range(prompt, len(ids))]


def entropies(logits_LV: Tensor, ids: Sequence[int], prompt: int, temperature: float) -> list[Tensor]:
    """H_t = -sum_v p_v log p_v of the distribution that position t was drawn from."""
    collected = []
    for at in range(prompt, len(ids)):
        every = torch.log_softmax(logits_LV[at - 1] / temperature, -1)
        collected.append(-(torch.exp(every) * every).sum())
    return collected


# -- the loss


def weight_at(row: Scored, t: int, weights: Any) -> float:
    """u_t: 0 at PAD and at positions that were forced."""
    letter = row.channels[t]
    return 0.0 if letter == "P" or not row.sampled[t] else float(getattr(weights, FIELDS[letter]))


def zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def sft(anchors: Sequence[Scored], algo: Any) -> Tensor:
    """Cross-entropy of the reference replies."""
    losses, sums = [], []
    for row in anchors:
        loss, size = zero(), 0.0
        for t in range(len(row.channels)):
            weight = weight_at(row, t, algo.sft)
            loss, size = loss - weight * row.now[t], size + weight
        if size > 0:
            losses.append(loss)
            sums.append(size)
    if not losses:
        return zero()
    if algo.sft_aggregation == "token_mean":
        return sum(losses, zero()) / sum(sums)
    return sum((loss / size for loss, size in zip(losses, sums, strict=True)), zero()) / len(losses)


def trust(row: Scored, t: int, algo: Any) -> float:
    """Truncated importance weight from what sampled to the policy before the update; a constant."""
    if algo.importance == "off":
        return 1.0
    if algo.importance == "token":
        return min(exp(row.old[t] - row.behaviour[t]), algo.importance_cap)
    gap = sum(
        row.old[s] - row.behaviour[s] for s in range(len(row.channels)) if weight_at(row, s, algo.preference) > 0
    )
    return min(exp(gap), algo.importance_cap)


def policy_loss_at(row: Scored, t: int, algo: Any) -> Tensor:
    """l_t: the clipped surrogate at one position. docs/method.md §2."""
    advantage = row.advantage[row.channels[t]]
    rho = torch.exp(row.now[t] - row.old[t])
    free = rho * advantage
    bounded = torch.clamp(rho, 1 - algo.clip_low, 1 + algo.clip_high) * advantage
    least = free if bool(free <= bounded) else bounded
    if algo.clip_dual is not None and advantage < 0 and bool(least < algo.clip_dual * advantage):
        least = zero() + algo.clip_dual * advantage
    return -trust(row, t, algo) * least


def po(rollouts: Sequence[Scored], algo: Any, max_new_tokens: int) -> Tensor:
    """The preference loss over all rollouts of the step."""
    total, every = zero(), 0.0
    for row in rollouts:
        loss, size = zero(), 0.0
        for t in range(len(row.channels)):
            weight = weight_at(row, t, algo.preference)
            if weight > 0:
                loss, size = loss + weight * policy_loss_at(row, t, algo), size + weight
        every += size
        if size > 0:
            total = total + (loss / size if algo.aggregation == "sequence_mean" else loss)
    if every == 0:
        return zero()
    if algo.aggregation == "token_mean":
        return total / every
    return total / len(rollouts) / (max_new_tokens if algo.aggregation == "constant" else 1)


def dpo(pairs: Sequence[tuple[Scored, Scored, float]], algo: Any) -> Tensor:
    """Logistic loss on the reference-corrected gap of masked scores; pairs: (chosen, rejected, weight)."""
    total = zero()
    for chosen, rejected, weight in pairs:
        gains, empty = [], False
        for row in (chosen, rejected):
            us = [weight_at(row, t, algo.preference) for t in range(len(row.channels))]
            empty = empty or not any(u > 0 for u in us)
            gains.append(sum((u * (row.now[t] - row.start[t]) for t, u in enumerate(us) if u > 0), zero()))
        if not empty:
            z = algo.dpo_beta * (gains[0] - gains[1])
            total = total + weight * torch.log1p(torch.exp(-z))
    size = sum(weight for _, _, weight in pairs)
    return total / size if size > 0 else zero()


def divergence(now: Tensor, start: float, estimator: str) -> Tensor:
    """k_t, from one sample."""
    d = start - now
    return {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - d - 1}[estimator]


def by_class(rollouts: Sequence[Scored], weights: Any, at: Any) -> Tensor:
    """Sum over the two classes of sum_t weight_t at(row, t) / number of the class's weighted positions."""
    total = zero()
    for letters in CLASSES:
        value, count = zero(), 0
        for row in rollouts:
            for t, letter in enumerate(row.channels):
                weight = weight_at(row, t, weights) if letter in letters else 0.0
                if weight > 0:
                    value, count = value + weight * at(row, t), count + 1
        total = total + (value / count if count else zero())
    return total


def kl(rollouts: Sequence[Scored], algo: Any) -> Tensor:
    """Coefficients included; nothing where the KL is part of the reward."""
    if algo.kl_in == "reward":
        return zero()
    return by_class(rollouts, algo.kl, lambda row, t: divergence(row.now[t], row.start[t], algo.kl_estimator))


def kl_penalty(row: Scored, algo: Any) -> float:
    """What the reward of one reply loses where the KL is part of it."""
    return sum(
        weight_at(row, t, algo.kl) * float(divergence(zero() + row.old[t], row.start[t], algo.kl_estimator))
        for t in range(len(row.channels))
        if weight_at(row, t, algo.kl) > 0
    )


def entropy(rollouts: Sequence[Scored], algo: Any) -> Tensor:
    """Coefficients included."""
    return by_class(rollouts, algo.entropy, lambda row, t: row.entropy[t])


def losses(
    weight: float,
    rollouts: Sequence[Scored],
    anchors: Sequence[Scored],
    pairs: Sequence[tuple[Scored, Scored, float]],
    algo: Any,
    max_new_tokens: int,
) -> dict[str, Tensor]:
    """Every component and ``total`` = (1 - lambda) SFT + lambda (PO + DPO + KL - ENTROPY)."""
    actual = {
        "sft": sft(anchors, algo),
        "po": po(rollouts, algo, max_new_tokens) if algo.loss == "grpo" else zero(),
        "dpo": dpo(pairs, algo),
        "kl": kl(rollouts, algo),
        "entropy": entropy(rollouts, algo),
    }
    learnt = actual["po"] + actual["dpo"] + actual["kl"] - actual["entropy"]
    return {**actual, "total": (1 - weight) * actual["sft"] + weight * learnt}
