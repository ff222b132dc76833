"""Numbers as people say and recognisers write them: "a hundred and five", "1,200", "minus three point five".

Invariant: values are exact (Fraction), and any text, however long or strange, is read in one pass.

    number    [minus | negative | -] quantity [(over | /) quantity] [percent | %]
    quantity  cardinal | [cardinal | a] part | cardinal and part             then optionally a scale

What is ambiguous was decided once. A comma in digits separates thousands ("3,5" is two numbers). "five minus
three" is 5 and 3. A percentage counts hundredths: "75 %" is 3/4, not 75. Alone, "nineteen ninety nine" and
"twenty oh five" are years (speech/answers/cardinals.py); any other row of numbers is a row ("one two three", "ten
twenty"). Ordinals are parts ("two thirds") or no numbers ("twenty third"); a second is always a time.
"""

from fractions import Fraction

from speech.answers.cardinals import (
    SCALES,
    TENS,
    ParsedNumber,
    parse_cardinal,
    parse_digit_token,
    split_number_tokens,
    word_at,
)

_ORDINALS = {
    name: value
    for value, name in enumerate(
        "third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
        "fifteenth sixteenth seventeenth eighteenth nineteenth".split(),
        start=3,
    )
}
_ORDINALS |= {name.removesuffix("y") + "ieth": tens for name, tens in TENS.items()}
_ORDINALS |= {f"{name}th": scale for name, scale in (SCALES | {"hundred": 100}).items()}
_PARTS = {"half": 2, "quarter": 4} | _ORDINALS
_PLURAL_PARTS = {"halves": 2} | {f"{name}s": value for name, value in _PARTS.items()}


def parse_numbers(text: str) -> list[Fraction]:
    """Every number in the order in which it is said.

    Example:
        parse_numbers("twenty-one and two thirds of 1,200")  # [Fraction(65, 3), Fraction(1200, 1)]
    """
    tokens, index, follows_number = split_number_tokens(text), 0, False
    values: list[Fraction] = []
    while index < len(tokens):
        read = _parse_signed_number(tokens, index, follows_number)
        if read is None:
            follows_number, index = False, index + 1
            continue
        value, after = read
        if _is_ordinal(tokens, after):
            follows_number, index = False, after + 1
            continue
        values.append(value)
        follows_number, index = True, after
    return values


def parse_single_number(text: str) -> Fraction:
    """The number that a text is. ValueError: it is none, or more than one."""
    tokens = split_number_tokens(text)
    read = _parse_signed_number(tokens, 0, False)
    if read is None or tokens[read[1] :] not in ([], ["."]):
        raise ValueError("must be one number, as 12, -3.5, 2/3, 75 % or three quarters")
    return read[0]


def parse_quantity(tokens: list[str], index: int, follows_number: bool = False) -> ParsedNumber | None:
    """The number without a sign, a slash or a percentage that begins at a token; None when none does.

    ``follows_number``: another number ends right before it, so no year begins here.
    """
    read = _parse_part_word(tokens, index) or _parse_mixed_number(tokens, index, follows_number)
    if read is None:
        return None
    value, after = read
    scale = after + (word_at(tokens, after) == "a")
    if value.denominator > 1 and word_at(tokens, scale) in SCALES:
        return value * SCALES[tokens[scale]], scale + 1
    return value, after


def _parse_signed_number(tokens: list[str], index: int, follows_number: bool) -> ParsedNumber | None:
    word = word_at(tokens, index)
    minus = word == "negative" or (word in ("-", "minus") and not follows_number)
    read = parse_quantity(tokens, index + minus, follows_number)
    if read is None:
        return None
    value, after = read
    if word_at(tokens, after) in ("over", "/"):
        below = parse_quantity(tokens, after + 1)
        if below is not None and below[0] != 0:
            value, after = value / below[0], below[1]
    if word_at(tokens, after) in ("percent", "%"):
        value, after = value / 100, after + 1
    elif tokens[after : after + 2] == ["per", "cent"]:
        value, after = value / 100, after + 2
    return -value if minus else value, after


def _parse_mixed_number(tokens: list[str], index: int, follows_number: bool) -> ParsedNumber | None:
    """A cardinal, and what goes with it: "two and a half", "two thirds", "1 1/2"."""
    read = parse_cardinal(tokens, index, follows_number)
    if read is None:
        return None
    value, after = read
    below = _find_denominator(tokens, after, value)
    if below is not None:
        return value / below, after + 1
    joined = word_at(tokens, after) == "and"
    part = _parse_slash_fraction(tokens, after + joined)
    if part is None and joined:
        part = _parse_part_word(tokens, after + 1) or _parse_counted_part(tokens, after + 1)
    if part is not None and part[0] < 1 and value.denominator == 1:
        return value + part[0], part[1]
    return value, after


def _parse_part_word(tokens: list[str], index: int) -> ParsedNumber | None:
    """ "half", "a half", "a quarter", "an eighth"."""
    article = word_at(tokens, index) in ("a", "an")
    word = word_at(tokens, index + article)
    if word == "half" or (article and word in _PARTS):
        return Fraction(1, _PARTS[word]), index + article + 1
    return None


def _parse_counted_part(tokens: list[str], index: int) -> ParsedNumber | None:
    read = parse_cardinal(tokens, index, True)
    below = None if read is None else _find_denominator(tokens, read[1], read[0])
    return None if read is None or below is None else (read[0] / below, read[1] + 1)


def _find_denominator(tokens: list[str], index: int, above: Fraction) -> int | None:
    """What a count of parts is divided by; "twenty third" is a rank, "two third" a plural badly heard."""
    word = word_at(tokens, index)
    if above.denominator > 1 or (word == "half" and above != 1):
        return None
    return _PLURAL_PARTS.get(word) or (_PARTS.get(word) if above < 20 else None)


def _is_ordinal(tokens: list[str], index: int) -> bool:
    return word_at(tokens, index) in {"first", *_ORDINALS} and tokens[index - 1] in {"hundred", *TENS}


def _parse_slash_fraction(tokens: list[str], index: int) -> ParsedNumber | None:
    """ "1/2" in digits, for "1 1/2" and "1 and 1/2"."""
    above, below = parse_digit_token(tokens, index), parse_digit_token(tokens, index + 2)
    if word_at(tokens, index + 1) != "/" or above is None or not below:
        return None
    return above / below, index + 3
