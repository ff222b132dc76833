"""Whole and decimal numbers in words or digits: "a hundred and five", "nineteen oh five", "2.5 million".

Invariant: what is read ends where the number does, and a row of small numbers stays a row: only "hundred", a
scale ("thousand" to "trillion"), "point" and years join words.

    cardinal  (year | groups | digits) [point digits] [scale]
    groups    below a thousand, each before a smaller scale: "two million three hundred and five thousand"

Two two-digit numbers in words that stand alone are a year when the first is 11 to 20 and the second not the
next one below twenty ("fifteen sixteen"). "a" is one before "hundred" and the scales only.
"""

import re
from fractions import Fraction

from speech.answers.spelling import normalize_spelling

MAX_DIGITS = 40  # digits; a longer row of digits is no number

_SMALL = {
    name: value
    for value, name in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen".split()
    )
}
TENS = {
    name: 10 * tens
    for tens, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
} | {"fourty": 40}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
RANK = "-th"  # a token of its own behind a number: it is an ordinal
_MULTIPLES = ("hundred", *SCALES)
_OH = ("oh", "o")
_NOT_ZERO_POINT = ("a", "the", "this", "that", "which", "what", "some")  # "at this point five people"

_TOKEN = re.compile(
    r"[0-9]+(?:st|nd|rd|th)\b"  # ordinals stay whole
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
    r"|[^\W\d_]+(?:'[^\W\d_]+)*|\S"
)
_SIGNS = str.maketrans(dict.fromkeys("$€£", " "))

ParsedNumber = tuple[Fraction, int]  # a value, and the index of the token after it


def split_number_tokens(text: str) -> list[str]:
    """Lower-case words, digits without thousands separators, and every other sign by itself."""
    spaced = re.sub(r"(?<=[a-z]{2})-(?=[a-z]{2})", " ", normalize_spelling(text).translate(_SIGNS))
    return [token if len(token) == 1 else token.replace(",", "") for token in _TOKEN.findall(spaced)]


def parse_cardinal(tokens: list[str], index: int, follows_number: bool) -> ParsedNumber | None:
    """The number that begins at a token. ``follows_number``: another ends right before it, so no year begins here."""
    read = _parse_year(tokens, index) if not follows_number else None
    read = read or _parse_scale_groups(tokens, index) or _parse_point_decimal(tokens, index)
    if read is None:
        return None
    value, after = read
    if word_at(tokens, after) == "point" and value.denominator == 1:
        value, after = _parse_decimals(tokens, after + 1, value) or (value, after)
    if value.denominator > 1 and word_at(tokens, after) in SCALES:
        return value * SCALES[tokens[after]], after + 1
    return value, after


