"""Channels: a table over the whole embedding, by exact ids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.grammar.channels import Channel, ChannelMap

CHANNELS = ChannelMap.build(vocab=64, text=range(9, 20), audio=range(20, 40), boundary=[4, 5], stop=[3])


def test_every_row_of_the_embedding_has_exactly_one_channel() -> None:
    counts = {channel: int((CHANNELS.table_SV[0] == channel).sum()) for channel in Channel}
    assert counts == {
        Channel.TEXT: 11,
        Channel.AUDIO: 20,
        Channel.BOUNDARY: 2,
        Channel.STOP: 1,
        Channel.PAD: 30,
    }
    assert CHANNELS.vocab == 64


def test_rows_beyond_the_tokenizer_are_pad_not_audio() -> None:
    assert set(CHANNELS.channels_of(range(40, 64))) == {Channel.PAD}


@given(st.lists(st.integers(0, 63), max_size=20))
def test_letters_spell_the_channel_of_each_id(ids: list[int]) -> None:
    assert CHANNELS.to_letters(ids) == "".join(Channel(CHANNELS.table_SV[0][i]).letter for i in ids)


def test_letters_of_a_reply() -> None:
    assert CHANNELS.to_letters([12, 4, 21, 5, 3, 0]) == "TBABEP"


@pytest.mark.parametrize("token", [-1, 64])
def test_an_id_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match=rf"TEXT id must lie in \[0, 64\): got {token}"):
        ChannelMap.build(vocab=64, text=[token], audio=[], boundary=[], stop=[])


def test_an_id_in_two_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="id 7 cannot be both TEXT and STOP"):
        ChannelMap.build(vocab=64, text=[7], audio=[], boundary=[], stop=[7])


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        CHANNELS.table_SV[0, 0] = np.int8(0)
