"""The family protocol: everything the system must know about a model that is not in its weights.

One file per family implements it; the rest of the code never sees a model's name. A family is built
from a local checkpoint folder and reads its ids from the tokenizer there, never from constants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from speech.channels import ChannelMap
from speech.codec import Codec
from speech.interleave import Interleave

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a dialogue: written (``text``) or spoken (``codes``), never both."""

    role: Role
    text: str | None = None
    codes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.codes is None):
            raise ValueError(f"a turn is written (text) or spoken (codes): got {self.text!r}, {self.codes!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A stretch of a target reply: words, then the codes that speak them."""

    text: str
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A reply taken apart. A reply cut anywhere still parses; then ``well_formed`` is false."""

    text: str
    codes: tuple[int, ...]
    well_formed: bool


class Family(Protocol):
    """What a model family provides. Owned by whoever encodes prompts or reads replies."""

    name: str
    path: Path
    channels: ChannelMap
    interleave: Interleave
    stop_ids: tuple[int, ...]

    def prompt(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Ids of the dialogue so far, up to where the assistant speaks. ValueError: an unknown word."""
        ...

    def target(self, chunks: Sequence[Chunk]) -> tuple[int, ...]:
        """Ids of a reference reply in the family's grammar, stop id included."""
        ...

    def split(self, ids: Sequence[int]) -> Spoken:
        """Take a sampled reply apart into its words and its codes."""
        ...

    def codec(self) -> Codec:
        """The codec, loaded on first use (rollout workers only; the learner never calls this)."""
        ...