def spell_number(value: int) -> list[str]:
    """A whole number in letters: 105 is "one hundred five". From 10^15 on in digits."""
    if value < 20:
        return [next(name for name, small in _SMALL.items() if small == value)]
    if value < 100:
        tens = next(name for name, ten in TENS.items() if ten == value // 10 * 10)
        return [tens, *(spell_number(value % 10) if value % 10 else [])]
    scales = [(scale, name) for name, scale in (("hundred", 100), *SCALES.items()) if scale <= value]
    scale, name = scales[-1]
    if value // scale >= 1000:
        return [str(value)]
    return [*spell_number(value // scale), name, *(spell_number(value % scale) if value % scale else [])]


def parse_digit_token(tokens: list[str], index: int) -> Fraction | None:
    """The number that a token of digits is."""
    word = word_at(tokens, index)
    readable = word[:1] in "0123456789." and word[-1:].isdecimal() and len(word) <= MAX_DIGITS
    return Fraction(word) if word and readable else None


def word_at(tokens: list[str], index: int) -> str:
    """A token; nothing where there is none."""
    return tokens[index] if 0 <= index < len(tokens) else ""


def _parse_point_decimal(tokens: list[str], index: int) -> ParsedNumber | None:
    """ "point five", when it does not follow "this" or "the"."""
    if word_at(tokens, index) != "point" or word_at(tokens, index - 1) in _NOT_ZERO_POINT:
        return None
    return _parse_decimals(tokens, index + 1, Fraction(0))


def _parse_decimals(tokens: list[str], index: int, whole: Fraction) -> ParsedNumber | None:
    """The digits after "point": "one four", "oh five", "fourteen"."""
    digits = ""
    while index < len(tokens) and len(digits) < MAX_DIGITS:
        if tokens[index] in _OH:
            digits, index = digits + "0", index + 1
            continue
        read = _parse_below_hundred(tokens, index)
        if read is None:
            break
        digits += tokens[index] if tokens[index][0].isdigit() else str(read[0])
        index = read[1]
    return (whole + Fraction(int(digits), 10 ** len(digits)), index) if digits else None


def _parse_scale_groups(tokens: list[str], index: int) -> ParsedNumber | None:
    """Groups of hundreds before falling scales: "two million[,] [and] three hundred and five thousand".

    A comma is part of a number in letters only, before a group of 100 or more: "one thousand, five" is two.
    """
    total, last, after = Fraction(0), None, index
    while last is None or last > 1:
        comma = last is not None and word_at(tokens, after) == "," and word_at(tokens, after + 1).isalpha()
        start = after + (comma or (last is not None and word_at(tokens, after) == "and"))
        read = _parse_hundreds(tokens, start)
        if read is None:
            break
        scale = SCALES.get(word_at(tokens, read[1]), 1)
        if last is not None and (scale >= last or read[0] * scale >= last or read[0] == 0):
            break
        if comma and read[0] * scale < 100:
            break
        total, last = total + read[0] * scale, scale
        after = read[1] + (scale > 1)
    return None if last is None else (total, after)


def _parse_hundreds(tokens: list[str], index: int) -> ParsedNumber | None:
    """ "five", "a hundred and five", "nineteen hundred", digits; "a" only before hundred and the scales."""
    if word_at(tokens, index) in ("a", "an") and word_at(tokens, index + 1) in _MULTIPLES:
        read: ParsedNumber | None = (Fraction(1), index + 1)
    elif word_at(tokens, index) in _MULTIPLES:
        read = (Fraction(1), index)
    else:
        digits, small = parse_digit_token(tokens, index), _parse_below_hundred(tokens, index)
        read = (digits, index + 1) if digits is not None else small and (Fraction(small[0]), small[1])
    if read is None or word_at(tokens, read[1]) != "hundred" or read[0] == 0:
        return read
    value, after = read[0] * 100, read[1] + 1
    below_hundred = _parse_below_hundred(tokens, after + (word_at(tokens, after) == "and"))
    if below_hundred is None or below_hundred[0] == 0 or word_at(tokens, below_hundred[1]) == "hundred" or value % 100:
        return value, after
    return value + below_hundred[0], below_hundred[1]


def _parse_below_hundred(tokens: list[str], index: int) -> tuple[int, int] | None:
    """ "zero" to "ninety nine", or digits for it."""
    word = word_at(tokens, index)
    if word in TENS:
        unit = _SMALL.get(word_at(tokens, index + 1), 0)
        return (TENS[word] + unit, index + 2) if 0 < unit < 10 else (TENS[word], index + 1)
    if word in _SMALL:
        return _SMALL[word], index + 1
    return (int(word), index + 1) if word.isdecimal() and word.isascii() and len(word) <= 2 else None


def _parse_year(tokens: list[str], index: int) -> ParsedNumber | None:
    """Two two-digit numbers in words and nothing more: 11 to 20, then 10 to 99 or "oh" and a digit."""
    if word_at(tokens, index)[:1].isdigit():
        return None
    first = _parse_below_hundred(tokens, index)
    if first is None or not 11 <= first[0] <= 20:
        return None
    oh = word_at(tokens, first[1]) in _OH
    second = _parse_below_hundred(tokens, first[1] + oh)
    if second is None or word_at(tokens, first[1])[:1].isdigit():
        return None
    if (second[0] not in range(1, 10)) if oh else (second[0] < 10 or first[0] + 1 == second[0] < 20):
        return None
    after = word_at(tokens, second[1])
    if after in SCALES or after in ("hundred", "point", RANK) or _parse_below_hundred(tokens, second[1]) is not None:
        return None
    return Fraction(100 * first[0] + second[0]), second[1]
