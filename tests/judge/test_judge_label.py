"""The scored token is the answer, wherever it stands among the tokens; else there is no score."""

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.endpoint.label import TokenLogprobs
from judge.llm.answers import CHOICE_FORM, SCORE_FORM, read_expected_number
from judge.types import CallFailed

FIVE = [("5", log(0.95)), ("4", log(0.05))]
EXPECTED = 4.95


def sure(*tokens: str) -> list[list[tuple[str, float]]]:
    return [[(token, -0.01)] for token in tokens]


THOUGHT = [[("2", log(0.95)), ("5", log(0.03))], *sure(" words"), *sure("</think>")]


@pytest.mark.parametrize(
    ("tokens", "thought"),
    [
        ([FIVE], ""),
        ([*sure("\n"), FIVE], ""),
        ([*sure("\u200b"), [("\u00a05", log(0.95)), ("4", log(0.05))]], ""),
        ([FIVE, *sure("\n", "<|im_end|>")], ""),
        ([FIVE, *sure("</s>")], ""),
        ([FIVE, *sure("[EOS]", "")], ""),
        ([[("\u0120" + "5", log(0.95)), ("4", log(0.05))]], ""),
        ([[("\u2581" + "5", log(0.95)), ("4", log(0.05))]], ""),
        ([*THOUGHT, FIVE], "2 words"),
        ([*THOUGHT, FIVE], ""),
        ([*THOUGHT[:2], FIVE], "2 words"),  # the server kept the mark to itself
        ([*sure("<think>", "\n\n", "</think>", "\n\n"), FIVE], ""),
        ([*sure("</", "think", ">", "\n"), FIVE, *sure("<|im_end|>")], ""),
        ([*sure("[THINK]", "no", "[/THINK]"), FIVE], ""),
        ([*sure("<|channel|>", "final", "<|message|>"), FIVE], ""),
        ([FIVE], "2 words"),
    ],
)
def test_the_label_is_read_where_the_answer_stands(tokens: TokenLogprobs, thought: str) -> None:
    assert read_expected_number(SCORE_FORM, "5", tokens, thought).number == pytest.approx(EXPECTED)


@pytest.mark.parametrize(
    ("tokens", "thought"),
    [
        ([*THOUGHT[:2], FIVE], ""),  # words before it, and no sign that they are a thought
        ([*sure("4"), FIVE], ""),
        ([FIVE, *sure(" words")], ""),
        (sure("</think>"), ""),  # no token of the answer
        ([FIVE, *sure("</think>")], "5"),
        (THOUGHT[:1], "2 words"),
        ([*sure("2 wor"), FIVE], "2 words so 5"),  # the thought's own tokens, and none of the answer
        ([*THOUGHT], "2 words"),
        ([[("token_id:20", -0.01), ("5", -9.0)]], ""),
        ([[]], ""),
        ([], ""),
        (sure("", "\n"), ""),
        ([*sure("<think>"), FIVE], ""),  # a thought that has not ended
    ],
)
def test_tokens_that_do_not_spell_the_answer_are_no_score(tokens: TokenLogprobs, thought: str) -> None:
    with pytest.raises(CallFailed, match=r"malformed: the (tokens do not spell|answer came without)"):
        read_expected_number(SCORE_FORM, "5", tokens, thought)


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ([("4", log(0.4)), ("4", log(0.4)), ("5", log(0.4))], 4.5),  # the same token twice
        ([("4", log(0.4)), ("5", log(0.4)), ("4", log(0.4)), ("5", log(0.4)), ("5", log(0.4))], 4.5),
        ([("4", log(0.4)), ("4", log(0.4) + 1e-5), ("5", log(0.4))], 4.5),  # rounded in between
        ([("4", log(0.4)), ("4", log(0.2)), ("5", log(0.4))], 4.4),  # two tokens that look alike
        ([("4", log(0.4)), (" 4", log(0.4)), ("5", log(0.2))], 4.2),
        ([("4", log(0.5)), ("4", -9999.0), ("5", log(0.5)), ("5", -9999.0)], 4.5),
        ([("4", log(0.9)), ("４", log(0.05)), ("four", log(0.05))], 4.0),
    ],
)
def test_a_label_given_twice_counts_once(options: list[tuple[str, float]], number: float) -> None:
    assert read_expected_number(SCORE_FORM, "4", [options]).number == pytest.approx(number, abs=1e-3)


def test_a_label_without_its_alternatives_is_a_score_only_where_it_is_certain() -> None:
    assert read_expected_number(SCORE_FORM, "4", [[("4", log(0.995))]]).number == 4.0
    with pytest.raises(CallFailed, match="malformed: the answer '4' came without the probabilities of the others"):
        read_expected_number(SCORE_FORM, "4", [[("4", log(0.6))]])


def test_labels_given_twice_that_come_to_more_than_all_are_no_score() -> None:
    with pytest.raises(CallFailed, match="malformed"):
        read_expected_number(SCORE_FORM, "4", [[("4", log(0.9)), ("4", log(0.7)), ("5", log(0.1))]])


def test_a_choice_is_found_behind_a_thought_as_a_score_is() -> None:
    tokens = [*sure("A", " is", " better", "</think>", "\n"), [("B", log(0.8)), ("A", log(0.2))]]
    assert read_expected_number(CHOICE_FORM, "B", tokens).number == pytest.approx(0.2)


@given(
    st.lists(st.sampled_from(["1", "2", "5", "A", " so", "\n", "<b>", "words", "é", "\ufffd"]), max_size=12),
    st.sampled_from(["</think>", "</thinking>", "[/THINK]", "</Think>"]),
    st.lists(st.sampled_from(["", " ", "\n", "</s>", "<|im_end|>"]), max_size=3),
    st.floats(0.05, 0.95),
)
def test_no_thought_and_no_end_of_turn_changes_what_an_answer_scores(
    thought: list[str], mark: str, ends: list[str], chance: float
) -> None:
    answer = [[("3", log(chance)), ("2", log(1 - chance))]]
    alone = read_expected_number(SCORE_FORM, "3", answer)
    behind = read_expected_number(SCORE_FORM, "3", [*sure(*thought, mark), *answer, *sure(*ends)])
    assert alone == behind and alone.number == pytest.approx(2 + exp(log(chance)))
