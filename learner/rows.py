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
from learner.types import TrainingReply
from rollout.types import Reply, ReplyKey
from speech.features import AudioFeatures
from speech.grammar.channels import Channel
from speech.grammar.interleave import FREE

PositionMask = NDArray[np.bool_]
PositionWeights = NDArray[np.float64]
CHANNEL_BY_LETTER = {channel.letter: channel for channel in Channel}


class LossComponent(IntEnum):
    """The parts of the loss; row of ``TrainingRow.weights_CR``."""

    SFT = 0
    PO = 1
    DPO = 2  # signed: a rejected reply's positions weigh negatively
    KL = 3
    ENTROPY = 4


REFERENCE_COMPONENTS = (LossComponent.DPO, LossComponent.KL)  # what asks for the reference policy's log-probs


def compute_component_factors(weight: float) -> dict[LossComponent, float]:
    """Factor of each component in the total. ``weight`` is lambda. ValueError: it is outside [0, 1]."""
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"lambda must lie in [0, 1]: got {weight}")
    return {
        LossComponent.SFT: 1.0 - weight,
        LossComponent.PO: weight,
        LossComponent.DPO: weight,
        LossComponent.KL: weight,
        LossComponent.ENTROPY: -weight,
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingRow:
    """One sequence to score.

    Arrays have one entry per response position R; position j is ``ids[start + j]``.
    """

    key: ReplyKey | None  # of a reply that this run sampled, else None
    name: str  # for error messages
    ids: tuple[int, ...]  # prompt and response
    start: int  # length of the prompt, at least 1
    channels_R: NDArray[np.int8]
    weights_CR: PositionWeights  # LossComponent x position
    behaviour_R: NDArray[np.float32]  # zeros where there is no key
    grammar_states_R: NDArray[np.int64]
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
        table = np.zeros_like(self.weights_CR)
        table[list(components)] = self.weights_CR[list(components)]
        return replace(self, weights_CR=table)


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
    """LossComponent x position, 0 for every component that is not named (``po=...``)."""
    table = np.zeros((len(LossComponent), len(next(iter(named.values())))))
    for name, weights in named.items():
        table[LossComponent[name.upper()]] = weights
    return table


def build_training_row(
    trained: TrainingReply,
    weights_CR: PositionWeights,
    setup: SamplingSetup,
    *,
    role: str = "rollout",
    pair: int | None = None,
    pair_weight: float = 0.0,
) -> TrainingRow:
    """A reply. One that this run did not sample is scored as the model is: temperature 1, no grammar mask.

    ``role``: what error messages call it. ValueError: unequal lengths, no prompt, or a token that the grammar
    forbids.
    """
    prompt, reply = trained.prompt, trained.reply
    sampled_reply = reply if isinstance(reply, Reply) else None
    name = f"{role} {prompt.id}" if sampled_reply is None else f"{role} {prompt.id}/{sampled_reply.index}"
    logps = (0.0,) * len(reply.ids) if sampled_reply is None else sampled_reply.logps
    lengths = {len(reply.ids), len(logps), len(reply.channels), len(reply.sampled)}
    if len(lengths) != 1 or not prompt.ids:
        raise ValueError(
            f"{name}: ids, logps, channels and sampled must be equally long and follow a prompt: got {lengths}"
        )
    channels = letters_to_channels(reply.channels)
    grammar = None if sampled_reply is None else setup.grammar
    return TrainingRow(
        key=trained.key,
        name=name,
        ids=prompt.ids + reply.ids,
        start=len(prompt.ids),
        channels_R=channels,
        weights_CR=weights_CR,
        behaviour_R=np.array(logps, dtype=np.float32),
        grammar_states_R=np.full(len(reply.ids), FREE) if grammar is None else grammar.states_of(reply.ids, name),
        advantages_R=trained.advantage.per_position(channels),
        temperature=1.0 if sampled_reply is None else setup.temperature,
        pair=pair,
        pair_weight=pair_weight,
        features=prompt.features,
    )


def build_scoring_rows(replies: Sequence[TrainingReply], setup: SamplingSetup) -> list[TrainingRow]:
    """Rows that ask for the log-prob of every token, whatever any objective needs."""
    return [build_training_row(r, build_weight_table(po=np.ones(len(r.reply.ids))), setup) for r in replies]
