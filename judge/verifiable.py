"""The semantic axis where an answer can be checked: is the expected answer in what was *heard*?

    final   the transcript must end with the answer      right -> scale.hi, anything else -> scale.lo
    exact   the transcript must be the answer            scale.at(1 - word error rate, at least 0)

No partial credit for a final answer: "the answer is eleven" is as wrong as silence when the answer is twelve,
and credit for the carrier sentence would pay for talking without knowing. Repeating a sentence is a task of
many words, so there each word counts. The rule reads words and digits alike and never sees the policy's text
when it scores; ``right`` is used a second time on that text, for a figure beside the score.
"""

from judge.asr import word_error_rate, words
from judge.types import Missing, Scale, Scored, Task, Verdict

JUDGE = "verifiable/1"


def checkable(task: Task) -> str | None:
    """Why this task's answer cannot be checked; None when it can."""
    if task.match is None or task.answer is None:
        return "the task has no checkable answer"
    if task.match not in ("final", "exact"):
        return f"match must be final or exact: got {task.match!r}"
    if not words(task.answer):
        return f"the expected answer has no words: got {task.answer!r}"
    return None


def right(text: str, task: Task) -> bool:
    """Does the text give the answer? ValueError: the task's answer cannot be checked."""
    problem = checkable(task)
    if problem is not None or task.answer is None:
        raise ValueError(problem)
    said, expected = words(text), words(task.answer)
    return said == expected if task.match == "exact" else said[-len(expected) :] == expected


def score(transcript: str, task: Task, scale: Scale) -> Verdict:
    """Hold what was heard against the expected answer. Missing: nothing to check, which no retry changes."""
    problem = checkable(task)
    if problem is not None or task.answer is None:
        return Missing(judge=JUDGE, reason=str(problem), kind="nothing_to_check")
    why = f"heard {transcript!r}, expected {task.match} {task.answer!r}"
    if task.match == "exact":
        value = scale.at(max(0.0, 1.0 - word_error_rate(task.answer, transcript)))
    else:
        value = scale.hi if right(transcript, task) else scale.lo
    return Scored(value=value, judge=JUDGE, why=why)
