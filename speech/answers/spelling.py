"""One spelling of what people type and recognisers write, sign by sign.

Case, composed and decomposed letters, widths, ligatures, digits of other scripts, apostrophes and dashes are
written in one way; what is not seen (soft hyphens, zero-width and direction marks) goes. Letters stay.
Thousands set apart are joined: by blanks that do not break and by ' always ("1'000"), by plain ones where one
of the groups is 000 and no other number is next to them ("10 000"; "12 500" may be two numbers).
Invariant: ``normalize_spelling`` of plain text is the text itself, in time in proportion to its length.
"""

import unicodedata

import regex

_TABLE = str.maketrans(
    dict.fromkeys("’‘ʼ‛′´`＇ʹꞌ՚ʻ", "'")
    | dict.fromkeys("‐‑‒–—―−﹘﹣－⁃", "-")
    | dict(zip("。｡、，！？；：؟،؛⁄", "..,,!?;:?,;/", strict=True))
    | {"№": "#", "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4"}
    | {"ё": "е", "Ё": "е"}  # in Russian the points are left to the reader
    | {"æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "ß": "ss", "ẞ": "ss"}
)
_POWER = regex.compile(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_POWERS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", "⁺")
_UNSEEN = regex.compile(r"[\p{Cf}\p{Variation_Selector}\u0640\u034f]+")  # and the Arabic stretch of a letter
_THIN = regex.compile(r"(?<![\p{Nd}.,])\p{Nd}{1,3}(?:[\u00a0\u2007\u2009\u202f]\p{Nd}{3})+(?!\p{Nd})")
_THOUSANDS = regex.compile(r"(?<![0-9.,'] ?)[0-9]{1,3}(?:(?:'[0-9]{3})+(?![0-9'])|(?: [0-9]{3})+(?! ?[0-9]))")
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)


def normalize_spelling(text: str) -> str:
    """The text in lower case and one spelling; punctuation and blanks stay where they are."""
    visible = _POWER.sub(_spell_raised_digits, _THIN.sub(_joined, _UNSEEN.sub("", text.translate(_TABLE))))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    spelled = _UNSEEN.sub("", folded.translate(_TABLE))
    digits = str(_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), spelled))
    return str(_THOUSANDS.sub(lambda m: _joined(m) if "'" in m[0] or " 000" in m[0] else m[0], digits))


def strip_accents(word: str) -> str:
    """The word without its accents, points and strokes: "café" is "cafe"."""
    taken_apart = unicodedata.normalize("NFD", word.replace("ø", "o").replace("ł", "l").replace("đ", "d"))
    return unicodedata.normalize("NFC", str(_ACCENT.sub(r"\1", taken_apart)))


def _joined(groups: "regex.Match[str]") -> str:
    return "".join(sign for sign in groups[0] if sign.isdecimal())


def _spell_raised_digits(raised: "regex.Match[str]") -> str:
    """One power for a whole row of raised digits: x¹⁰ is x^10, x⁻¹ is x^-1."""
    return {"²": " squared ", "³": " cubed "}.get(raised[0], f"^{raised[0].translate(_POWERS)}")


# What is written or left out beside a letter of these scripts; elsewhere a mark is a sound of its own.
_ACCENT = regex.compile(r"([\p{Latin}\p{Greek}])\p{M}+|[\u0591-\u05c7\u064b-\u0652\u0670]")
