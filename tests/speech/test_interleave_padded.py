"""The padded reply grammar: groups of one text and m codes, with a filler for what is over first."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.grammar.channels import ChannelMap
from speech.grammar.interleave import FREE, Interleave

STOP, END, TEXT_PAD, AUDIO_PAD = 3, 5, 6, 7
TEXTS, CODES = range(9, 20), range(20, 40)
CHANNELS = ChannelMap.build(vocab=64, text=TEXTS, audio=CODES, boundary=[END], stop=[STOP])


def grammar(m: int) -> Interleave:
    ids = {"end": END, "text_pad": TEXT_PAD, "audio_pad": AUDIO_PAD}
    return Interleave("padded", CHANNELS, (STOP,), pattern=((1, m),), **ids)


IDS = {"T": 9, "A": 20, "t": TEXT_PAD, "a": AUDIO_PAD, "E": END, "S": STOP}
texts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12)
codes = st.lists(st.sampled_from(CODES), min_size=1, max_size=40)


def whole(body: str, m: int) -> bool:
    """A naive reading of a reply before its end: cut into groups, look at each kind of slot alone."""
    groups = [body[i : i + m + 1] for i in range(0, len(body), m + 1)]
    if not groups or len(groups[-1]) < 2 or any(set(group) <= set("ta") for group in groups):
        return False
    said, heard = "".join(group[0] for group in groups), "".join(group[1:] for group in groups)
    return bool(re.fullmatch("T+t*", said) and re.fullmatch("A+a*", heard))


@pytest.mark.parametrize("m", [1, 2, 4])
def test_it_agrees_with_a_naive_parser_on_every_short_reply(m: int) -> None:
    padded, accepted = grammar(m), 0
    for length in range(9):
        for letters in product("TAta", repeat=length):
            body = "".join(letters)
            ids = [IDS[letter] for letter in body + "ES"]
            assert padded.well_formed(ids) == whole(body, m), body
            accepted += whole(body, m)
    assert accepted > 10


@given(texts, codes, st.sampled_from([1, 2, 4]))
def test_a_target_is_whole_groups_and_splits_back(text: list[int], code: list[int], m: int) -> None:
    ids = grammar(m).merge_chunks([text], [code])
    groups = max(len(text), -(-len(code) // m))
    assert ids[-2:] == [END, STOP] and len(ids) == groups * (m + 1) + 2
    assert grammar(m).split_text_and_codes(ids) == (text, code) and grammar(m).well_formed(ids)
    said, heard = ids[: -2 : m + 1], [token for i, token in enumerate(ids[:-2]) if i % (m + 1)]
    assert said == text + [TEXT_PAD] * (groups - len(text))
    assert heard == code + [AUDIO_PAD] * (groups * m - len(code))


@given(texts, codes, st.integers(0, 80))
def test_it_parses_wherever_it_is_cut_and_every_id_is_allowed(text: list[int], code: list[int], at: int) -> None:
    padded = grammar(4)
    ids = padded.merge_chunks([text], [code])
    grammar_states = padded.grammar_states(ids)
    assert FREE not in grammar_states and padded.allowed_masks()[grammar_states, ids].all()
    cut = ids[:at]
    said, heard = padded.split_text_and_codes(cut)
    assert said == text[: len(said)] and heard == code[: len(heard)]
    assert padded.well_formed(cut) == (at >= len(ids))


def test_any_walk_along_the_mask_ends_well_formed() -> None:
    padded, rng = grammar(4), np.random.default_rng(0)
    for _ in range(200):
        ids: list[int] = []
        state = padded.start_state()
        while not ids or ids[-1] != STOP:
            allowed = np.flatnonzero(padded.allowed_masks()[padded.grammar_state(state)])
            ids.append(END if END in allowed and rng.random() < 0.1 else int(rng.choice(allowed)))
            state = padded.advance(state, ids[-1])
        assert padded.well_formed(ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": ()}, "one pair of 1 and m"),
        ({"pattern": ((2, 4),)}, "one pair of 1 and m"),
        ({"pattern": ((1, 4), (1, 2))}, "one pair of 1 and m"),
        ({"audio_pad": None}, "padded reply grammar needs audio_pad and end and text_pad"),
        ({"text_pad": 9}, "id 9 must be in channel PAD"),
        ({"end": TEXT_PAD}, "id 6 must be in channel BOUNDARY"),
    ],
)
def test_what_it_does_not_have_is_refused(changes: dict[str, object], message: str) -> None:
    settings = {"pattern": ((1, 4),), "end": END, "text_pad": TEXT_PAD, "audio_pad": AUDIO_PAD} | changes
    with pytest.raises(ValueError, match=message):
        Interleave("padded", CHANNELS, (STOP,), **settings)  # type: ignore[arg-type]
