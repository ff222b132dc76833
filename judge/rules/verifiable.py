"""The semantic axis where an answer can be checked: is the expected answer in what was *heard*?

    final     the transcript must end with the answer
    exact     the transcript must be the answer: scale.at(1 - word error rate, at least 0)
    number    the last number said must be the answer, in words or digits (speech/answers/numbers.py)
    choice    the transcript must settle on the answer's letter (judge/rules/choices.py); for "B: Paris" it may also
              end with the words when it names no letter
    contains  the answer's words must occur, one after another
    regex     the pattern must be found in the transcript's words (speech/answers/words.py): lower case, no
              punctuation, with accents or without, and the numbers as transcribed, in letters ("forty two"),
              or up to twelve in letters and others in digits
    math      the last expression said must have the answer's value (speech/answers/expressions.py)

Right is scale.hi, anything else scale.lo; only ``exact`` has something between. No partial credit for an
answer: "the answer is eleven" is as wrong as silence when the answer is twelve, and credit for the carrier
sentence would pay for talking without knowing. Repeating a sentence is a task of many words, so there each
word counts. ``contains`` and ``regex`` are pleased by saying everything: where that is a danger, use another.

The rule never sees the policy's text when it scores; ``measure_correctness`` holds that text against the answer
too, for a figure beside the score.
"""

from collections.abc import Callable, Mapping

from judge.recognisers.pocketsphinx import word_error_rate
from judge.rules.choices import find_chosen_letters
from judge.types import JudgeTask, MissingVerdict, Scale, ScoredVerdict, Verdict
from speech.answers.expected import PATTERN_SEARCH_LIMIT_S, compile_answer_pattern, find_answer_problem, parse_option
from speech.answers.expressions import last_expression_equals, parse_expression
from speech.answers.numbers import parse_numbers, parse_single_number
from speech.answers.spelling import strip_accents
from speech.answers.words import split_spoken_words, split_typed_words, split_words, unify_accents

VERIFIABLE_JUDGE = "verifiable/1"


def explain_uncheckable(task: JudgeTask) -> str | None:
    """Why this task's answer cannot be checked; None when it can."""
    if task.match is None or task.answer is None:
        return "the task has no checkable answer"
    if task.match not in _MATCHERS:
        return f"match must be {', '.join(_MATCHERS)}: got {task.match!r}"
    broken = find_answer_problem(task.match, task.answer)
    if broken is not None:
        return f"{broken}: got {task.answer!r}"
    of_words = task.match in ("final", "exact", "contains")
    expected = parse_option(task.answer)[1] if task.match == "choice" else task.answer if of_words else None
    if expected is not None and not split_words(expected):
        return f"the expected answer has no words: got {task.answer!r}"
    return None


def gives_answer(text: str, task: JudgeTask) -> bool:
    """Does the text give the answer?

    ValueError: the task's answer cannot be checked. TimeoutError: a pattern's search did not end.
    """
    unusable = explain_uncheckable(task)
    if unusable is not None or task.match is None or task.answer is None:
        raise ValueError(unusable)
    return _MATCHERS[task.match](text, task.answer)


def score_answer(transcript: str, task: JudgeTask, scale: Scale) -> Verdict:
    """Hold what was heard against the expected answer.

    Missing: nothing to check, or a search that did not end; no retry changes either.
    """
    unusable = explain_uncheckable(task)
    if unusable is not None or task.answer is None:
        return MissingVerdict(judge=VERIFIABLE_JUDGE, reason=str(unusable), kind="nothing_to_check")
    why = f"heard {transcript!r}, expected {task.match} {task.answer!r}"
    if task.match == "exact":
        value = scale.at(max(0.0, 1.0 - word_error_rate(task.answer, transcript)))
        return ScoredVerdict(value=value, judge=VERIFIABLE_JUDGE, why=why)
    try:
        is_right = gives_answer(transcript, task)
    except TimeoutError:
        reason = f"the pattern {task.answer!r} was searched for longer than allowed"
        return MissingVerdict(judge=VERIFIABLE_JUDGE, reason=reason, kind="deadline")
    return ScoredVerdict(value=scale.hi if is_right else scale.lo, judge=VERIFIABLE_JUDGE, why=why)


def measure_correctness(text: str, transcript: str, task: JudgeTask) -> dict[str, float]:
    """Right as written and right as heard, 0 or 1; what cannot be told is left out."""
    correctness: dict[str, float] = {}
    if explain_uncheckable(task) is not None:
        return correctness
    for name, words in (("text_right", text), ("heard_right", transcript)):
        try:
            correctness[name] = float(gives_answer(words, task))
        except TimeoutError:
            continue
    return correctness


def _ends_with_answer(text: str, answer: str) -> bool:
    words, expected = unify_accents(split_words(text), split_words(answer))
    return words[-len(expected) :] == expected


def _equals_answer(text: str, answer: str) -> bool:
    words, expected = unify_accents(split_words(text), split_words(answer))
    return words == expected


def _last_number_matches(text: str, answer: str) -> bool:
    return parse_numbers(text)[-1:] == [parse_single_number(answer)]


def _choice_matches(text: str, answer: str) -> bool:
    letter, its_words = parse_option(answer)
    letters = find_chosen_letters(text)
    return letters == {letter} if letters or its_words is None else _ends_with_answer(text, its_words)


def _contains_answer(text: str, answer: str) -> bool:
    words, expected = unify_accents(split_words(text), split_words(answer))
    return f" {' '.join(expected)} " in f" {' '.join(words)} "


def _pattern_matches(text: str, answer: str) -> bool:
    ways = [" ".join(say(text)) for say in (split_words, split_typed_words, split_spoken_words)]
    texts = dict.fromkeys(candidate for way in ways for candidate in (way, strip_accents(way)))
    return any(
        compile_answer_pattern(answer).search(candidate, timeout=PATTERN_SEARCH_LIMIT_S) is not None
        for candidate in texts
    )


def _expression_matches(text: str, answer: str) -> bool:
    return last_expression_equals(text, parse_expression(answer))


_MATCHERS: Mapping[str, Callable[[str, str], bool]] = {
    "final": _ends_with_answer,
    "exact": _equals_answer,
    "number": _last_number_matches,
    "choice": _choice_matches,
    "contains": _contains_answer,
    "regex": _pattern_matches,
    "math": _expression_matches,
}
