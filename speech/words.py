"""The words of a text as they are compared: the same words, however typed or written down, are the same list.

    letters   of any script, with their marks and inner apostrophes: "don't", "café", "straße" as "strasse"
    numbers   each one word: up to twenty in letters, above in digits, however said: "a hundred and five" is
              "105", "nineteen ninety-nine" is "1999" (of the years, those from 1500 on)
    signs     that are read out: % + = & and money
    scripts   without blanks (Chinese, Japanese, Thai, ...): sign by sign

Invariant: the words of words are themselves, and punctuation, case and spelling (speech/spelling.py) change
nothing. A text is read in a few passes, however long it is.
"""

from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction

import regex

from speech.cardinals import SCALES, cardinal, spelled
from speech.spelling import bare, plain

_NUMBER = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![\p{L}0-9])\.[0-9]+"
_UNSPACED = "".join(
    rf"\p{{{script}}}" for script in "Han Hiragana Katakana Thai Lao Khmer Myanmar Tibetan".split()
)
_TOKEN = regex.compile(
    rf"[0-9]+(?:st|nd|rd|th)\b|{_NUMBER}|[{_UNSPACED}]\p{{M}}*|[\p{{L}}--[{_UNSPACED}]]"
    rf"(?:[\p{{L}}\p{{M}}--[{_UNSPACED}]]|'(?=[\p{{L}}--[{_UNSPACED}]]))*|[%+=&]",
    regex.V1,
)
_MONEY = regex.compile(rf"([$€£]) ?({_NUMBER})( (?:{'|'.join(SCALES)}))?")
_COINS = {"$": "dollar", "€": "euro", "£": "pound"}
_MINUS = regex.compile(r"(?<![\p{L}\p{M}0-9])-(?=\.?[0-9])")
_PART = regex.compile(r"(?<![0-9/.,])([123])/([234])(?![0-9/.,])")
_PARTS = {
    ("1", "2"): "one half", ("1", "3"): "one third", ("2", "3"): "two thirds",
    ("1", "4"): "one quarter", ("3", "4"): "three quarters",
}  # fmt: skip
_COUNTED = ("percent", *_COINS.values(), *(f"{coin}s" for coin in _COINS.values()))
_READ_OUT = {"%": "percent", "+": "plus", "=": "equals", "&": "and", "mr": "mister", "fourty": "forty"}
_ORDINAL = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth"}
_ORDINAL |= {"nine": "ninth", "twelve": "twelfth"}
_CENTURIES = ("fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")  # "twelve twelve" is two
_FEW = 20  # up to which numbers are in letters


def words(text: str) -> list[str]:
    """The words, in order.

    Example:
        words("It’s 12, café!")  # ["it's", "twelve", "café"]
    """
    tokens = typed(text)
    while (numbered := _numbered(tokens)) != tokens:  # "20 3" sounds as 23 does
        tokens = numbered
    return tokens


def typed(text: str) -> list[str]:
    """The words with every number as the text has it: "forty two" is two words, "42" is one."""
    said = _MINUS.sub(" minus ", _MONEY.sub(_paid, _PART.sub(_part, plain(text))))
    return [one for token in _TOKEN.findall(said) for one in _written(token)]


def alike(said: Sequence[str], heard: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both with the same accents: a word that either side has bare is bare on both ("cafe", "café")."""
    plainly = {word for word in (*said, *heard) if word.isascii() or bare(word) == word}

    def settled(word: str) -> str:
        return word if word in plainly else next((one for one in (bare(word),) if one in plainly), word)

    return [settled(word) for word in said], [settled(word) for word in heard]


def spoken(text: str) -> list[str]:
    """The words as they sound, numbers in letters: what a text's length is measured on.

    1100 to 1999 and 2010 to 2099 sound as years do, in two pairs, unless they count money or percent.

    Example:
        spoken("3.14 in 1905")  # ["three", "point", "one", "four", "in", "nineteen", "oh", "five"]
    """
    said = words(text)
    following = [*said, ""][1:]
    return [
        one
        for word, after in zip(said, following, strict=True)
        for one in _sound(word, may_be_year=after not in _COUNTED)
    ]


def _sound(word: str, may_be_year: bool) -> list[str]:
    """A word in letters: 1905 as "nineteen oh five", 3.14 as "three point one four"; not from 10^15 on."""
    whole, point, digits = word.partition(".")
    if not (whole.isascii() and whole.isdecimal() and len(whole) <= 15):
        return [word]
    if point:
        return [*spelled(int(whole)), "point", *(one for digit in digits for one in spelled(int(digit)))]
    value = int(whole)
    if not may_be_year or not (1100 <= value < 2000 or 2010 <= value < 2100):
        return spelled(value)
    first, second = divmod(value, 100)
    last = spelled(second) if second else ["hundred"]
    return [*spelled(first), *(["oh"] if 0 < second < 10 else []), *last]


def _written(token: str) -> list[str]:
    if token[-1:].isalpha() and token[0].isdigit():
        return _ordinal(int(token[:-2])) if len(token) <= 17 else [token]
    return [_READ_OUT.get(token, token.replace(",", ""))]


def _ordinal(value: int) -> list[str]:
    *first, last = spelled(value)
    if last in _ORDINAL:
        return [*first, _ORDINAL[last]]
    return [*first, f"{last[:-1]}ieth" if last.endswith("y") else f"{last.removesuffix('e')}th"]


def _numbered(tokens: list[str]) -> list[str]:
    said: list[str] = []
    at, row = 0, False
    while at < len(tokens):
        repeated = at > 0 and tokens[at - 1] == tokens[at] == "point"  # a pass for each of them otherwise
        read = None if repeated else cardinal(tokens, at, row or tokens[at] not in _CENTURIES)
        if read is not None:
            said.append(_number(read[0]))
            row, at = True, read[1]
            continue
        joins = tokens[at : at + 2] == ["per", "cent"]
        said.append("percent" if joins else tokens[at])
        row, at = False, at + 1 + joins
    return said


def _number(value: Fraction) -> str:
    if value.denominator > 1:
        with localcontext(prec=120):
            return format((Decimal(value.numerator) / Decimal(value.denominator)).normalize(), "f")
    return spelled(int(value))[0] if value <= _FEW else str(int(value))


def _paid(found: "regex.Match[str]") -> str:
    coin = _COINS[found[1]]
    return f"{found[2]}{found[3] or ''} {coin if found[2] == '1' and not found[3] else coin + 's'} "


def _part(found: "regex.Match[str]") -> str:
    return f" {_PARTS.get((found[1], found[2]), found[0])} "
