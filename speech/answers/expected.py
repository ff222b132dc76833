"""What a manifest's expected answers mean: each kind of match, and whether a value fits it.

Invariant: a value that ``find_answer_problem`` passes can be compared with any text; comparing is the judges' part.
Values come from manifests, which are hostile input: patterns are bounded before they are compiled.
"""

import re
import unicodedata
from functools import lru_cache
from typing import Any, Literal

import regex

from speech.answers.expressions import parse_expression
from speech.answers.numbers import parse_single_number

AnswerMatch = Literal["final", "exact", "number", "choice", "contains", "regex", "math"]

PATTERN_SEARCH_LIMIT_S = 0.25  # longest search of a pattern
MAX_PATTERN_LENGTH = 500
MAX_PATTERN_DEPTH = 8  # groups in each other: "+" doubles its group in a compiled pattern
MAX_PATTERN_COPIES = 1000  # of all counts {m,n} together: they copy their group

_COUNT = re.compile(r"\\.|\{([0-9]{1,3})(?:,([0-9]{0,3}))?\}|\{", re.DOTALL)
_BRACKET = re.compile(r"\\.|[()]", re.DOTALL)
_OPTION = re.compile(r"([A-Za-z])(?:\s*[:.)]\s*(\S.*))?")


def find_answer_problem(match: str, value: str) -> str | None:
    """The rule that a value breaks; None when it fits its match."""
    try:
        match match:
            case "number":
                parse_single_number(value)
            case "choice":
                parse_option(value)
            case "regex":
                compile_answer_pattern(value)
            case "math":
                parse_expression(value)
    except ValueError as error:
        return str(error)
    return None


def parse_option(value: str) -> tuple[str, str | None]:
    """The letter of an option, lower case, and its words: "B: Paris" -> ("b", "Paris"), "C" -> ("c", None).

    ValueError: it is neither.
    """
    match = _OPTION.fullmatch(unicodedata.normalize("NFKC", value).strip())
    if match is None:
        raise ValueError("must be the letter of an option, alone or with its words: B, or B: Paris")
    return match[1].lower(), match[2]


@lru_cache(maxsize=1024)
def compile_answer_pattern(value: str) -> Any:
    """A pattern of the package ``regex``, searched with ``timeout=PATTERN_SEARCH_LIMIT_S``; case does not matter.

    What Python's own ``re`` cannot read (recursion, fuzzy matching) is refused, and so is what is large, or
    finds something in silence. ValueError: the rule broken.
    """
    if len(value) > MAX_PATTERN_LENGTH:
        raise ValueError(f"must be a pattern of at most {MAX_PATTERN_LENGTH} characters")
    depth = copies = 1
    for count in _COUNT.finditer(value):
        if count[0] == "{":
            raise ValueError(r"must be a pattern with { in counts such as {2,5} only, else \{")
        copies *= max(1, int(count[1] or 1), int(count[2] or 1))
    depths = [depth := depth + {"(": 1, ")": -1}.get(bracket[0], 0) for bracket in _BRACKET.finditer(value)]
    if copies > MAX_PATTERN_COPIES or max(depths, default=1) > MAX_PATTERN_DEPTH + 1:
        rule = f"counts that multiply to at most {MAX_PATTERN_COPIES} and {MAX_PATTERN_DEPTH} groups in each other"
        raise ValueError(f"must be a pattern with {rule}")
    try:
        re.compile(value)
        compiled = regex.compile(value, regex.IGNORECASE)
        in_silence = compiled.search("", timeout=PATTERN_SEARCH_LIMIT_S)
    except (re.error, regex.error, TimeoutError) as error:
        raise ValueError(f"must be a pattern: {error}") from error
    if in_silence:
        raise ValueError("must be a pattern that finds nothing in an empty reply")
    return compiled
