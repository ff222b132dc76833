import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.recognisers.pocketsphinx import split_words, word_error_rate
from judge.rules.choices import find_chosen_letters
from judge.rules.verifiable import gives_answer, measure_correctness, score_answer
from judge.types import JudgeTask, MissingVerdict, ScoredVerdict
from speech.answers.expected import compile_answer_pattern
from tests.helpers.judge_builders import SCALE

WORD = st.sampled_from("the answer is one two twelve 12 dog sleeps now".split())
SENTENCE = st.lists(WORD, min_size=1, max_size=7).map(" ".join)


def expecting(match: str | None, answer: str | None) -> JudgeTask:
    return JudgeTask(task_type="t", question="?", match=match, answer=answer, style=None)


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
    verdict = score_answer(heard, final, SCALE)
    assert gives_answer(heard, final) is is_right
    assert isinstance(verdict, ScoredVerdict)
    assert verdict.value == (SCALE.hi if is_right else SCALE.lo)
    assert verdict.judge == "verifiable/1" and verdict.spread == 0


@pytest.mark.parametrize(
    ("heard", "expected"),
    [("my dog is happy", 5.0), ("my dog is", 4.0), ("my cat is happy", 4.0), ("my dog", 3.0), ("", 1.0)],
)
def test_an_exact_answer_is_graded_by_words(heard: str, expected: float) -> None:
    verdict = score_answer(heard, expecting("exact", "my dog is happy"), SCALE)
    assert isinstance(verdict, ScoredVerdict) and verdict.value == pytest.approx(expected)


def test_talking_on_does_not_go_below_the_scale() -> None:
    verdict = score_answer("dog " * 50, expecting("exact", "my dog is happy"), SCALE)
    assert isinstance(verdict, ScoredVerdict) and verdict.value == SCALE.lo


@given(SENTENCE, SENTENCE)
def test_exact_agrees_with_the_word_error_rate(heard: str, answer: str) -> None:
    verdict = score_answer(heard, expecting("exact", answer), SCALE)
    assert isinstance(verdict, ScoredVerdict)
    assert verdict.value == pytest.approx(SCALE.at(max(0.0, 1 - word_error_rate(answer, heard))))
    assert gives_answer(heard, expecting("exact", answer)) == (verdict.value == SCALE.hi)


@given(st.text(max_size=60), SENTENCE, st.sampled_from(["final", "exact"]))
def test_any_text_gets_a_number_on_the_scale(heard: str, answer: str, match: str) -> None:
    verdict = score_answer(heard, expecting(match, answer), SCALE)
    assert isinstance(verdict, ScoredVerdict) and SCALE.lo <= verdict.value <= SCALE.hi


@given(SENTENCE, SENTENCE)
def test_saying_anything_before_the_final_answer_changes_nothing(before: str, answer: str) -> None:
    assert gives_answer(f"{before} {answer}", expecting("final", answer))
    assert split_words(f"{before} {answer}")[-len(split_words(answer)) :] == split_words(answer)


@pytest.mark.parametrize(
    "unchecked",
    [
        expecting(None, None),
        expecting("final", None),
        expecting(None, "x"),
        expecting("final", "?!"),
        expecting("fuzzy", "x"),
        expecting("number", "several"),
        expecting("choice", "BC"),
        expecting("choice", "B: ?!"),
        expecting("contains", "?!"),
        expecting("regex", "(paris"),
        expecting("regex", ".*"),
        expecting("math", "1/0"),
    ],
)
def test_a_task_without_a_checkable_answer_is_missing_for_good(unchecked: JudgeTask) -> None:
    verdict = score_answer("anything", unchecked, SCALE)
    assert measure_correctness("anything", "anything", unchecked) == {}
    assert isinstance(verdict, MissingVerdict) and verdict.reason and not verdict.retryable
    with pytest.raises(ValueError):
        gives_answer("anything", unchecked)


CHECKED = [  # match, answer, what is right, what is wrong
    ("number", "12", ["twelve", "it is 12.", "not eleven but twelve", "24/2"], ["12 or 13", "twelfth", "", "-12"]),
    ("number", "1,200", ["twelve hundred", "one thousand two hundred", "1200 people"], ["12 hundred 5", "120"]),
    ("number", "75 %", ["seventy five percent", "three quarters", "0.75"], ["seventy five"]),
    ("number", "-3.5", ["minus three point five", "it's -3 1/2"], ["three point five"]),
    ("choice", "B", ["b", "The answer is B.", "option bee", "it's b"], ["c", "the answer is b or c", "", "paris"]),
    ("choice", "a", ["the answer is a", "option eh", "A, Paris"], ["the answer is a large city", "a city"]),
    ("choice", "B: Paris", ["it is paris", "b", "option b is paris"], ["paris or rome", "c paris", "the answer is c"]),
    ("contains", "Eiffel tower", ["it's the eiffel tower", "eiffel tower"], ["the tower", "eiffel towers", "tower eiffel"]),
    ("contains", "12", ["twelve monkeys", "12 monkeys"], ["112 monkeys", "twelvemonkeys"]),
    ("regex", "Paris|London", ["in paris.", "LONDON"], ["rome", ""]),
    ("regex", r"^in .*(19|20)\d\d$", ["In the year 1984!"], ["1984", "in 1984 or so"]),
    ("regex", "forty two", ["It is forty-two.", "42"], ["forty", "40 and 2", "24"]),
    ("regex", "^one hundred$", ["One hundred", "100", "a hundred"], ["one", "one hundred five"]),
    ("regex", "per cent", ["fifty per cent"], ["fifty"]),
    ("regex", "42|1999", ["forty two", "nineteen ninety-nine", "1,999"], ["forty", "nineteen"]),
    ("regex", "three point five", ["3.5", "three point five"], ["35", "three"]),
    ("math", "2x + 3", ["the answer is three plus two x", "2x+3"], ["two x", "2 x plus 3 x"]),
    ("math", "x = 3", ["x equals three", "so it is 3"], ["x", "x equals 4"]),
]  # fmt: skip


