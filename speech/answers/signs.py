"""Signs and short forms as they are read out: "15:30" is "fifteen thirty", "$2.50" is "2 dollars 50 cents".

Only what has one usual reading is replaced, where its neighbours leave no doubt; its words are English.
Invariant: a text without such signs is itself, and the time is in proportion to the text's length.

    time      15:30, 10:05 (ten oh five), 7:00 (seven); 10 a.m.
    money     $5, 5 €, $1.00, $2.50, £2 million, $5-10, 99¢
    phone     555-1234, (555) 123-4567, 1-800-555-0199; 007: digit by digit
    between   3×4, 3 x 4, 5 - 3 (minus), 5–10 (to, where it rises), 2½ and 2 1/2 (2 and a half)
    before    -3 (minus), No. 5 and #5 (number)
    behind    20°C, 1990s, 90's, 20-second (22nd: it sounds so)
    letters   U.S. and a.m. (one word, "us" and "am"), example.com (dot)
"""

from collections.abc import Callable
from typing import Any

import regex

from speech.answers.cardinals import SCALES, spell_number

NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\p{L}0-9])\.[0-9]+"
_COINS = {
    "$": ("dollar", "dollars", "cent"), "€": ("euro", "euros", "cent"), "£": ("pound", "pounds", "penny"),
    "¥": ("yen", "yen", ""), "₹": ("rupee", "rupees", "paisa"), "₽": ("ruble", "rubles", "kopek"),
    "¢": ("cent", "cents", ""),
}  # fmt: skip
_SMALL_COINS = {"cent": "cents", "penny": "pence", "paisa": "paise", "kopek": "kopeks"}
COUNTED = frozenset(word for coin in _COINS.values() for word in coin[:2]) | {"percent"}
_COIN, _SCALE = f"[{''.join(_COINS)}]", rf"( (?:{'|'.join(SCALES)}))\b"
_PARTS = {
    ("1", "2"): "one half", ("1", "3"): "one third", ("2", "3"): "two thirds",
    ("1", "4"): "one quarter", ("3", "4"): "three quarters",
}  # fmt: skip

_COMMA = regex.compile(r",(?=[0-9]{2}$)")  # "2,50 €"

SignReading = tuple[Any, str | Callable[[Any], str]]


def read_out(text: str) -> str:
    """A text of one spelling (speech/answers/spelling.py) with its signs in words."""
    for pattern, reading in _READINGS:
        text = str(pattern.sub(reading, text))
    return text


def _time(match: Any) -> str:
    hour, minute = int(match[1]), int(match[2])
    minutes = [] if not minute else [*(["oh"] if minute < 10 else []), *spell_number(minute)]
    return f" {' '.join([*spell_number(hour), *minutes])} "


def _digits(match: Any) -> str:
    return f" {' '.join(sign for sign in match[0] if sign.isdigit())} "


def _paid(match: Any) -> str:
    amount, scale = _COMMA.sub(".", match["amount"]), match["scale"] or ""
    coin, coins, small = _COINS[match["coin"] or match["behind"]]
    whole, point, cents = amount.replace(",", "").partition(".")
    if match["upto"]:
        return f" {amount} to {match['upto']}{scale} {coins} "
    if scale or (point and (len(cents) != 2 or not small)):
        return f" {amount}{scale} {coins} "
    count = int(cents or "0")
    parts = [f"{whole} {coin if whole == '1' else coins}"] if int(whole or "0") or not count else []
    parts += [f"{count} {small if count == 1 else _SMALL_COINS[small]}"] if count else []
    return f" {' '.join(parts)} "


def _upwards(match: Any) -> str:
    low, high = int(match[1]), int(match[2])
    return f"{match[1]} to {match[2]}" if low < high else match[0]


def _part(match: Any) -> str:
    return f" {_PARTS.get((match[1], match[2]), match[0])} "


def _patterns(*readings: tuple[str, str | Callable[[Any], str]]) -> tuple[SignReading, ...]:
    return tuple((regex.compile(pattern), reading) for pattern, reading in readings)


_NOT_INSIDE = r"(?<![\p{L}0-9:.,/-])"
_READINGS = _patterns(
    (rf"{_NOT_INSIDE}(?:(?:1[-. ])?(?:\([0-9]{{3}}\) ?|[0-9]{{3}}([-.]))[0-9]{{3}}[-.]|[0-9]{{3}}-)[0-9]{{4}}"
     r"(?![\p{L}0-9/-]|[.:,][0-9])", _digits),
    (r"(?<![0-9.,:])0[0-9]{2,39}(?![0-9:]|[.,][0-9])", _digits),
    (r"(?<![0-9:.,])([01]?[0-9]|2[0-4]):([0-5][0-9])(?![0-9:])", _time),
    (r"(?<=[0-9]) ?\b([ap])\.? ?m\b", r" \1m "),
    (r"(?<![\p{L}\p{M}'.])\p{L}(?:\.\p{L})+(?![\p{L}\p{M}])", lambda match: match[0].replace(".", "")),
    (r"(?<=\p{L})\.(?=(?:com|org|net|edu|gov)\b)", " dot "),
    (r"(?<=\p{L})@(?=\p{L})", " at "),
    (rf"(?<![\p{{L}}\p{{M}}0-9])-(?=\.?[0-9]|{_COIN})", " minus "),
    (rf"(?<coin>{_COIN}) ?(?<amount>{NUMBER})(?:-(?<upto>{NUMBER}))?(?<scale>{_SCALE})?"
     rf"|(?<![0-9.]|[0-9],)(?<amount>[0-9]+,[0-9]{{2}}(?![0-9])|{NUMBER})(?<scale>{_SCALE})?"
     rf" ?(?<behind>{_COIN})", _paid),
    (r"(?<![0-9/.,])([0-9]+) (?=[123]/[234](?![0-9/]))", r"\1 and "),
    (r"(?<![0-9/.,])([123])/([234])(?![0-9/]|[.,][0-9])", _part),
    (r"(?<![0-9.]|\p{L})1 ?° ?", " 1 degree "),
    (r" ?° ?", " degrees "),
    (r"\b(degrees?) c\b", r"\1 celsius"),
    (r"\b(degrees?) f\b", r"\1 fahrenheit"),
    (r"(?<=[0-9]) ?[x*] ?(?=[0-9])", " times "),
    (r"×", " times "),
    (r"÷", " divided by "),
    (r"(?<![\p{L}0-9.,/-])([0-9]{1,4})-([0-9]{1,4})(?![\p{L}0-9/-]|[.,:][0-9])", _upwards),
    (r"(?<=[0-9)] )-(?= [0-9(])", " minus "),
    (r"(?<![.?!] |\p{L})no\. ?(?=[0-9])", "number "),
    (r"# ?(?=[0-9])", " number "),
    (r"(?<![0-9.,])([0-9]*[2-9])0[ -]second\b", r"\g<1>2nd"),
    (r"(?<=[0-9])'s\b", "s"),
)  # fmt: skip
