"""The semantic axis where an answer can be checked: is the expected answer in what was *heard*?

    final     the transcript must end with the answer
    exact     the transcript must be the answer: scale.at(1 - word error rate, at least 0)
    number    the last number said must be the answer, in words or digits (speech/numbers.py)
    choice    the transcript must settle on the answer's letter (judge/choices.py); for "B: Paris" it may also
              end with the words when it names no letter
    contains  the answer's words must occur, one after another
    regex     the pattern must be found in the transcript's words (speech/words.py): lower case, no
              punctuation, with accents or without, and the numbers as transcribed, in letters ("forty two"),
              or up to twelve in letters and others in digits
    math      the last expression said must have the answer's value (speech/expressions.py)

Right is scale.hi, anything else scale.lo; only ``exact`` has something between. No partial credit for an
answer: "the answer is eleven" is as wrong as silence when the answer is twelve, and credit for the carrier
sentence would pay for talking without knowing. Repeating a sentence is a task of many words, so there each
word counts. ``contains`` and ``regex`` are pleased by saying everything: where that is a danger, use another.

The rule never sees the policy's text when it scores; ``figures`` holds that text against the answer too, for
a figure beside the score.
"""

from collections.abc import Callable, Mapping

from judge.asr import word_error_rate
from judge.choices import letters
from judge.types import Missing, Scale, Scored, Task, Verdict
from speech.answers import SEARCH_S, option, pattern, problem
from speech.expressions import expression, says
from speech.numbers import number, numbers
from speech.spelling import bare
from speech.words import alike, spoken, typed, words

JUDGE = "verifiable/1"


def checkable(task: Task) -> str | None:
    """Why this task's answer cannot be checked; None when it can."""
    if task.match is None or task.answer is None:
        return "the task has no checkable answer"
    if task.match not in _RIGHT:
        return f"match must be {', '.join(_RIGHT)}: got {task.match!r}"
    broken = problem(task.match, task.answer)
    if broken is not None:
        return f"{broken}: got {task.answer!r}"
    of_words = task.match in ("final", "exact", "contains")
    expected = option(task.answer)[1] if task.match == "choice" else task.answer if of_words else None
    if expected is not None and not words(expected):
        return f"the expected answer has no words: got {task.answer!r}"
    return None


def right(text: str, task: Task) -> bool:
    """Does the text give the answer?

    ValueError: the task's answer cannot be checked. TimeoutError: a pattern's search did not end.
    """
    unusable = checkable(task)
    if unusable is not None or task.match is None or task.answer is None:
        raise ValueError(unusable)
    return _RIGHT[task.match](text, task.answer)


def score(transcript: str, task: Task, scale: Scale) -> Verdict:
    """Hold what was heard against the expected answer.

    Missing: nothing to check, or a search that did not end; no retry changes either.
    """
    unusable = checkable(task)
    if unusable is not None or task.answer is None:
        return Missing(judge=JUDGE, reason=str(unusable), kind="nothing_to_check")
    why = f"heard {transcript!r}, expected {task.match} {task.answer!r}"
    if task.match == "exact":
        value = scale.at(max(0.0, 1.0 - word_error_rate(task.answer, transcript)))
        return Scored(value=value, judge=JUDGE, why=why)
    try:
        is_right = right(transcript, task)
    except TimeoutError:
        reason = f"the pattern {task.answer!r} was searched for longer than allowed"
        return Missing(judge=JUDGE, reason=reason, kind="deadline")
    return Scored(value=scale.hi if is_right else scale.lo, judge=JUDGE, why=why)


def figures(text: str, heard: str, task: Task) -> dict[str, float]:
    """Right as written and right as heard, 0 or 1; what cannot be told is left out."""
    told: dict[str, float] = {}
    if checkable(task) is not None:
        return told
    for name, said in (("text_right", text), ("heard_right", heard)):
        try:
            told[name] = float(right(said, task))
        except TimeoutError:
            continue
    return told


def _final(text: str, answer: str) -> bool:
    said, expected = alike(words(text), words(answer))
    return said[-len(expected) :] == expected


def _exact(text: str, answer: str) -> bool:
    said, expected = alike(words(text), words(answer))
    return said == expected


def _number(text: str, answer: str) -> bool:
    return numbers(text)[-1:] == [number(answer)]


def _choice(text: str, answer: str) -> bool:
    letter, its_words = option(answer)
    named = letters(text)
    return named == {letter} if named or its_words is None else _final(text, its_words)


def _contains(text: str, answer: str) -> bool:
    said, expected = alike(words(text), words(answer))
    return f" {' '.join(expected)} " in f" {' '.join(said)} "


def _regex(text: str, answer: str) -> bool:
    ways = [" ".join(say(text)) for say in (words, typed, spoken)]
    texts = dict.fromkeys(spelling for way in ways for spelling in (way, bare(way)))
    return any(pattern(answer).search(said, timeout=SEARCH_S) is not None for said in texts)


def _math(text: str, answer: str) -> bool:
    return says(text, expression(answer))


_RIGHT: Mapping[str, Callable[[str, str], bool]] = {
    "final": _final,
    "exact": _exact,
    "number": _number,
    "choice": _choice,
    "contains": _contains,
    "regex": _regex,
    "math": _math,
}
