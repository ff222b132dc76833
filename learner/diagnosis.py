"""The figures of a diagnosis: gradients of each part of the model, and the shift of log-probs.

    ratio  = |g_TEXT| / |g_AUDIO|                 g_c: gradient of the preference loss over channel c alone,
    cosine = <g_a, g_b> / (|g_a| |g_b|)           lambda left out of it; g_SFT: that of the reference answers
    shift  = mean_t log pi(y_t) - log pi_ref(y_t)                                  over a channel's positions

Invariant: what was not measured, or is not defined (an angle to a zero vector), is None, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Self

InnerProducts = Mapping[tuple[str, str], float]  # (direction, direction) -> inner product of their gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class PartGradients:
    """One part of the model. ``text``, ``audio``, ``sft``: norms of its gradients; None: no position weighed.

    ``parameters``: how many numbers it has, over all ranks.
    """

    name: str
    parameters: int
    text: float | None
    audio: float | None
    sft: float | None
    text_audio_ratio: float | None
    text_audio_cosine: float | None
    sft_text_cosine: float | None

    @classmethod
    def from_products(cls, name: str, parameters: int, products: InnerProducts) -> Self:
        """From the inner products of the gradients that there are, each with itself and with TEXT."""
        norms = {
            direction: sqrt(products[direction, direction])
            for direction in ("text", "audio", "sft")
            if (direction, direction) in products
        }

        def cosine(other: str) -> float | None:
            lengths = norms.get("text", 0.0) * norms.get(other, 0.0)
            return products["text", other] / lengths if lengths else None

        text, audio = norms.get("text"), norms.get("audio")
        return cls(
            name=name,
            parameters=parameters,
            **{direction: norms.get(direction) for direction in ("text", "audio", "sft")},
            text_audio_ratio=text / audio if text is not None and audio else None,
            text_audio_cosine=cosine("audio"),
            sft_text_cosine=cosine("sft"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobShift:
    """Policy minus reference policy, in nats per token, over ``tokens`` positions."""

    mean: float
    mean_abs: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDiagnosis:
    """One look at a policy, before the update of its step.

    ``layers``: from the embedding to the head. ``shift``: by ``rollout_text``, ``rollout_audio``,
    ``anchor_text``, ``anchor_audio``; one that has no positions is not there.
    """

    policy_version: int
    tied: bool  # embedding and head are one matrix
    layers: tuple[PartGradients, ...]
    model: PartGradients  # all of them as one vector
    shift: Mapping[str, LogprobShift]

    def metrics(self) -> dict[str, float]:
        """Under the names of docs/design.md §4; what was not measured is left out."""
        named = {
            "grad/text_audio_ratio": self.model.text_audio_ratio,
            "grad/text_audio_cosine": self.model.text_audio_cosine,
            "grad/sft_text_cosine": self.model.sft_text_cosine,
        }
        measured = {name: value for name, value in named.items() if value is not None}
        for name, shift in self.shift.items():
            measured |= {f"shift/{name}": shift.mean, f"shift/{name}_abs": shift.mean_abs}
        return measured
