"""The mask that replies were sampled under, for the learner: without it the two sides would score
different distributions.

Invariant: a sampled token is allowed in its own grammar state. One that is not was sampled under another grammar,
and no log-prob of it would mean anything: the step is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.schema import Config
from speech.families.base import Family

GrammarStateReader = Callable[[Sequence[int]], Sequence[int]]  # ids of a reply -> grammar state per position


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """Which tokens each grammar state allows (bool [G, V]) and which grammar state each position of a reply is in."""

    allowed_GV: NDArray[np.bool_]
    read_grammar_states: GrammarStateReader

    def tensor(self) -> Tensor:
        """``allowed_GV`` for the model."""
        return torch.from_numpy(self.allowed_GV.copy())

    def states_of(self, ids: Sequence[int], name: str) -> NDArray[np.int64]:
        """Grammar state per position. ValueError, by ``name``: an id that its grammar state forbids."""
        grammar_states = np.array(self.read_grammar_states(ids), dtype=np.int64)
        forbidden = np.flatnonzero(~self.allowed_GV[grammar_states, np.array(ids, dtype=np.int64)])
        if len(forbidden):
            raise ValueError(
                f"{name}: id {ids[forbidden[0]]} at position {forbidden[0]} is "
                "forbidden by the grammar it was sampled under"
            )
        return grammar_states


def build_sampling_grammar(config: Config, family: Family) -> Grammar | None:
    """The model family's reply grammar if ``rollout.grammar`` masked the sampling, else None."""
    if not config.rollout.grammar:
        return None
    return Grammar(family.interleave.allowed_masks(), family.interleave.grammar_states)
