"""The objective: which positions carry which loss, with which weight.

    L = (1 - lambda) * SFT  +  lambda * (PO + kl_text * KL_TEXT + kl_audio * KL_AUDIO)          METHOD §2

Each of the four components is a sum over its positions; a position's weight already holds the division by
the component's *global* count. Every rank computes all of this from the same ``StepBatch``, so no count is
ever communicated and no gradient depends on how the batch is cut.

Invariants: an empty mask gives no weight anywhere and never falls back to another mask; PAD and forced
positions join nothing; the KL masks do not look at the preference mask. A weight that cannot change the
gradient (lambda 0, zero advantage, zero coefficient) is stored as 0, which is what lets ``batch.py`` leave
tails and whole rows out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from conf.schema import AlgoConfig
from learner.grammar import Grammar
from learner.types import Anchor, Rollout, StepBatch
from speech.channels import Channel
from speech.interleave import FREE

Mask = NDArray[np.bool_]
LETTERS = {channel.letter: channel for channel in Channel}


class Component(IntEnum):
    """The four losses; row of ``Row.weights_CR``."""

    SFT = 0
    PO = 1
    KL_TEXT = 2
    KL_AUDIO = 3


KL = (Component.KL_TEXT, Component.KL_AUDIO)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One sequence to score.

    Arrays have one entry per response position R; position j is ``ids[start + j]``.
    """

    key: str | None  # "prompt_id/index" of a rollout; None: an anchor
    name: str  # for error messages
    ids: tuple[int, ...]  # prompt and response
    start: int  # length of the prompt, at least 1
    channels_R: NDArray[np.int8]
    weights_CR: NDArray[np.float64]  # Component x position
    behaviour_R: NDArray[np.float32]  # zeros for an anchor
    phases_R: NDArray[np.int64]
    temperature: float
    advantage: float

    @property
    def needed_R(self) -> Mask:
        """Positions whose log-prob the loss asks for."""
        needed: Mask = (self.weights_CR != 0).any(axis=0)
        return needed

    def only(self, components: Sequence[Component]) -> "Row":
        """The same row as if only these components existed."""
        kept = np.zeros_like(self.weights_CR)
        kept[list(components)] = self.weights_CR[list(components)]
        return replace(self, weights_CR=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """How the replies were drawn, as far as their weights and log-probs depend on it."""

    max_new_tokens: int
    temperature: float
    grammar: Grammar | None = None  # the mask they were sampled under


def scales(weight: float, algo: AlgoConfig) -> tuple[float, float, float, float]:
    """Factor of each component in the total, in the order of ``Component``. ``weight`` is lambda."""
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"lambda must lie in [0, 1]: got {weight}")
    return (1.0 - weight, weight, weight * algo.kl_text, weight * algo.kl_audio)


def needs_reference(algo: AlgoConfig) -> bool:
    """Whether any step of this run can ask for the frozen start policy."""
    prefers = algo.gate.lambda_max > 0 if algo.mix == "gate" else algo.fixed_lambda > 0
    return prefers and (algo.kl_text > 0 or algo.kl_audio > 0)


def channels_of(letters: str) -> NDArray[np.int8]:
    """The channels that a string of T A B E P spells."""
    return np.array([LETTERS[letter] for letter in letters], dtype=np.int8)


def trainable(rollout: Rollout) -> Mask:
    """Positions that may join an objective: sampled, and not PAD."""
    mask: Mask = np.array(rollout.sampled, dtype=np.bool_) & (channels_of(rollout.channels) != Channel.PAD)
    return mask


def preference_mask(rollout: Rollout, algo: AlgoConfig) -> Mask:
    """Positions that carry the preference loss."""
    joined = [Channel.TEXT]
    if algo.channels == "all":
        joined.append(Channel.AUDIO)
    if algo.boundary:
        joined.append(Channel.BOUNDARY)
    if algo.stop:
        joined.append(Channel.STOP)
    mask: Mask = trainable(rollout) & np.isin(channels_of(rollout.channels), joined)
    return mask


def kl_masks(rollout: Rollout) -> tuple[Mask, Mask]:
    """Positions of the text KL (TEXT, BOUNDARY, STOP) and of the audio KL (AUDIO), whatever is preferred."""
    audio = channels_of(rollout.channels) == Channel.AUDIO
    return trainable(rollout) & ~audio, trainable(rollout) & audio


