"""The automata that reply grammars are compiled to: states, moves on symbols, what each state allows.

    delimited   (TEXT+ BEGIN AUDIO+ END)+ STOP
    counted     n TEXT, m AUDIO, n TEXT, m AUDIO, ...     the last text is followed by AUDIO to the end, STOP
    padded      (1 TEXT, m AUDIO)+ END STOP               fillers in the slots of what is over before the rest
    parallel    two streams, an id of each per step:
                  text    TEXT+ END BLANK BLANK ...       as many as the other stream needs
                  audio   BLANK (as many as the delay) AUDIO+ STOP       STOP once the text has its END

A *phase* is the index of a set of allowed symbols in one stream. Invariant: once a reply has broken the
grammar (or has ended) every phase is FREE, where everything is allowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

ChunkPattern = tuple[tuple[int, int], ...]
FREE = 0  # the phase that allows everything


class GrammarSymbol(IntEnum):
    """What a token is to the grammar."""

    TEXT = 0
    AUDIO = 1
    BEGIN = 2
    END = 3
    STOP = 4
    BLANK = 5
    TEXT_PAD = 6
    AUDIO_PAD = 7
    OTHER = 8  # allowed in FREE only


@dataclass(frozen=True, slots=True)
class Automaton:
    """States 0 (start), 1 (done), 2 (broken), then the grammar's own. ``moves``: [state][symbol] -> state."""

    moves: tuple[tuple[int, ...], ...]
    stream_by_state: tuple[int, ...]  # whose turn it is
    phase_by_state: tuple[int, ...]
    allowed_by_phase: tuple[tuple[int, frozenset[GrammarSymbol]], ...]  #: stream and what it allows


START, DONE, BROKEN = "start", "done", "broken"
Moves = dict[str, dict[GrammarSymbol, str]]


def compile_automaton(moves: Moves, streams: Mapping[str, int] | None = None) -> Automaton:
    """Number the states; equal sets of allowed symbols of a stream share a phase."""
    turn = streams or {}
    names = [START, DONE, BROKEN, *(name for name in moves if name != START)]
    sets = [(0, frozenset(GrammarSymbol))]
    phase = []
    for name in names:
        allowed = (turn.get(name, 0), frozenset(moves[name])) if moves.get(name) else sets[FREE]
        if allowed not in sets:
            sets.append(allowed)
        phase.append(sets.index(allowed))
    number = {name: i for i, name in enumerate(names)}
    table = tuple(tuple(number[moves.get(name, {}).get(s, BROKEN)] for s in GrammarSymbol) for name in names)
    return Automaton(table, tuple(turn.get(name, 0) for name in names), tuple(phase), tuple(sets))


@lru_cache
def build_delimited_automaton() -> Automaton:
    """Any chunking."""
    return compile_automaton(
        {
            START: {GrammarSymbol.TEXT: "text"},
            "text": {GrammarSymbol.TEXT: "text", GrammarSymbol.BEGIN: "begun"},
            "begun": {GrammarSymbol.AUDIO: "audio"},
            "audio": {GrammarSymbol.AUDIO: "audio", GrammarSymbol.END: "ended"},
            "ended": {GrammarSymbol.TEXT: "text", GrammarSymbol.STOP: DONE},
        }
    )


@lru_cache
def build_counted_automaton(pattern: ChunkPattern) -> Automaton:
    """States name the group g and how many of its texts (t) or codes (a) have been seen."""
    moves: Moves = {"tail": {GrammarSymbol.AUDIO: "tail", GrammarSymbol.STOP: DONE}}

    def text_seen(g: int, n: int) -> str:
        return f"{g}t{n}" if n < pattern[g][0] else f"{g}a0"

    def code_seen(g: int, n: int) -> str:
        return f"{g}a{n}" if n < pattern[g][1] else f"{min(g + 1, len(pattern) - 1)}t0"

    for g, (n_text, n_audio) in enumerate(pattern):
        over = {GrammarSymbol.AUDIO: "tail", GrammarSymbol.STOP: DONE}  # the text was over with the last group
        moves[f"{g}t0"] = {GrammarSymbol.TEXT: text_seen(g, 1), **over}
        for n in range(1, n_text):
            moves[f"{g}t{n}"] = {GrammarSymbol.TEXT: text_seen(g, n + 1), GrammarSymbol.AUDIO: "tail"}
        moves[f"{g}a0"] = {GrammarSymbol.AUDIO: code_seen(g, 1)}
        for n in range(1, n_audio):
            moves[f"{g}a{n}"] = {GrammarSymbol.AUDIO: code_seen(g, n + 1), GrammarSymbol.STOP: DONE}
    moves[START] = {GrammarSymbol.TEXT: text_seen(0, 1)}
    return compile_automaton(moves)


@lru_cache
def build_padded_automaton(n_audio: int) -> Automaton:
    """States name what is over (text, audio or neither) and how many codes of the group have been seen.

    No group is all fillers. The last one may end early: whole groups are what the model is taught, and
    nothing is lost where it leaves out fillers.
    """
    moves: Moves = {START: {GrammarSymbol.TEXT: "first"}, "ended": {GrammarSymbol.STOP: DONE}}

    def code_seen(over: str, n: int) -> str:
        return f"{over} {n}" if n < n_audio else f"{over} text"

    moves["first"] = {GrammarSymbol.AUDIO: code_seen("none", 1)}  # a reply has a word and a code
    for over, silenced in (("none", "audio"), ("text", "both"), ("audio", "audio"), ("both", "both")):
        text = moves[f"{over} text"] = {GrammarSymbol.END: "ended"}
        if over in ("none", "audio"):
            text[GrammarSymbol.TEXT] = f"{over} 0"
        if over in ("none", "text"):
            text[GrammarSymbol.TEXT_PAD] = "text 0"
        for n in range(n_audio):
            code = moves[f"{over} {n}"] = {} if n == 0 else {GrammarSymbol.END: "ended"}
            if over in ("none", "text"):
                code[GrammarSymbol.AUDIO] = code_seen(over, n + 1)
            if n or over != "text":
                code[GrammarSymbol.AUDIO_PAD] = code_seen(silenced, n + 1)
    return compile_automaton(moves)


@lru_cache
def build_parallel_automaton(delay: int) -> Automaton:
    """States name whose turn it is, the step (all behind the first code are one) and how far the text is."""
    later = delay + 1  # any step behind that of the first code
    moves: Moves = {START: {GrammarSymbol.TEXT: "audio 0 some"}}
    for k in range(later + 1):
        spoken = GrammarSymbol.BLANK if k < delay else GrammarSymbol.AUDIO
        for text in ("some", "over"):
            going = {GrammarSymbol.TEXT: f"audio {k} some", GrammarSymbol.END: f"audio {k} over"}
            moves[f"text {k} {text}"] = going if text == "some" else {GrammarSymbol.BLANK: f"audio {k} over"}
            moves[f"audio {k} {text}"] = {spoken: f"text {min(k + 1, later)} {text}"}
    moves[f"audio {later} over"][GrammarSymbol.STOP] = DONE
    return compile_automaton(moves, {name: int(name.startswith("audio")) for name in moves})
