"""The reply grammar: automaton against naive references (regular expressions, prefix enumeration)."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import FREE, Interleave

STOP, BEGIN, END, OTHER_BOUNDARY = 3, 4, 5, 6
TEXTS, CODES = range(9, 20), range(20, 40)
CHANNELS = ChannelMap.build(vocab=64, text=TEXTS, audio=CODES, boundary=[BEGIN, END, OTHER_BOUNDARY], stop=[STOP])
DELIMITED = Interleave("delimited", CHANNELS, (STOP,), BEGIN, END)
CUT = Interleave("delimited", CHANNELS, (STOP,), BEGIN, END, ((1, 2), (3, 6)))
COUNTED = Interleave("counted", CHANNELS, (STOP,), pattern=((2, 3),))
MIXED = Interleave("counted", CHANNELS, (STOP,), pattern=((1, 2), (3, 1)))
GRAMMARS = [DELIMITED, CUT, COUNTED, MIXED]
EXAMPLE = {"T": 9, "A": 20, "B": BEGIN, "E": END, "S": STOP, "x": 0}  # one id per symbol

anything = st.lists(st.integers(0, 63), max_size=25)
symbols = st.lists(st.sampled_from(sorted(EXAMPLE.values())), max_size=25)
chunk_of_text = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5)
chunk_of_codes = st.lists(st.sampled_from(CODES), min_size=1, max_size=9)
chunks = st.lists(st.tuples(chunk_of_text, chunk_of_codes), min_size=1, max_size=4)
grammars = st.sampled_from(GRAMMARS)


def spell(ids: list[int]) -> str:
    names = {BEGIN: "B", END: "E", STOP: "S", **dict.fromkeys(TEXTS, "T"), **dict.fromkeys(CODES, "A")}
    return "".join(names.get(token, "x") for token in ids)


def counted_reference(letters: str, pattern: tuple[tuple[int, int], ...]) -> bool:
    """Groups in turn; the last text may be short, then all that follows is audio."""
    if not letters.endswith("S") or "S" in letters[:-1] or set(letters) - set("TAS"):
        return False
    body, group, over = letters[:-1], 0, False
    while body:
        n_text, n_audio = pattern[min(group, len(pattern) - 1)]
        text = re.match("T*", body)[0]  # type: ignore[index]
        if over or len(text) > n_text or (group == 0 and not text):
            return False
        body = body[len(text) :]
        if len(text) < n_text:  # the tail
            return re.fullmatch("A+", body) is not None
        audio = re.match("A*", body)[0][:n_audio]  # type: ignore[index]
        if not audio:
            return False
        body = body[len(audio) :]
        over = len(audio) < n_audio
        group += 1
    return group > 0


def merge(grammar: Interleave, pairs: list[tuple[list[int], list[int]]]) -> list[int]:
    """As the grammar would; a counted grammar is given codes enough for its text."""
    if grammar.kind == "counted":
        need = max(n_audio for _, n_audio in grammar.pattern) * sum(len(text) for text, _ in pairs)
        pairs = [*pairs[:-1], (pairs[-1][0], pairs[-1][1] + [20] * need)]
    return grammar.merge_chunks([text for text, _ in pairs], [code for _, code in pairs])


def test_delimited_is_the_regular_expression_of_the_model_card_on_every_short_reply() -> None:
    for length in range(7):
        for ids in product(EXAMPLE.values(), repeat=length):
            assert DELIMITED.well_formed(ids) == (re.fullmatch("(T+BA+E)+S", spell([*ids])) is not None), ids


@given(chunks, st.data())
def test_delimited_is_the_same_expression_on_near_misses(
    pairs: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    ids = merge(DELIMITED, pairs)
    at, length = data.draw(st.integers(0, len(ids))), data.draw(st.integers(0, 2))
    ids[at : at + length] = data.draw(st.lists(st.sampled_from(sorted(EXAMPLE.values())), max_size=2))
    assert DELIMITED.well_formed(ids) == (re.fullmatch("(T+BA+E)+S", spell(ids)) is not None)


@pytest.mark.parametrize("grammar", [COUNTED, MIXED])
def test_counted_agrees_with_a_naive_parser_on_every_short_reply(grammar: Interleave) -> None:
    accepted = 0
    for length in range(10):
        for letters in product("TA", repeat=length):
            reply = "".join(letters) + "S"
            ids = [EXAMPLE[letter] for letter in reply]
            assert grammar.well_formed(ids) == counted_reference(reply, grammar.pattern), reply
            accepted += grammar.well_formed(ids)
    assert accepted > 10


@given(grammars, chunks)
def test_what_is_merged_is_well_formed_and_splits_back(
    grammar: Interleave, pairs: list[tuple[list[int], list[int]]]
) -> None:
    ids = merge(grammar, pairs)
    texts, codes = grammar.split_text_and_codes(ids)
    assert grammar.well_formed(ids)
    assert texts == [token for text, _ in pairs for token in text]
    assert [token for token in ids if token in CODES] == codes
    assert codes[: sum(len(code) for _, code in pairs)] == [token for _, code in pairs for token in code]


@given(grammars, chunks)
def test_every_merged_token_is_allowed_where_it_stands(
    grammar: Interleave, pairs: list[tuple[list[int], list[int]]]
) -> None:
    ids = merge(grammar, pairs)
    grammar_states = grammar.grammar_states(ids)
    assert FREE not in grammar_states
    assert grammar.allowed_masks()[grammar_states, ids].all()


@given(grammars, chunks, st.data())
def test_a_reply_cut_anywhere_still_parses(
    grammar: Interleave, pairs: list[tuple[list[int], list[int]]], data: st.DataObject
) -> None:
    ids = merge(grammar, pairs)
    cut = ids[: data.draw(st.integers(0, len(ids) - 1))]
    texts, codes = grammar.split_text_and_codes(cut)
    assert not grammar.well_formed(cut)
    assert grammar.grammar_states(cut) == grammar.grammar_states(ids)[: len(cut)]
    assert (texts, codes) == ([t for t in cut if t in TEXTS], [t for t in cut if t in CODES])


@given(grammars, st.one_of(anything, symbols))
def test_stepping_equals_rescanning(grammar: Interleave, ids: list[int]) -> None:
    state, stepped = grammar.start_state(), []
    for token in ids:
        stepped.append(grammar.grammar_state(state))
        state = grammar.advance(state, token)
    assert stepped == grammar.grammar_states(ids)


@given(grammars, st.one_of(anything, symbols))
def test_a_grammar_state_allows_exactly_what_can_still_become_well_formed(grammar: Interleave, ids: list[int]) -> None:
    """From the first forbidden token, or behind the stop, everything is FREE; before it nothing is."""
    allowed, broken = grammar.allowed_masks(), False
    for token, grammar_state in zip(ids, grammar.grammar_states(ids), strict=True):
        assert (grammar_state == FREE) == broken
        broken = broken or token == STOP or not allowed[grammar_state, token]


@given(grammars, st.integers(0, 2**32 - 1))
def test_sampling_under_the_mask_cannot_break_the_grammar(grammar: Interleave, seed: int) -> None:
    rng, ids = np.random.default_rng(seed), []
    state = grammar.start_state()
    while not ids or (ids[-1] != STOP and len(ids) < 60):
        ids.append(int(rng.choice(np.flatnonzero(grammar.allowed_masks()[grammar.grammar_state(state)]))))
        state = grammar.advance(state, ids[-1])
    assert grammar.well_formed(ids) == (ids[-1] == STOP)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_masks_are_never_empty_and_leave_out_padding(grammar: Interleave) -> None:
    allowed = grammar.allowed_masks()
    assert allowed.dtype == np.bool_ and allowed.shape[1] == 64
    assert allowed[FREE].all() and allowed.any(axis=1).all()
    assert not allowed[FREE + 1 :, [0, 1, 2, OTHER_BOUNDARY, *range(40, 64)]].any()


def test_grammar_states_of_a_delimited_reply() -> None:
    ids = [9, 10, BEGIN, 20, 21, END, 11, BEGIN, 20, END, STOP]
    allowed = DELIMITED.allowed_masks()
    names = {9: "t", BEGIN: "b", 20: "a", END: "e", STOP: "s"}
    spelt = [
        "".join(names[i] for i in names if allowed[grammar_state, i])
        for grammar_state in DELIMITED.grammar_states(ids)
    ]
    assert spelt == ["t", "tb", "tb", "a", "ae", "ae", "ts", "tb", "a", "ae", "ts"]


def test_a_pattern_cuts_a_target_and_the_last_chunk_takes_the_rest() -> None:
    letters = spell(CUT.merge_chunks([[9] * 6], [[20] * 12]))
    assert letters == "TBAAE" + "TTTBAAAAAAE" + "TTBAAAAE" + "S"
    assert spell(CUT.merge_chunks([[9] * 6], [[20] * 20])) == "TBAAE" + "TTTBAAAAAAE" + "TTB" + "A" * 12 + "ES"
    assert spell(CUT.merge_chunks([[9] * 6], [[20] * 3])) == "TBAAE" + "TTTTTBAES"
    assert spell(COUNTED.merge_chunks([[9] * 3], [[20] * 7])) == "TTAAA" + "TAAAA" + "S"


def test_a_counted_text_without_codes_left_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3 codes for 5 texts"):
        COUNTED.merge_chunks([[9] * 5], [[20] * 3])


@pytest.mark.parametrize(
    ("texts", "codes", "rule"),
    [
        ([], [], "at least one: got 0 and 0"),
        ([[9]], [], "got 1 and 0"),
        ([[9], []], [[20], [21]], "at least one TEXT id"),
        ([[9]], [[]], "at least one AUDIO id"),
        ([[20]], [[20]], "id 20 must be in channel TEXT"),
        ([[9]], [[20, END]], "id 5 must be in channel AUDIO"),
    ],
)
def test_merge_refuses_what_is_not_a_reply(texts: list[list[int]], codes: list[list[int]], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        DELIMITED.merge_chunks(texts, codes)


def test_split_stops_at_the_stop_id() -> None:
    assert DELIMITED.split_text_and_codes([9, BEGIN, 20, END, STOP, 10, 21]) == ([9], [20])


@pytest.mark.parametrize("token", [-1, 64])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match=rf"token id must lie in \[0, 64\): got {token}"):
        DELIMITED.advance(DELIMITED.start_state(), token)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Interleave("delimited", CHANNELS, (STOP,)), r"needs begin and end: got \[\]"),
        (
            lambda: Interleave("counted", CHANNELS, (STOP,), BEGIN, END, ((1, 1),)),
            r"needs stop ids only: got \['begin', 'end'\]",
        ),
        (lambda: Interleave("counted", CHANNELS, (STOP,)), "needs a pattern"),
        (
            lambda: Interleave("parallel", CHANNELS, (STOP,), end=END, blank=0),
            "have two streams, others one: got 1",
        ),
        (lambda: Interleave("counted", CHANNELS, (STOP,), pattern=((0, 1),)), r"got \(0, 1\)"),
        (lambda: Interleave("delimited", CHANNELS, (), BEGIN, END), "needs a stop id"),
        (lambda: Interleave("delimited", CHANNELS, (STOP,), BEGIN, 9), "id 9 must be in channel BOUNDARY"),
        (lambda: Interleave("delimited", CHANNELS, (9,), BEGIN, END), "id 9 must be in channel STOP"),
    ],
)
def test_a_contradictory_grammar_is_refused(make: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        make()  # type: ignore[operator]
