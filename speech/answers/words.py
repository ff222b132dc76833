"""The words of a text as they are compared: the same words, however typed or written down, are the same list.

    letters   of any script, with their marks and inner apostrophes: "don't", "café", "straße" as "strasse"
    numbers   each one word: up to twelve in letters, above in digits, however said: "a hundred and five" is
              "105", "the twenty-first" "21st", "nineteen ninety-nine" and "15:30" are "1999" and "1530" (of
              the pairs, those from fifteen on), "two and a half" is "2.5"
    signs     that are read out: % + = & and those of speech/answers/signs.py
    initials  "U.S.", "U S" and "US" are "us"; a row of letters with two that are no words is one word
    scripts   without blanks (Chinese, Japanese, Thai, ...): sign by sign

What sounds the same is the same ("2000 5" is two numbers, "two thousand five" is one). A number ends where
the text has a sign: "16, 70" is two. Contractions, fillers and British spellings stay as they are said.
Invariant: the words of words are themselves, and punctuation, case and spelling (speech/answers/spelling.py) change
no word but numbers. A text is read in a few passes, however long it is.
"""

from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import groupby

import regex

from speech.answers.cardinals import RANK, SCALES, parse_cardinal, spell_number, word_at
from speech.answers.ordinals import PLURAL, in_letters, marked, parts
from speech.answers.signs import COUNTED, NUMBER, read_out
from speech.answers.spelling import normalize_spelling, strip_accents

_UNSPACED = "".join(rf"\p{{{script}}}" for script in "Han Hiragana Katakana Thai Lao Khmer Myanmar Tibetan".split())
_TOKEN = regex.compile(
    rf"[0-9]+(?:st|nd|rd|th|s)\b|{NUMBER}|[{_UNSPACED}]\p{{M}}*|[\p{{L}}--[{_UNSPACED}]]"
    rf"(?:[\p{{L}}\p{{M}}--[{_UNSPACED}]]|'(?=[\p{{L}}--[{_UNSPACED}]]))*|[%+=&]|[.,;:!?]",
    regex.V1,
)
_STOPS = frozenset(".,;:!?")
_READ_OUT = {
    "%": "percent", "+": "plus", "=": "equals", "&": "and", "fourty": "forty",
    "mr": "mister", "mrs": "missus", "dr": "doctor", "prof": "professor", "vs": "versus", "ok": "okay",
}  # fmt: skip
_CENTURIES = ("fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")  # "twelve twelve" is two
_OH = ("oh", "o")
_FEW = 12  # up to which numbers are in letters
_LETTER_WORDS = frozenset("aeioy")  # of some language
_PLACES = 120  # of a decimal number
PASSES = 8  # one or two are enough for what people write


def split_words(text: str) -> list[str]:
    """The words, in order.

    Example:
        split_words("It’s 12, café!")  # ["it's", "twelve", "café"]
    """
    words = _once(text)
    for _ in range(PASSES):
        if (again := _once(" ".join(words))) == words:  # "one. point. five" sounds as "one point five" does
            break
        words = again
    return words


def split_typed_words(text: str) -> list[str]:
    """The words with every number as the text has it: "forty two" is two words, "42" is one."""
    return [token for token in _tokens(text) if token not in _STOPS]


