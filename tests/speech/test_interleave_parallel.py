"""The parallel reply grammar against a naive parser that takes the two streams apart first."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.grammar.channels import Channel, ChannelMap
from speech.grammar.interleave import FREE, Interleave

STOP, OTHER_STOP, END, BLANK = 3, 2, 4, 5
TEXTS, CODES = range(9, 20), range(20, 40)
CHANNELS = ChannelMap.of_streams(
    [
        ChannelMap.build(vocab=48, text=TEXTS, audio=[], boundary=[], stop=[END]),
        ChannelMap.build(vocab=48, text=[], audio=CODES, boundary=[STOP, OTHER_STOP], stop=[]),
    ]
)


def grammar(delay: int) -> Interleave:
    return Interleave("parallel", CHANNELS, (STOP, OTHER_STOP), end=END, blank=BLANK, delay=delay)


texts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5)
codes = st.lists(st.sampled_from(CODES), min_size=6, max_size=12)
delays = st.integers(0, 6)
anything = st.lists(st.integers(0, 47), max_size=30)


def spell(ids: list[int]) -> str:
    names = {STOP: "S", OTHER_STOP: "S", END: "E", BLANK: "_"}
    return "".join({**names, **dict.fromkeys(TEXTS, "T"), **dict.fromkeys(CODES, "A")}.get(i, "x") for i in ids)


def reference(ids: list[int], delay: int) -> bool:
    """Two streams of equal length, each a regular expression."""
    letters = spell(ids)
    text, audio = letters[0::2], letters[1::2]
    return (
        len(text) == len(audio)
        and re.fullmatch("T+E_*", text) is not None
        and re.fullmatch(f"_{{{delay}}}A+S", audio) is not None
    )


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_reply_is_well_formed_as_its_streams_are_on_every_short_reply(delay: int) -> None:
    accepted, checked = 0, grammar(delay)
    for steps in range(5):
        for text in product([9, END, BLANK, STOP], repeat=steps):
            for audio in product([20, BLANK, STOP, END], repeat=steps):
                ids = [token for step in zip(text, audio, strict=True) for token in step]
                assert checked.well_formed(ids) == reference(ids, delay), ids
                assert not checked.well_formed(ids[:-1])
                accepted += checked.well_formed(ids)
    assert accepted > 1


@given(texts, codes, delays, st.data())
def test_the_same_holds_of_near_misses(text: list[int], code: list[int], delay: int, data: st.DataObject) -> None:
    ids = grammar(delay).merge_chunks([text], [code])
    ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.sampled_from([9, 20, END, BLANK, STOP, 0]))
    assert grammar(delay).well_formed(ids) == reference(ids, delay)


@given(texts, codes, delays)
def test_what_is_merged_is_well_formed_splits_back_and_is_allowed_everywhere(
    text: list[int], code: list[int], delay: int
) -> None:
    item = grammar(delay)
    ids = item.merge_chunks([text, text[:1]], [code[:3], code[3:]])
    assert item.well_formed(ids) and len(ids) == 2 * (delay + len(code) + 1)
    assert item.split_text_and_codes(ids) == ([*text, text[0]], code)
    grammar_states = item.grammar_states(ids)
    assert FREE not in grammar_states and item.allowed_masks()[grammar_states, ids].all()


@given(texts, codes, delays, st.data())
def test_a_reply_cut_anywhere_still_parses(text: list[int], code: list[int], delay: int, data: st.DataObject) -> None:
    item = grammar(delay)
    ids = item.merge_chunks([text], [code])
    cut = ids[: data.draw(st.integers(0, len(ids) - 1))]
    assert not item.well_formed(cut)
    assert item.split_text_and_codes(cut) == (
        [t for t in cut[0::2] if t in TEXTS],
        [c for c in cut[1::2] if c in CODES],
    )
    assert item.grammar_states(cut) == item.grammar_states(ids)[: len(cut)]


@given(anything, delays)
def test_any_ids_parse_and_behind_a_break_everything_is_free(ids: list[int], delay: int) -> None:
    item, broken, state = grammar(delay), False, 0
    item.split_text_and_codes(ids)
    for position, (token, grammar_state) in enumerate(zip(ids, item.grammar_states(ids), strict=True)):
        assert grammar_state == item.grammar_state(state)
        assert (grammar_state == FREE) == broken
        broken = broken or not item.allowed_masks()[grammar_state, token] or (position % 2 == 1 and token in item.stop)
        state = item.advance(state, token)


@given(delays, st.integers(0, 2**32 - 1))
def test_sampling_under_the_mask_cannot_break_the_grammar(delay: int, seed: int) -> None:
    rng, ids, item = np.random.default_rng(seed), [], grammar(delay)
    state = item.start_state()
    while not ids or (ids[-1] not in item.stop and len(ids) < 80):
        ids.append(int(rng.choice(np.flatnonzero(item.allowed_masks()[item.grammar_state(state)]))))
        state = item.advance(state, ids[-1])
    assert item.well_formed(ids) == (ids[-1] in item.stop) == reference(ids, delay)


@given(texts, codes, delays)
def test_blanks_and_nothing_else_were_forced_and_join_no_objective(
    text: list[int], code: list[int], delay: int
) -> None:
    ids = grammar(delay).merge_chunks([text], [code])
    assert grammar(delay).sampled_flags(ids) == tuple(token != BLANK for token in ids)
    assert [token == BLANK for token in ids] == [c == Channel.PAD for c in CHANNELS.channels_of(ids)]


def test_a_reply_is_laid_out_as_documented() -> None:
    ids = grammar(2).merge_chunks([[9, 10, 11]], [[20, 21, 22]])
    assert (spell(ids[0::2]), spell(ids[1::2])) == ("TTTE__", "__AAAS")
    assert CHANNELS.to_letters(ids) == "TPTPTAEAPAPB"


def test_the_two_streams_share_no_mask() -> None:
    item = grammar(1)
    names = {9: "t", END: "e", BLANK: "_", 20: "a", STOP: "s"}
    ids = item.merge_chunks([[9, 9]], [[20, 20]])
    spelt = ["".join(names[i] for i in names if item.allowed_masks()[p, i]) for p in item.grammar_states(ids)]
    assert spelt == ["t", "_", "te", "a", "te", "as", "_", "as"]
    assert not item.allowed_masks()[FREE + 1 :, [0, 1, *range(40, 48)]].any()


@pytest.mark.parametrize(
    ("text", "code", "rule"),
    [
        ([9] * 9, [20] * 2, "got 2 codes for 9 texts"),
        ([20], [20], "id 20 must be in channel TEXT"),
        ([9], [9], "id 9 must be in channel AUDIO"),
        ([9], [], "at least one AUDIO id"),
    ],
)
def test_merge_refuses_what_is_not_a_reply(text: list[int], code: list[int], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        grammar(6).merge_chunks([text], [code])


def test_a_text_may_be_as_long_as_the_codes_and_the_delay() -> None:
    assert grammar(2).well_formed(grammar(2).merge_chunks([[9] * 5], [[20] * 3]))


@pytest.mark.parametrize(
    ("ids", "rule"),
    [
        ({"end": END}, r"needs blank and end: got \['end'\]"),
        ({"end": END, "blank": 20}, "id 20 must be in channel PAD: it is AUDIO"),
        ({"end": 9, "blank": BLANK}, "id 9 must be in channel STOP"),
        ({"end": END, "blank": BLANK, "stop": (END,)}, "id 4 must be in channel BOUNDARY: it is PAD"),
    ],
)
def test_a_contradictory_grammar_is_refused(ids: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        Interleave("parallel", CHANNELS, **{"stop": (STOP,), **ids})  # type: ignore[arg-type]
