"""The reply grammar of a family, as data: which tokens may stand where.

    delimited   (TEXT+ begin AUDIO+ end)+ STOP            word-aligned or cut by a pattern
    counted     n TEXT, m AUDIO, n TEXT, m AUDIO, ...     the last text is followed by AUDIO to the end, STOP
    parallel    two streams side by side                  data only until a parallel family exists

The grammar is compiled to a small automaton over six symbols. A *phase* is the index of a set of allowed
tokens; ``allowed()[phase]`` is the mask. Engine and learner read the same automaton, so the distribution that
is sampled is the one that is scored. Invariant: once a reply has broken the grammar (or has ended) every
phase is FREE, where everything is allowed: a mask is never empty and never argues with the past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speech.channels import Channel, ChannelMap

Kind = Literal["delimited", "counted", "parallel"]
Pattern = tuple[tuple[int, int], ...]
FREE = 0  # the phase that allows everything


class Symbol(IntEnum):
    """What a token is to the grammar."""

    TEXT = 0
    AUDIO = 1
    BEGIN = 2
    END = 3
    STOP = 4
    OTHER = 5  # allowed in FREE only


@dataclass(frozen=True, slots=True)
class _Automaton:
    """States 0 (start), 1 (done), 2 (broken), then the grammar's own. ``moves``: [state][symbol] -> state."""

    moves: tuple[tuple[int, ...], ...]
    phase: tuple[int, ...]  # per state
    sets: tuple[frozenset[Symbol], ...]  # per phase


START, DONE, BROKEN = "start", "done", "broken"


