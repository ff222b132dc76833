"""Where in the generated tokens an answer of one label stands, and what its alternatives weigh.

Invariant: the scored token spells the answer. What stands before it is a thought that came to its end, what
stands behind it ends the turn; where the tokens say anything else, they are not those of this answer.
"""

import re
from bisect import bisect_left, insort
from collections.abc import Collection, Sequence
from math import exp

from judge.endpoint.completion import THOUGHT_ENDS
from judge.types import CallFailed

TokenLogprobs = Sequence[Sequence[tuple[str, float]]]
"""Per generated token: the one that was taken, then its alternatives; natural log."""

BLANKS = " \t\r\n\u00a0\u2009\u200b\u202f\u3000\ufeff\u2581\u0120\u010a"  # the last three: of vocabularies
END_TOKEN = re.compile(r"<[^<>\s]{0,40}>|\[[^\[\]\s]{0,40}\]")  # "</s>", "<|im_end|>", "[EOS]"
ANSWER_STARTS = (*THOUGHT_ENDS, "<|message|>")  # harmony's final channel begins so
LOGPROB_TOLERANCE = 1e-3  # of one probability that was given twice
COMPARED_CHARS = 200  # last characters of a thought that must be those of the tokens before the label


def find_label_alternatives(answer: str, logprobs: TokenLogprobs, thought: str = "") -> Sequence[tuple[str, float]]:
    """The alternatives at the token that is the ``answer``. CallFailed malformed: there is none.

    ``thought``: what the model thought, where it came in a field of its own.
    """
    tokens = [options[0][0] if options else "" for options in logprobs]
    last = len(tokens) - 1
    while last >= 0 and _ends_turn(tokens[last]):
        last -= 1
    if last < 0:
        raise CallFailed("malformed", "the answer came without token probabilities")
    before = "".join(tokens[:last]).strip(BLANKS)
    if strip_blanks(tokens[last]) != answer or (before and not _is_thought(before, thought)):
        spelt = "".join(tokens[max(0, last - 20) :])[-100:]
        raise CallFailed("malformed", f"the tokens do not spell the answer {answer!r}: they end with {spelt!r}")
    return logprobs[last]


def strip_blanks(token: str) -> str:
    """A token without blanks around it."""
    return token.strip(BLANKS)


def sum_label_probabilities(labels: Collection[str], options: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Label -> probability. Tokens that differ in blanks alone are one label; one given twice counts once.

    CallFailed malformed: a log-probability that is none.
    """
    weights, counted_logprobs = dict.fromkeys(labels, 0.0), dict[str, list[float]]()
    for sign, logprob in options:
        if not logprob <= 1e-3:  # NaN as well
            raise CallFailed("malformed", f"a log-probability must not be positive: got {logprob}")
        alike = counted_logprobs.setdefault(sign, [])  # in order: one comparison, however many there are
        at = bisect_left(alike, logprob - LOGPROB_TOLERANCE)
        is_repeated = at < len(alike) and alike[at] <= logprob + LOGPROB_TOLERANCE
        if strip_blanks(sign) in weights and not is_repeated:
            weights[strip_blanks(sign)] += exp(logprob)
            insort(alike, logprob)
    return weights


def _ends_turn(token: str) -> bool:
    text = strip_blanks(token)
    return not text or (END_TOKEN.fullmatch(text) is not None and text.lower() not in THOUGHT_ENDS)


def _is_thought(before: str, thought: str) -> bool:
    """Whether the text before a label is a thought that has ended, by its mark or by what is known of it."""
    thought_end = thought.strip(BLANKS)[-COMPARED_CHARS:]
    return before.lower().endswith(ANSWER_STARTS) or bool(thought_end and before.endswith(thought_end))
