"""Channels: which kind of thing each token id is.

Every response position belongs to exactly one channel (docs/method.md §1). The map is built from exact
token ids by the model family; it is a table over the whole embedding, so an id that the tokenizer
does not know (padding rows) is PAD and never "audio because it is large".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Channel(IntEnum):
    """What a token is. The letter is how rollout records spell it."""

    TEXT = 0  # what is said
    AUDIO = 1  # how it sounds
    BOUNDARY = 2  # switches between the two; of parallel streams: ends the audio
    STOP = 3  # ends the turn; of parallel streams: the text
    PAD = 4  # fillers, and embedding rows beyond the tokenizer: joins no objective

    @property
    def letter(self) -> str:
        """One of T A B E P."""
        return "TABEP"[self]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelMap:
    """Token id -> Channel for every row of the embedding, once per stream: ids[i] belongs to stream i % S.

    Example:
        channels = ChannelMap.build(vocab=99, text=range(9, 20), audio=range(20, 90), boundary=[4], stop=[3])
        channels.to_letters([12, 4, 40, 4, 3])  # 'TBABE'
    """

    table_SV: NDArray[np.int8]

    @classmethod
    def build(
        cls,
        *,
        vocab: int,
        text: Iterable[int],
        audio: Iterable[int],
        boundary: Iterable[int],
        stop: Iterable[int],
    ) -> "ChannelMap":
        """Rows named by no argument are PAD. ValueError: an id outside the vocabulary, or in two channels."""
        table = np.full(vocab, Channel.PAD, dtype=np.int8)
        taken: dict[int, Channel] = {}
        named = (
            (Channel.TEXT, text),
            (Channel.AUDIO, audio),
            (Channel.BOUNDARY, boundary),
            (Channel.STOP, stop),
        )
        for channel, ids in named:
            for token in ids:
                if not 0 <= token < vocab:
                    raise ValueError(f"{channel.name} id must lie in [0, {vocab}): got {token}")
                if token in taken:
                    raise ValueError(f"id {token} cannot be both {taken[token].name} and {channel.name}")
                taken[token] = channel
                table[token] = channel
        return cls.of_streams([cls(table[None])])

    @classmethod
    def of_streams(cls, streams: "Sequence[ChannelMap]") -> "ChannelMap":
        """One map of parallel streams, from the map of each; all have the same vocabulary."""
        table = np.concatenate([stream.table_SV for stream in streams])
        table.flags.writeable = False
        return cls(table)

    @property
    def vocab(self) -> int:
        """Rows of the embedding, padding rows included."""
        return int(self.table_SV.shape[1])

    @property
    def streams(self) -> int:
        """Ids per step."""
        return len(self.table_SV)

    def channels_of(self, ids: Sequence[int]) -> NDArray[np.int8]:
        """Channel of each id, shape [len(ids)]. IndexError: an id beyond the embedding."""
        tokens = np.asarray(ids, dtype=np.int64)
        channels: NDArray[np.int8] = self.table_SV[np.arange(len(tokens)) % self.streams, tokens]
        return channels

    def to_letters(self, ids: Sequence[int]) -> str:
        """The channels as a string, one of T A B E P per id."""
        return "".join("TABEP"[c] for c in self.channels_of(ids))