@dataclass(frozen=True)
class Interleave:
    """A reply grammar. ``pattern``: (texts, codes) per chunk, boundaries not counted; its last pair repeats.

    A delimited grammar is obeyed by any chunking, its pattern only says how ``merge`` cuts a target (empty:
    as it is given). ValueError: ids in the wrong channel, or a pattern that the kind does not have.

    Example:
        state = interleave.start()
        for token in reply:
            mask = interleave.allowed()[interleave.phase(state)]  # what could have stood here
            state = interleave.advance(state, token)
    """

    kind: Kind
    channels: ChannelMap
    stop: tuple[int, ...]
    begin: int | None = None
    end: int | None = None
    pattern: Pattern = ()

    def __post_init__(self) -> None:
        if not self.stop:
            raise ValueError("a reply grammar needs a stop id: got none")
        if (self.begin is None or self.end is None) == (self.kind == "delimited"):
            given = f"got kind={self.kind}, begin={self.begin}, end={self.end}"
            raise ValueError(f"begin and end belong to delimited replies, and to them only: {given}")
        if self.kind == "counted" and not self.pattern:
            raise ValueError("a counted reply grammar needs a pattern: got none")
        for pair in self.pattern:
            if min(pair) < 1:
                raise ValueError(f"a pattern counts at least one text and one code: got {pair}")
        bounds = [token for token in (self.begin, self.end) if token is not None]
        for channel, tokens in ((Channel.STOP, self.stop), (Channel.BOUNDARY, bounds)):
            for token in tokens:
                found = Channel(self.channels.of([token])[0])
                if found != channel:
                    raise ValueError(f"id {token} must be in channel {channel.name}: it is {found.name}")

    # -- the automaton, one token at a time

    def start(self) -> int:
        """State before the first token of a reply."""
        return 0

    def advance(self, state: int, token: int) -> int:
        """State after ``token``; constant time. ValueError: an id outside the vocabulary."""
        if not 0 <= token < len(self._symbols):
            raise ValueError(f"token id must lie in [0, {len(self._symbols)}): got {token}")
        return self._automaton.moves[state][self._symbols[token]]

    def phase(self, state: int) -> int:
        """Row of ``allowed()`` that holds in ``state``."""
        return self._automaton.phase[state]

    # -- whole replies

    def allowed(self) -> NDArray[np.bool_]:
        """Which ids each phase allows, bool [phases, vocab], read-only; row FREE is all true."""
        return self._allowed

    def phases(self, ids: Sequence[int]) -> list[int]:
        """The phase at every position, given the ids before it; one per id."""
        found, state = [], self.start()
        for token in ids:
            found.append(self.phase(state))
            state = self.advance(state, token)
        return found

    def phase_after(self, ids: Sequence[int]) -> int:
        """The phase at the position that follows ``ids``."""
        return self.phase(self._run(ids))

    def well_formed(self, ids: Sequence[int]) -> bool:
        """True for a whole reply that obeys the grammar, stop id included and nothing behind it."""
        return self._run(ids) == 1

    def split(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """(text ids, code ids) in order, up to the first stop. Takes any reply: cut, broken or empty."""
        self._automaton  # noqa: B018  a parallel reply is refused, not misread
        stops = [i for i, token in enumerate(ids) if token in self.stop]
        kept = ids[: stops[0]] if stops else ids
        channels = self.channels.of(kept)
        texts = [token for token, channel in zip(kept, channels, strict=True) if channel == Channel.TEXT]
        codes = [token for token, channel in zip(kept, channels, strict=True) if channel == Channel.AUDIO]
        return texts, codes

    def merge(self, texts: Sequence[Sequence[int]], codes: Sequence[Sequence[int]]) -> list[int]:
        """A well-formed reply of the given chunks: ``texts[i]`` are the words that ``codes[i]`` speaks.

        A pattern joins the chunks and cuts them again. ValueError: an empty chunk, unequal numbers of chunks,
        an id of another channel, or codes that run out before a counted text does.
        """
        self._automaton  # noqa: B018  as in split
        self._check_chunks(texts, codes)
        if self.pattern:
            texts, codes = self._cut(
                [t for chunk in texts for t in chunk], [c for chunk in codes for c in chunk]
            )
        before = [] if self.begin is None else [self.begin]
        after = [] if self.end is None else [self.end]
        merged: list[int] = []
        for text, code in zip(texts, codes, strict=True):
            merged += [*text, *before, *code, *after]
        return [*merged, self.stop[0]]

    # -- private

    def _run(self, ids: Sequence[int]) -> int:
        state = self.start()
        for token in ids:
            state = self.advance(state, token)
        return state

    def _check_chunks(self, texts: Sequence[Sequence[int]], codes: Sequence[Sequence[int]]) -> None:
        if len(texts) != len(codes) or not texts:
            given = f"got {len(texts)} and {len(codes)}"
            raise ValueError(f"a reply needs as many text as code chunks, at least one: {given}")
        for channel, chunks in ((Channel.TEXT, texts), (Channel.AUDIO, codes)):
            for chunk in chunks:
                if not len(chunk):
                    raise ValueError(f"a chunk needs at least one {channel.name} id: got none")
                wrong = np.asarray(chunk)[self.channels.of(chunk) != channel]
                if len(wrong):
                    raise ValueError(f"id {wrong[0]} must be in channel {channel.name} to be merged there")

    def _cut(self, text: Sequence[int], code: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
        """Cut by the pattern; what is left of the longer side joins the last chunk."""
        texts: list[list[int]] = []
        codes: list[list[int]] = []
        t = c = 0
        while t < len(text) and c < len(code):
            n_text, n_audio = self.pattern[min(len(texts), len(self.pattern) - 1)]
            texts.append(list(text[t : t + n_text]))
            codes.append(list(code[c : c + n_audio]))
            t, c = t + n_text, c + n_audio
        if self.kind == "counted" and t < len(text):
            given = f"got {len(code)} codes for {len(text)} texts"
            raise ValueError(f"a counted reply needs codes until its text is over: {given}")
        texts[-1] += text[t:]
        codes[-1] += code[c:]
        return texts, codes

    @cached_property
    def _automaton(self) -> _Automaton:
        if self.kind == "parallel":
            raise ValueError("a parallel reply grammar holds data only: no parallel family is supported yet")
        return _delimited() if self.kind == "delimited" else _counted(self.pattern)

    @cached_property
    def _symbols(self) -> list[int]:
        table = np.full(self.channels.vocab, Symbol.OTHER, np.int64)
        (table_V,) = self.channels.table_SV
        table[table_V == Channel.TEXT] = Symbol.TEXT
        table[table_V == Channel.AUDIO] = Symbol.AUDIO
        if self.begin is not None and self.end is not None:
            table[self.begin], table[self.end] = Symbol.BEGIN, Symbol.END
        table[list(self.stop)] = Symbol.STOP
        return [int(symbol) for symbol in table]

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        symbols = np.asarray(self._symbols)
        masks = np.stack([np.isin(symbols, [int(s) for s in allowed]) for allowed in self._automaton.sets])
        masks.flags.writeable = False
        return masks


def _compile(moves: dict[str, dict[Symbol, str]]) -> _Automaton:
    """Number the states; equal sets of allowed symbols share a phase."""
    names = [START, DONE, BROKEN, *(name for name in moves if name != START)]
    sets = [frozenset(Symbol)]
    phase = []
    for name in names:
        allowed = frozenset(moves.get(name, {})) or sets[FREE]
        if allowed not in sets:
            sets.append(allowed)
        phase.append(sets.index(allowed))
    number = {name: i for i, name in enumerate(names)}
    table = tuple(tuple(number[moves.get(name, {}).get(s, BROKEN)] for s in Symbol) for name in names)
    return _Automaton(table, tuple(phase), tuple(sets))


@lru_cache
def _delimited() -> _Automaton:
    return _compile(
        {
            START: {Symbol.TEXT: "text"},
            "text": {Symbol.TEXT: "text", Symbol.BEGIN: "begun"},
            "begun": {Symbol.AUDIO: "audio"},
            "audio": {Symbol.AUDIO: "audio", Symbol.END: "ended"},
            "ended": {Symbol.TEXT: "text", Symbol.STOP: DONE},
        }
    )


@lru_cache
def _counted(pattern: Pattern) -> _Automaton:
    """States name the group g and how many of its texts (t) or codes (a) have been seen."""
    moves: dict[str, dict[Symbol, str]] = {"tail": {Symbol.AUDIO: "tail", Symbol.STOP: DONE}}

    def text_seen(g: int, n: int) -> str:
        return f"{g}t{n}" if n < pattern[g][0] else f"{g}a0"

    def code_seen(g: int, n: int) -> str:
        return f"{g}a{n}" if n < pattern[g][1] else f"{min(g + 1, len(pattern) - 1)}t0"

    for g, (n_text, n_audio) in enumerate(pattern):
        over = {Symbol.AUDIO: "tail", Symbol.STOP: DONE}  # the text was over with the last group
        moves[f"{g}t0"] = {Symbol.TEXT: text_seen(g, 1), **over}
        for n in range(1, n_text):
            moves[f"{g}t{n}"] = {Symbol.TEXT: text_seen(g, n + 1), Symbol.AUDIO: "tail"}
        moves[f"{g}a0"] = {Symbol.AUDIO: code_seen(g, 1)}
        for n in range(1, n_audio):
            moves[f"{g}a{n}"] = {Symbol.AUDIO: code_seen(g, n + 1), Symbol.STOP: DONE}
    moves[START] = {Symbol.TEXT: text_seen(0, 1)}
    return _compile(moves)
