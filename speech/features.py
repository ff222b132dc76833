"""A prompt as the models read it: ids, and continuous audio at some of its steps.

Invariant: the vectors are in the embedding space of the model and do not depend on anything that is trained:
a frozen encoder made them once, where the prompt was encoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AudioVectors = NDArray[np.float32]  # [K, H]


@dataclass(frozen=True, slots=True, eq=False)
class AudioFeatures:
    """``vectors[k]`` takes the place of step ``steps[k]`` (in a family with two streams: joins it)."""

    steps: tuple[int, ...]
    vectors: AudioVectors

    def __post_init__(self) -> None:
        assert self.vectors.ndim == 2 and len(self.steps) == len(self.vectors), "one vector per step"

    @classmethod
    def join_features(cls, parts: "Sequence[AudioFeatures]") -> "AudioFeatures | None":
        """Those of several turns; None where no turn has any."""
        if not parts:
            return None
        steps = tuple(step for part in parts for step in part.steps)
        return cls(steps, np.concatenate([part.vectors for part in parts]))


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt; ids at steps that features replace are place holders."""

    ids: tuple[int, ...]
    features: AudioFeatures | None = None