@pytest.mark.parametrize(("match", "answer", "good", "bad"), CHECKED)
def test_a_checked_answer_is_all_or_nothing(match: str, answer: str, good: list[str], bad: list[str]) -> None:
    task = expecting(match, answer)
    assert [heard for heard in good if not gives_answer(heard, task)] == []
    assert [heard for heard in bad if gives_answer(heard, task)] == []
    for heard in good + bad:
        verdict = score_answer(heard, task, SCALE)
        assert isinstance(verdict, ScoredVerdict) and verdict.judge == "verifiable/1"
        assert verdict.value == (SCALE.hi if heard in good else SCALE.lo)
    assert measure_correctness(good[0], bad[0], task) == {"text_right": 1, "heard_right": 0}


@pytest.mark.parametrize(("match", "answer"), [(match, answer) for match, answer, _, _ in CHECKED])
@given(heard=st.text(max_size=60))
def test_any_text_is_right_or_wrong(match: str, answer: str, heard: str) -> None:
    verdict = score_answer(heard, expecting(match, answer), SCALE)
    assert isinstance(verdict, ScoredVerdict) and verdict.value in (SCALE.lo, SCALE.hi)


@pytest.mark.parametrize(("match", "answer"), [(match, answer) for match, answer, _, _ in CHECKED])
def test_saying_nothing_is_never_right(match: str, answer: str) -> None:
    assert not gives_answer("", expecting(match, answer))


@pytest.mark.parametrize(
    ("heard", "named"),
    [
        ("the answer is b", "b"),
        ("the answer is be", "b"),
        ("the answer is see you later", ""),
        ("the answer is a and b", "ab"),
        ("the answer is not c", ""),
        ("answer: (D)", "d"),
        ("option see is the right answer", "c"),
        ("a is correct", "a"),
        ("b is the best answer", "b"),
        ("c is not the answer", ""),
        ("the letter is d", "d"),
        ("the correct choice would be see", "c"),
        ("i would go with c", "c"),
        ("i choose dee", "d"),
        ("the answer is i think b", "b"),
        ("the answer is b because option c is wrong", "b"),
        ("option a is wrong so option b", "b"),
        ("the answer is a. no, the answer is d", "d"),
        ("the answer is b, c is wrong", "b"),
        ("option a large", "a"),
        ("option a or option b", "ab"),
        ("b or c", "bc"),
        ("B. Paris", "b"),
        ("eh", "a"),
        ("be kind", ""),
        ("see you later", ""),
        ("i like a city", ""),
        ("a dog, a cat and i", ""),
        ("pick one", ""),
        ("", ""),
    ],
)
def test_a_reply_settles_on_the_letters_that_its_last_cue_names(heard: str, named: str) -> None:
    assert find_chosen_letters(heard) == frozenset(named)


@pytest.mark.parametrize("scrap", ["answer is", "answer", "option", "b or", "a", "the answer is b or", ",", "i think"])
def test_a_very_long_reply_is_searched_for_letters_to_its_end(scrap: str) -> None:
    """A search whose work grew faster than the square of the length would not come back."""
    assert find_chosen_letters(f"{scrap} " * 5000) == find_chosen_letters(f"{scrap} " * 3)
    assert find_chosen_letters(f"{scrap} " * 5000 + "so the answer is d") == {"d"}


ENDLESS = r"^((a|a a| )+ ?)+b$"


def test_a_search_without_end_is_missing_and_never_a_score() -> None:
    """The same pattern scores where its search ends."""
    task = expecting("regex", ENDLESS)
    heard = "a " * 2000 + "c b"
    verdict = score_answer(heard, task, SCALE)
    assert isinstance(verdict, MissingVerdict) and verdict.kind == "deadline" and not verdict.retryable
    with pytest.raises(TimeoutError):
        gives_answer(heard, task)
    assert measure_correctness("rome", heard, task) == {"text_right": 0}
    assert isinstance(score_answer("rome", task, SCALE), ScoredVerdict)


PIECES = "a b . ( (?: (?= ) ) ) * + ? {5} {2,30} | [ab] \\1 ^ $ \\w".split()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_pattern_is_refused_or_its_search_ends(value: str) -> None:
    try:
        compile_answer_pattern(value)
    except ValueError as error:
        assert str(error).startswith("must be a pattern")
        return
    verdict = score_answer("a b ab " * 100, expecting("regex", value), SCALE)
    assert isinstance(verdict, ScoredVerdict) or verdict.kind == "deadline"
