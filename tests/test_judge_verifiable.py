import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.asr import word_error_rate, words
from judge.types import Missing, Scored, Task
from judge.verifiable import right, score
from tests.judging import SCALE

WORD = st.sampled_from("the answer is one two twelve 12 dog sleeps now".split())
SENTENCE = st.lists(WORD, min_size=1, max_size=7).map(" ".join)


def expecting(match: str | None, answer: str | None) -> Task:
    return Task(task_type="t", question="?", match=match, answer=answer, style=None)


@pytest.mark.parametrize(
    ("heard", "answer", "is_right"),
    [
        ("the answer is twelve", "twelve", True),
        ("The answer is 12.", "twelve", True),
        ("the answer is twelve", "12", True),
        ("twelve", "twelve", True),
        ("the answer is twelve dog", "twelve", False),
        ("the answer is eleven", "twelve", False),
        ("twelve eleven", "twelve", False),
        ("", "twelve", False),
        ("the answer is good morning", "good morning", True),
        ("the answer is morning", "good morning", False),
    ],
)
def test_a_final_answer_is_the_last_words_and_all_or_nothing(heard: str, answer: str, is_right: bool) -> None:
    final = expecting("final", answer)
    verdict = score(heard, final, SCALE)
    assert right(heard, final) is is_right
    assert isinstance(verdict, Scored)
    assert verdict.value == (SCALE.hi if is_right else SCALE.lo)
    assert verdict.judge == "verifiable/1" and verdict.spread == 0


@pytest.mark.parametrize(
    ("heard", "expected"),
    [("my dog is happy", 5.0), ("my dog is", 4.0), ("my cat is happy", 4.0), ("my dog", 3.0), ("", 1.0)],
)
def test_an_exact_answer_is_graded_by_words(heard: str, expected: float) -> None:
    verdict = score(heard, expecting("exact", "my dog is happy"), SCALE)
    assert isinstance(verdict, Scored) and verdict.value == pytest.approx(expected)


def test_talking_on_does_not_go_below_the_scale() -> None:
    verdict = score("dog " * 50, expecting("exact", "my dog is happy"), SCALE)
    assert isinstance(verdict, Scored) and verdict.value == SCALE.lo


@given(SENTENCE, SENTENCE)
def test_exact_agrees_with_the_word_error_rate(heard: str, answer: str) -> None:
    verdict = score(heard, expecting("exact", answer), SCALE)
    assert isinstance(verdict, Scored)
    assert verdict.value == pytest.approx(SCALE.at(max(0.0, 1 - word_error_rate(answer, heard))))
    assert right(heard, expecting("exact", answer)) == (verdict.value == SCALE.hi)


@given(st.text(max_size=60), SENTENCE, st.sampled_from(["final", "exact"]))
def test_any_text_gets_a_number_on_the_scale(heard: str, answer: str, match: str) -> None:
    verdict = score(heard, expecting(match, answer), SCALE)
    assert isinstance(verdict, Scored) and SCALE.lo <= verdict.value <= SCALE.hi


@given(SENTENCE, SENTENCE)
def test_saying_anything_before_the_final_answer_changes_nothing(before: str, answer: str) -> None:
    assert right(f"{before} {answer}", expecting("final", answer))
    assert words(f"{before} {answer}")[-len(words(answer)) :] == words(answer)


@pytest.mark.parametrize(
    "unchecked",
    [
        expecting(None, None),
        expecting("final", None),
        expecting(None, "x"),
        expecting("final", "?!"),
        expecting("fuzzy", "x"),
    ],
)
def test_a_task_without_a_checkable_answer_is_missing_for_good(unchecked: Task) -> None:
    verdict = score("anything", unchecked, SCALE)
    assert isinstance(verdict, Missing) and verdict.reason and not verdict.retryable
    with pytest.raises(ValueError):
        right("anything", unchecked)
