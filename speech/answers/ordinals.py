"""Ordinals and decades by their number: "fifth" is five and a rank, "nineties" ninety's plural.

Invariant: the end of one in letters ("a hundred and fifth") and behind digits ("105th") is the same mark.
"""

from speech.answers.cardinals import RANK, SCALES, TENS, spell_number

PLURAL = "-s"  # a token of its own behind a number: a decade, or hundreds of something

_ODD = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
}
_ODD |= {"twelve": "twelfth"}


def _rank(word: str) -> str:
    return _ODD.get(word) or (f"{word[:-1]}ieth" if word.endswith("y") else f"{word}th")


def _several(word: str) -> str:
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


_LARGE = (*TENS, "hundred", *SCALES)
ORDINALS = {_rank(word): word for word in (*(spell_number(value)[0] for value in range(1, 20)), *_LARGE)}
PLURALS = {_several(word): word for word in _LARGE}


def parts(token: str) -> list[str]:
    """A token as a number and its mark; any other as it is."""
    if token in ORDINALS:
        return [ORDINALS[token], RANK]
    if token in PLURALS:
        return [PLURALS[token], PLURAL]
    digits = token.rstrip("sthndr")
    if digits.isascii() and digits.isdecimal() and len(digits) < len(token):
        return [digits, PLURAL if token.endswith("s") else RANK]
    return [token]


def marked(digits: str, mark: str) -> str:
    """In digits: "21st", "1990s"."""
    if mark == PLURAL:
        return f"{digits}s"
    teen = digits[-2:] in ("11", "12", "13")
    return digits + ("th" if teen else {"1": "st", "2": "nd", "3": "rd"}.get(digits[-1], "th"))


def in_letters(words: list[str], mark: str) -> list[str]:
    """A number in letters with its mark: ["twenty", "first"], ["nineteen", "nineties"]."""
    *first, last = words
    return [*first, _rank(last) if mark == RANK else _several(last)]
