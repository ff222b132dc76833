"""The judges' settings."""

from pathlib import Path
from typing import Self

from pydantic import model_validator

from conf.fields import Fraction, NonNegative, Positive, Seconds, Strict


class JudgeConfig(Strict):
    """Who scores replies and how the axes are put together."""

    workers: Positive = 2
    """Judge replicas."""
    semantic: NonNegative = 0.6
    """Weight of what was said, as heard."""
    acoustic: NonNegative = 0.4
    """Weight of how it sounded."""
    scale_lo: float = 1.0
    """Lowest score."""
    scale_hi: float = 5.0
    """Highest score."""
    language_model: Path | None = None
    """ARPA language model of the recogniser; none: the recogniser's own open model."""
    dictionary: Path | None = None
    """Pronunciations of the recogniser; none: its own."""
    deadline_s: Seconds = 60.0
    """A verdict must arrive within this, else it is missing."""
    max_missing: Fraction = 0.5
    """A step with a larger share of missing verdicts stops the run: nothing is learnt from an outage."""

    @model_validator(mode="after")
    def _has_axis(self) -> Self:
        if self.semantic + self.acoustic <= 0:
            raise ValueError(f"semantic must be positive when acoustic is 0: got {self.semantic}")
        if not self.scale_lo < self.scale_hi:
            raise ValueError(f"scale_lo must be below scale_hi: got [{self.scale_lo}, {self.scale_hi}]")
        return self