def aggregate(masks: Sequence[Mask], aggregation: str, max_new_tokens: int = 1) -> list[NDArray[np.float64]]:
    """Weight of each preference position, one array per rollout.

    sequence_mean: mean over a reply's positions, then over all replies (one without positions counts as 0);
    token_mean: mean over all positions; sum: sum over a reply, mean over replies; constant: that /
    max_new_tokens.
    """
    tokens = sum(int(mask.sum()) for mask in masks)

    def divisor(mask: Mask) -> float:
        match aggregation:
            case "sequence_mean":
                return float(mask.sum()) * len(masks)
            case "token_mean":
                return tokens
            case "sum":
                return len(masks)
            case "constant":
                return len(masks) * max_new_tokens
        raise ValueError(f"unknown aggregation: {aggregation!r}")

    return [mask / divisor(mask) if mask.any() else np.zeros(len(mask)) for mask in masks]


def rows_of(batch: StepBatch, algo: AlgoConfig, sampled: Sampled) -> list[Row]:
    """Every row of the step with its weights; rollouts first.

    ValueError: a malformed row, or a token that the grammar forbids.
    """
    factor = scales(batch.weight, algo)
    preference = aggregate(
        [preference_mask(r, algo) for r in batch.rollouts], algo.aggregation, sampled.max_new_tokens
    )
    text = aggregate([kl_masks(r)[0] for r in batch.rollouts], "token_mean")
    audio = aggregate([kl_masks(r)[1] for r in batch.rollouts], "token_mean")
    rows = []
    for rollout, po, kl_text, kl_audio in zip(batch.rollouts, preference, text, audio, strict=True):
        weights = np.stack([np.zeros_like(po), po * (rollout.advantage != 0.0), kl_text, kl_audio])
        rows.append(_rollout_row(rollout, _active(weights, factor), sampled))
    sft = aggregate([channels_of(a.channels) != Channel.PAD for a in batch.anchors], "token_mean")
    for anchor, weight in zip(batch.anchors, sft, strict=True):
        weights = np.zeros((len(Component), len(weight)))
        weights[Component.SFT] = weight
        rows.append(_anchor_row(anchor, _active(weights, factor)))
    return rows


def scoring_rows(rollouts: Sequence[Rollout], sampled: Sampled) -> list[Row]:
    """Rows that ask for the log-prob of every token, whatever any objective needs."""
    everything = np.zeros(len(Component))
    everything[Component.PO] = 1.0
    return [_rollout_row(r, np.tile(everything[:, None], len(r.ids)), sampled) for r in rollouts]


def _active(weights_CR: NDArray[np.float64], factor: Sequence[float]) -> NDArray[np.float64]:
    """Weights of components that the total does not contain are 0: nobody needs to compute them."""
    present = np.array(factor, dtype=np.float64) != 0
    return np.where(present[:, None], weights_CR, 0.0)


def _rollout_row(rollout: Rollout, weights_CR: NDArray[np.float64], sampled: Sampled) -> Row:
    name = f"rollout {rollout.prompt_id}/{rollout.index}"
    lengths = {len(rollout.ids), len(rollout.logps), len(rollout.channels), len(rollout.sampled)}
    if len(lengths) != 1 or not rollout.prompt_ids:
        raise ValueError(
            f"{name}: ids, logps, channels and sampled must be equally long and follow a prompt: "
            f"got {lengths}"
        )
    free = np.full(len(rollout.ids), FREE, dtype=np.int64)
    return Row(
        key=f"{rollout.prompt_id}/{rollout.index}",
        name=name,
        ids=rollout.prompt_ids + rollout.ids,
        start=len(rollout.prompt_ids),
        channels_R=channels_of(rollout.channels),
        weights_CR=weights_CR,
        behaviour_R=np.array(rollout.logps, dtype=np.float32),
        phases_R=free if sampled.grammar is None else sampled.grammar.phases_of(rollout.ids, name),
        temperature=sampled.temperature,
        advantage=rollout.advantage,
    )


def _anchor_row(anchor: Anchor, weights_CR: NDArray[np.float64]) -> Row:
    """Anchors are plain cross-entropy: temperature 1, no grammar mask."""
    if len(anchor.ids) != len(anchor.channels) or not anchor.prompt_ids:
        raise ValueError(
            f"anchor {anchor.prompt_id}: ids and channels must be equally long and follow a prompt: "
            f"got {len(anchor.ids)} and {len(anchor.channels)}"
        )
    return Row(
        key=None,
        name=f"anchor {anchor.prompt_id}",
        ids=anchor.prompt_ids + anchor.ids,
        start=len(anchor.prompt_ids),
        channels_R=channels_of(anchor.channels),
        weights_CR=weights_CR,
        behaviour_R=np.zeros(len(anchor.ids), dtype=np.float32),
        phases_R=np.full(len(anchor.ids), FREE, dtype=np.int64),
        temperature=1.0,
        advantage=0.0,
    )
