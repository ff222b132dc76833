"""The reply grammar of a family, as data: which tokens may stand where.

    delimited   (TEXT+ begin AUDIO+ end)+ STOP            word-aligned or cut by a pattern
    counted     n TEXT, m AUDIO, n TEXT, m AUDIO, ...     the last text is followed by AUDIO to the end, STOP
    padded      (TEXT, m AUDIO)+ end STOP                 fillers in the slots of what is over first
    parallel    a text and an audio stream, by turns      blanks where a stream has nothing to say

The grammar is compiled to a small automaton over a few symbols (``speech.grammar.automaton``). A *grammar state* is
the index of a set of allowed tokens; ``allowed_masks()[grammar_state]`` is the mask. Engine and learner read the same
automaton, so the distribution that is sampled is the one that is scored. Invariant: once a reply has broken the
grammar (or has ended) every grammar state is FREE, where everything is allowed: a mask is never empty and never
argues with the past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speech.grammar.automaton import (
    FREE,
    Automaton,
    ChunkPattern,
    GrammarSymbol,
    build_counted_automaton,
    build_delimited_automaton,
    build_padded_automaton,
    build_parallel_automaton,
)
from speech.grammar.channels import Channel, ChannelMap

__all__ = ["FREE", "ChunkPattern", "GrammarKind", "Interleave"]

GrammarKind = Literal["delimited", "counted", "padded", "parallel"]
GRAMMAR_IDS: dict[GrammarKind, set[str]] = {
    "delimited": {"begin", "end"},
    "counted": set(),
    "padded": {"end", "text_pad", "audio_pad"},
    "parallel": {"blank", "end"},
}


@dataclass(frozen=True)
class Interleave:
    """A reply grammar. ``pattern``: (texts, codes) per chunk, boundaries not counted; its last pair repeats.

    A delimited grammar is obeyed by any chunking, its pattern only says how ``merge_chunks`` cuts a target (empty:
    as it is given). A padded one has the pattern ((1, m),) and a filler for each kind of slot. In a parallel
    one ``end`` ends the text, ``stop`` the codes and so the reply, ``blank`` fills either stream, and codes
    start ``delay`` steps late; ``end`` is STOP there, ``stop`` BOUNDARY, so TEXT and STOP are all of the text
    stream, AUDIO and BOUNDARY all of the audio stream.
    ValueError: ids in the wrong channel, or what the kind does not have.

    Example:
        state = interleave.start_state()
        for token in reply:
            mask = interleave.allowed_masks()[interleave.grammar_state(state)]  # what could have stood here
            state = interleave.advance(state, token)
    """

    kind: GrammarKind
    channels: ChannelMap
    stop: tuple[int, ...]
    begin: int | None = None
    end: int | None = None
    pattern: ChunkPattern = ()
    blank: int | None = None
    delay: int = 0
    text_pad: int | None = None
    audio_pad: int | None = None

    def __post_init__(self) -> None:
        if not self.stop:
            raise ValueError("a reply grammar needs a stop id: got none")
        given = {name for name in chain(*GRAMMAR_IDS.values()) if getattr(self, name) is not None}
        if given != GRAMMAR_IDS[self.kind]:
            wanted = " and ".join(sorted(GRAMMAR_IDS[self.kind])) or "stop ids only"
            raise ValueError(f"a {self.kind} reply grammar needs {wanted}: got {sorted(given)}")
        if (self.channels.streams == 2) != (self.kind == "parallel"):
            raise ValueError(f"parallel replies have two streams, others one: got {self.channels.streams}")
        if self.kind == "counted" and not self.pattern:
            raise ValueError("a counted reply grammar needs a pattern: got none")
        if self.kind == "padded" and [n_text for n_text, _ in self.pattern] != [1]:
            raise ValueError(f"a padded reply grammar needs one pair of 1 and m: got {self.pattern}")
        for pair in self.pattern:
            if min(pair) < 1:
                raise ValueError(f"a pattern counts at least one text and one code: got {pair}")
        side_by_side = self.kind == "parallel"  # then either stream has an end, and its own channel for it
        for channel, stream, tokens in (
            (Channel.BOUNDARY if side_by_side else Channel.STOP, self._audio_stream, self.stop),
            (Channel.STOP if side_by_side else Channel.BOUNDARY, 0, (self.begin, self.end)),
            (Channel.PAD, 0, (self.blank,)),
            (Channel.PAD, self._audio_stream, (self.blank, self.text_pad, self.audio_pad)),
        ):
            for token in tokens:
                if token is not None and (actual := self._channel_of(token, stream)) != channel:
                    raise ValueError(f"id {token} must be in channel {channel.name}: it is {actual.name}")

    # -- the automaton, one token at a time

    def start_state(self) -> int:
        """State before the first token of a reply."""
        return 0

    def advance(self, state: int, token: int) -> int:
        """State after ``token``; constant time. ValueError: an id outside the vocabulary."""
        symbols = self._symbols[self._automaton.stream_by_state[state]]
        if not 0 <= token < len(symbols):
            raise ValueError(f"token id must lie in [0, {len(symbols)}): got {token}")
        return self._automaton.moves[state][symbols[token]]

    def grammar_state(self, state: int) -> int:
        """Row of ``allowed_masks()`` that holds in ``state``."""
        return self._automaton.grammar_state_by_state[state]

    # -- whole replies

    def allowed_masks(self) -> NDArray[np.bool_]:
        """Which ids each grammar state allows, bool [grammar states, vocab], read-only; row FREE is all true."""
        return self._allowed

    def grammar_states(self, ids: Sequence[int]) -> list[int]:
        """The grammar state at every position, given the ids before it; one per id."""
        grammar_states, state = [], self.start_state()
        for token in ids:
            grammar_states.append(self.grammar_state(state))
            state = self.advance(state, token)
        return grammar_states

    def sampled_flags(self, ids: Sequence[int]) -> tuple[bool, ...]:
        """False where the grammar left one id only: it was forced, whatever the weights."""
        choices = self._allowed.sum(axis=1)
        return tuple(bool(choices[grammar_state] > 1) for grammar_state in self.grammar_states(ids))

    def well_formed(self, ids: Sequence[int]) -> bool:
        """True for a whole reply that obeys the grammar, stop id included and nothing behind it."""
        return self._final_state(ids) == 1

    def split_text_and_codes(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """(text ids, code ids) in order, up to the first stop. Takes any reply: cut, broken or empty."""
        streams = self.channels.streams
        stops = [i for i, token in enumerate(ids) if token in self.stop and i % streams == self._audio_stream]
        reply_ids = ids[: stops[0]] if stops else ids
        channels = self.channels.channels_of(reply_ids)
        texts = [token for token, channel in zip(reply_ids, channels, strict=True) if channel == Channel.TEXT]
        codes = [token for token, channel in zip(reply_ids, channels, strict=True) if channel == Channel.AUDIO]
        return texts, codes

    def merge_chunks(self, texts: Sequence[Sequence[int]], codes: Sequence[Sequence[int]]) -> list[int]:
        """A well-formed reply of the given chunks: ``texts[i]`` are the words that ``codes[i]`` speaks.

        A pattern joins the chunks and cuts them again. ValueError: an empty chunk, unequal numbers of chunks,
        an id of another channel, or codes that run out before a counted or parallel text does.
        """
        self._check_chunks(texts, codes)
        if self.kind == "parallel":
            return self._merge_parallel(list(chain(*texts)), list(chain(*codes)))
        if self.kind == "padded":
            return self._merge_padded(list(chain(*texts)), list(chain(*codes)))
        if self.pattern:
            texts, codes = self._cut_by_pattern(list(chain(*texts)), list(chain(*codes)))
        before = [] if self.begin is None else [self.begin]
        after = [] if self.end is None else [self.end]
        merged: list[int] = []
        for text, code in zip(texts, codes, strict=True):
            merged += [*text, *before, *code, *after]
        return [*merged, self.stop[0]]

    # -- private

    def _final_state(self, ids: Sequence[int]) -> int:
        state = self.start_state()
        for token in ids:
            state = self.advance(state, token)
        return state

    def _check_chunks(self, texts: Sequence[Sequence[int]], codes: Sequence[Sequence[int]]) -> None:
        if len(texts) != len(codes) or not texts:
            given = f"got {len(texts)} and {len(codes)}"
            raise ValueError(f"a reply needs as many text as code chunks, at least one: {given}")
        for channel, stream, chunks in ((Channel.TEXT, 0, texts), (Channel.AUDIO, self._audio_stream, codes)):
            for chunk in chunks:
                if not len(chunk):
                    raise ValueError(f"a chunk needs at least one {channel.name} id: got none")
                wrong = [token for token in chunk if self._channel_of(token, stream) != channel]
                if wrong:
                    raise ValueError(f"id {wrong[0]} must be in channel {channel.name} to be merged there")

    def _merge_parallel(self, text: Sequence[int], code: Sequence[int]) -> list[int]:
        """Step by step: the text and its end, the late codes and their stop, blanks elsewhere."""
        assert self.end is not None and self.blank is not None
        steps = self.delay + len(code) + 1
        if len(text) >= steps:
            given = f"got {len(code)} codes for {len(text)} texts"
            raise ValueError(f"a parallel reply needs codes until its text is over: {given}")
        texts = [*text, self.end, *[self.blank] * (steps - len(text) - 1)]
        codes = [*[self.blank] * self.delay, *code, self.stop[0]]
        return [token for step in zip(texts, codes, strict=True) for token in step]

    def _merge_padded(self, text: Sequence[int], code: Sequence[int]) -> list[int]:
        """Whole groups, fillers behind what is over first, and the end."""
        assert self.end is not None and self.text_pad is not None and self.audio_pad is not None
        size = self.pattern[0][1]
        groups = max(len(text), -(-len(code) // size))
        texts = [*text, *[self.text_pad] * (groups - len(text))]
        codes = [*code, *[self.audio_pad] * (groups * size - len(code))]
        slots = [(texts[g], *codes[g * size : (g + 1) * size]) for g in range(groups)]
        return [*chain(*slots), self.end, self.stop[0]]

    def _cut_by_pattern(self, text: Sequence[int], code: Sequence[int]) -> tuple[list[list[int]], list[list[int]]]:
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

    @property
    def _audio_stream(self) -> int:
        """The stream of codes and stops."""
        return self.channels.streams - 1

    def _channel_of(self, token: int, stream: int) -> Channel:
        return Channel(self.channels.table_SV[stream, token])

    @cached_property
    def _automaton(self) -> Automaton:
        if self.kind == "parallel":
            return build_parallel_automaton(self.delay)
        if self.kind == "padded":
            return build_padded_automaton(self.pattern[0][1])
        return build_delimited_automaton() if self.kind == "delimited" else build_counted_automaton(self.pattern)

    @cached_property
    def _symbols(self) -> list[list[int]]:
        """[stream][id] -> symbol."""
        table_SV = np.full_like(self.channels.table_SV, GrammarSymbol.OTHER)
        table_SV[self.channels.table_SV == Channel.TEXT] = GrammarSymbol.TEXT
        table_SV[self.channels.table_SV == Channel.AUDIO] = GrammarSymbol.AUDIO
        for symbol, token in (
            (GrammarSymbol.BEGIN, self.begin),
            (GrammarSymbol.END, self.end),
            (GrammarSymbol.TEXT_PAD, self.text_pad),
            (GrammarSymbol.AUDIO_PAD, self.audio_pad),
        ):
            if token is not None:
                table_SV[0, token] = symbol
        if self.blank is not None:
            table_SV[:, self.blank] = GrammarSymbol.BLANK
        table_SV[self._audio_stream, list(self.stop)] = GrammarSymbol.STOP
        symbols: list[list[int]] = table_SV.tolist()
        return symbols

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        symbols = np.asarray(self._symbols)
        sets = self._automaton.allowed_by_grammar_state
        masks = np.stack([np.isin(symbols[stream], [int(s) for s in allowed]) for stream, allowed in sets])
        masks[FREE] = True
        masks.flags.writeable = False
        return masks
