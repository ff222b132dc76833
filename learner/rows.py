"""One sequence to score: its ids, and what each response position weighs in each component of the loss.

Invariant: a row is whole before it exists: ids, channels and flags have one entry per response position,
and no sampled token is one that the grammar forbids.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from learner.grammar import Grammar
from learner.types import Anchor, Rollout
from speech.features import AudioFeatures
from speech.grammar.channels import Channel
from speech.grammar.interleave import FREE

PositionMask = NDArray[np.bool_]
PositionWeights = NDArray[np.float64]
CHANNEL_BY_LETTER = {channel.letter: channel for channel in Channel}


class LossComponent(IntEnum):
    """The parts of the loss; row of ``Row.weights_CR``."""

    SFT = 0
    PO = 1
    DPO = 2  # signed: a rejected reply's positions weigh negatively
    KL = 3
    ENTROPY = 4


REFERENCE_COMPONENTS = (LossComponent.DPO, LossComponent.KL)  # what asks for the start policy's log-probs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingRow:
    """One sequence to score.

    Arrays have one entry per response position R; position j is ``ids[start + j]``.
    """

    key: str | None  # "prompt_id/index" of a reply that this run sampled, else None
    name: str  # for error messages
    ids: tuple[int, ...]  # prompt and response
    start: int  # length of the prompt, at least 1
    channels_R: NDArray[np.int8]
    weights_CR: PositionWeights  # Component x position
    behaviour_R: NDArray[np.float32]  # zeros where there is no key
    phases_R: NDArray[np.int64]
    advantages_R: PositionWeights
    temperature: float
    pair: int | None = None  # of a DPO row: both rows of a pair have the same number
    pair_weight: float = 0.0  # of the pair in the step's mean
    features: AudioFeatures | None = None  # continuous audio of the prompt

    @property
    def needed_R(self) -> PositionMask:
        """Positions whose log-prob the loss asks for."""
        needed: PositionMask = (self.weights_CR != 0).any(axis=0)
        return needed

    def restrict_to(self, components: Sequence[LossComponent]) -> "TrainingRow":
        """The same row as if only these components existed."""
        kept = np.zeros_like(self.weights_CR)
        kept[list(components)] = self.weights_CR[list(components)]
        return replace(self, weights_CR=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSetup:
    """How the replies were drawn, as far as their weights and log-probs depend on it."""

    max_new_tokens: int
    temperature: float
    grammar: Grammar | None = None  # the mask they were sampled under


def letters_to_channels(letters: str) -> NDArray[np.int8]:
    """The channels that a string of T A B E P spells."""
    return np.array([CHANNEL_BY_LETTER[letter] for letter in letters], dtype=np.int8)


def build_weight_table(**named: PositionWeights) -> PositionWeights:
    """Component x position, 0 for every component that is not named (``po=...``)."""
    table = np.zeros((len(LossComponent), len(next(iter(named.values())))))
    for name, weights in named.items():
        table[LossComponent[name.upper()]] = weights
    return table


def build_rollout_row(
    rollout: Rollout,
    weights_CR: PositionWeights,
    sampled: SamplingSetup,
    *,
    pair: int | None = None,
    pair_weight: float = 0.0,
) -> TrainingRow:
    """A reply. One that this run did not sample is scored as the model is: temperature 1, no grammar mask.

    ValueError: unequal lengths, no prompt, or a token that the grammar forbids.
    """
    name = f"rollout {rollout.key}"
    lengths = {len(rollout.ids), len(rollout.channels), len(rollout.sampled)}
    lengths |= set() if rollout.logps is None else {len(rollout.logps)}
    if len(lengths) != 1 or not rollout.prompt_ids:
        raise ValueError(
            f"{name}: ids, logps, channels and sampled must be equally long and follow a prompt: got {lengths}"
        )
    own = rollout.logps is not None
    channels = letters_to_channels(rollout.channels)
    grammar = sampled.grammar if own else None
    return TrainingRow(
        key=rollout.key if own else None,
        name=name,
        ids=rollout.prompt_ids + rollout.ids,
        start=len(rollout.prompt_ids),
        channels_R=channels,
        weights_CR=weights_CR,
        behaviour_R=np.array(rollout.logps or np.zeros(len(rollout.ids)), dtype=np.float32),
        phases_R=_free_grammar_states(len(rollout.ids))
        if grammar is None
        else grammar.grammar_states_of(rollout.ids, name),
        advantages_R=rollout.advantage.per_position(channels),
        temperature=sampled.temperature if own else 1.0,
        pair=pair,
        pair_weight=pair_weight,
        features=rollout.features,
    )


def build_anchor_row(anchor: Anchor, weights_CR: PositionWeights) -> TrainingRow:
    """Anchors are plain cross-entropy: temperature 1, no grammar mask. ValueError: unequal lengths."""
    if len(anchor.ids) != len(anchor.channels) or not anchor.prompt_ids:
        raise ValueError(
            f"anchor {anchor.prompt_id}: ids and channels must be equally long and follow a prompt: "
            f"got {len(anchor.ids)} and {len(anchor.channels)}"
        )
    return TrainingRow(
        key=None,
        name=f"anchor {anchor.prompt_id}",
        ids=anchor.prompt_ids + anchor.ids,
        start=len(anchor.prompt_ids),
        channels_R=letters_to_channels(anchor.channels),
        weights_CR=weights_CR,
        behaviour_R=np.zeros(len(anchor.ids), dtype=np.float32),
        phases_R=_free_grammar_states(len(anchor.ids)),
        advantages_R=np.zeros(len(anchor.ids)),
        temperature=1.0,
        features=anchor.features,
    )


def build_scoring_rows(rollouts: Sequence[Rollout], sampled: SamplingSetup) -> list[TrainingRow]:
    """Rows that ask for the log-prob of every token, whatever any objective needs."""
    return [build_rollout_row(r, build_weight_table(po=np.ones(len(r.ids))), sampled) for r in rollouts]


def _free_grammar_states(length: int) -> NDArray[np.int64]:
    return np.full(length, FREE, dtype=np.int64)
