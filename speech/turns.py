"""A dialogue as prompts are made of it: turns of words and sound, in the order in which they were given."""

from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

from speech.features import AudioVectors

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyChunk:
    """A stretch of a reply: words, then the codes that speak them."""

    text: str
    codes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AudioPart:
    """Sound as the family hears it: codes, vectors, or both."""

    codes: tuple[int, ...] | None = None
    vectors: AudioVectors | None = None

    def __post_init__(self) -> None:
        if self.codes is None and self.vectors is None:
            raise ValueError("sound is codes, vectors, or both: got neither")


TurnPart = str | AudioPart


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One turn of a dialogue: words and sound in the order in which they were given.

    Words are as given, white space included. How much of it counts beside sound is the template's to say:
    ``parts`` for one that writes a turn as a single string, ``items`` for one that takes words and sound as
    things of their own.

    Example:
        Turn.from_parts("user", "Say this:", AudioPart(codes=(3, 1)))
    """

    role: Role
    parts: tuple[TurnPart, ...]

    def __post_init__(self) -> None:
        words = [isinstance(part, str) for part in self.parts]
        if not words or any(is_words and other for is_words, other in pairwise(words)):
            raise ValueError(f"a turn is words or sound or both, each stretch of words one part: got {self}")

    @classmethod
    def from_parts(cls, role: Role, *parts: TurnPart) -> "Turn":
        """The turn of these parts."""
        return cls(role, parts)

    @property
    def words(self) -> str:
        """All that is written of it."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def codes(self) -> tuple[int, ...]:
        """Of all its sound."""
        return tuple(chain(*(part.codes or () for part in self.parts if isinstance(part, AudioPart))))

    @property
    def is_written(self) -> bool:
        """Whether it is words alone."""
        return all(isinstance(part, str) for part in self.parts)

    @property
    def is_spoken(self) -> bool:
        """Whether it is sound alone."""
        return not any(isinstance(part, str) for part in self.parts)

    @property
    def is_interleaved_reply(self) -> bool:
        """Whether it is what a model of words and sound says: both, of the assistant."""
        return self.role == "assistant" and not self.is_written and not self.is_spoken

    @property
    def items(self) -> tuple[TurnPart, ...]:
        """The parts without the white space around words that stand beside sound, blank ones left out."""
        if self.is_written:
            return self.parts
        bare = (part.strip() if isinstance(part, str) else part for part in self.parts)
        return tuple(part for part in bare if part != "")

    def to_chunks(self) -> list[ReplyChunk]:
        """Words with their sound, pair by pair where they take turns, else all words with all codes."""
        texts = [part for part in self.items if isinstance(part, str)]
        codes = [part.codes or () for part in self.items if isinstance(part, AudioPart)]
        if [isinstance(part, str) for part in self.items] == [True, False] * len(texts):
            return [ReplyChunk(text=text, codes=own) for text, own in zip(texts, codes, strict=True)]
        return [ReplyChunk(text=" ".join(texts), codes=self.codes)]