def unify_accents(words: Sequence[str], others: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both with the same accents: a word that either side has bare is bare on both ("cafe", "café")."""
    plainly = {word for word in (*words, *others) if word.isascii() or strip_accents(word) == word}

    def settled(word: str) -> str:
        return (
            word
            if word in plainly
            else next((unaccented for unaccented in (strip_accents(word),) if unaccented in plainly), word)
        )

    return [settled(word) for word in words], [settled(word) for word in others]


def split_spoken_words(text: str) -> list[str]:
    """The words as they sound, numbers in letters: what a text's length is measured on.

    1100 to 1999 and 2010 to 2099 sound as years do, in two pairs, unless they count money or percent.

    Example:
        split_spoken_words("3.14 in 1905")  # ["three", "point", "one", "four", "in", "nineteen", "oh", "five"]
    """
    words = split_words(text)
    following = [*words, ""][1:]
    return [
        spoken_word
        for word, after in zip(words, following, strict=True)
        for spoken_word in _spell_as_spoken(word, may_be_year=after not in COUNTED)
    ]


def _spell_as_spoken(word: str, may_be_year: bool) -> list[str]:
    """A word in letters: 1905 as "nineteen oh five", 3.14 as "three point one four"; not from 10^15 on."""
    number, *mark = parts(word)
    whole, point, digits = number.partition(".")
    if not (whole.isascii() and whole.isdecimal() and len(whole) <= 15):
        return [word]
    if point:
        return [
            *spell_number(int(whole)),
            "point",
            *(digit_word for digit in digits for digit_word in spell_number(int(digit))),
        ]
    value = int(whole)
    is_year = may_be_year and mark != [RANK] and (1100 <= value < 2000 or 2010 <= value < 2100)
    words = _pairs(value) if is_year else spell_number(value)
    return in_letters(words, mark[0]) if mark else words


def _pairs(year: int) -> list[str]:
    first, second = divmod(year, 100)
    last = spell_number(second) if second else ["hundred"]
    return [*spell_number(first), *(["oh"] if 0 < second < 10 else []), *last]


def _once(text: str) -> list[str]:
    return _initials(_join_number_words([part for token in _tokens(text) for part in parts(token)]))


def _tokens(text: str) -> list[str]:
    """The words, numbers and stops."""
    matches = _TOKEN.findall(read_out(normalize_spelling(text)))
    return [_READ_OUT.get(token, token if token in _STOPS else token.replace(",", "")) for token in matches]


def _join_number_words(tokens: list[str]) -> list[str]:
    """The words, each number one of them, without the stops."""
    joined: list[str] = []
    index, row = 0, False  # in a row: a number was right before
    while index < len(tokens):
        repeated = index > 0 and tokens[index - 1] == tokens[index] == "point"  # a pass for each of them otherwise
        no_year = tokens[index] not in _CENTURIES and word_at(tokens, index + 1) not in _OH
        read = None if repeated else parse_cardinal(tokens, index, row or no_year)
        if read is not None:
            word, index = _format_number(tokens, *read)
            joined.append("oh" if row and word == "zero" and _goes_on(tokens, index) else word)
            row = True
            continue
        inside = row and tokens[index] in _OH and _goes_on(tokens, index + 1)
        word, index = ("oh", index + 1) if inside else _other(tokens, index, row)
        joined += [word] if word else []
        row = inside or (row and not word and tokens[index - 1] not in _STOPS)
    return joined


def _goes_on(tokens: list[str], index: int) -> bool:
    """Whether the row of numbers does: "ten oh five" and "10 0 5" are the same."""
    return word_at(tokens, index) in _OH or parse_cardinal(tokens, index, True) is not None


def _format_number(tokens: list[str], value: Fraction, after: int) -> tuple[str, int]:
    """A number that was read with what is behind it: its mark, or "and a half"."""
    half = tokens[after : after + 3 : 2] == ["and", "half"] and tokens[after + 1] in ("a", "one", "1")
    if half and value.denominator == 1:
        value, after = value + Fraction(1, 2), after + 3
        scale = SCALES.get(word_at(tokens, after))
        value, after = (value * scale, after + 1) if scale else (value, after)
    mark = word_at(tokens, after)
    if mark in (RANK, PLURAL):
        return marked(_digits(value), mark), after + 1
    return spell_number(int(value))[0] if value.denominator == 1 and value <= _FEW else _digits(value), after


def _digits(value: Fraction) -> str:
    if value.denominator == 1:
        return str(int(value))
    with localcontext(prec=_PLACES):
        return format((Decimal(value.numerator) / Decimal(value.denominator)).normalize(), "f")


def _other(tokens: list[str], index: int, row: bool) -> tuple[str, int]:
    """A token that begins no number, or nothing, and where to go on."""
    token, following = tokens[index], word_at(tokens, index + 1)
    if token in _STOPS or token in (RANK, PLURAL) or (row and token == "o'clock"):
        return "", index + 1
    if token == "per" and following == "cent":
        return "percent", index + 2
    if token in ("a", "an") and following in ("half", "quarter"):
        return "one", index + 1
    return token, index + 1


def _initials(words: list[str]) -> list[str]:
    """Rows of single letters as one word each, unless they may be words: "a", "i", "y"."""
    joined: list[str] = []
    for single, row in groupby(words, lambda word: len(word) == 1 and "a" <= word <= "z"):
        letters = list(row)
        names = [letter not in _LETTER_WORDS for letter in letters]
        whole = single and (sum(names) > 1 or (names[0] and len(names) > 2) or letters == ["a", "m"])
        joined += ["".join(letters)] if whole else letters
    return joined
