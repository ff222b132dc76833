"""What crosses the border between rollout and everyone else: frozen records of ids and log-probs.

Invariant: token-in-token-out. The ids a reply carries are the ids that were sampled; nothing is
re-tokenised, and every id has its behaviour log-prob, its channel and whether it was sampled at all.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speech.features import AudioFeatures

FinishReason = Literal["stop", "length", "abort"]
ReplyKey = tuple[str, int]  # prompt id, index in the group


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One encoded prompt. ``id`` is the manifest row's id."""

    id: str
    ids: tuple[int, ...]
    features: AudioFeatures | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How replies are drawn; the distribution that behaviour log-probs belong to.

    ``seed``: the reply with index i of prompt p is drawn with a seed made of (seed, p.id, i), so that
    the same seed gives the same replies whatever the number of workers. Temperature 0 is greedy.
    """

    group_size: int
    temperature: float
    max_new_tokens: int
    seed: int
    grammar: bool = False  # mask the logits so that the reply grammar cannot be broken


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One sampled reply. ``ids``, ``logps``, ``channels``, ``sampled``: one entry per id, stop included."""

    prompt_id: str
    index: int  # 0 <= index < group_size
    ids: tuple[int, ...]
    logps: tuple[float, ...]  # natural log, of the distribution sampled from (temperature and mask applied)
    channels: str  # T A B E P, one letter per id
    sampled: tuple[bool, ...]  # False: forced, joins no objective
    versions: tuple[int, ...]  # policy version that sampled each token
    finish: FinishReason
    text: str  # the TEXT channel, decoded
    well_formed: bool  # the ids obey the family's reply grammar

    @property
    def key(self) -> ReplyKey:
        """Names the reply in a step."""
        return self.prompt_id, self.index

    @property
    def policy_version(self) -> int:
        """The oldest version that sampled a token of this reply (staleness is counted from it)."""
        return min(self.versions, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What a listener hears. ``wave``: mono float32 in [-1, 1] at the codec's rate, empty without audio."""

    wave: NDArray[np.float32]
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.wave) / self.sample_rate
