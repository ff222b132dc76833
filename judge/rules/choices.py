"""Multiple choice: which letter does a reply settle on?

    1  the last letter after "answer", "choose", "pick" ..., or before "is correct", "is the answer"
    2  else the last letter after "option", "choice" or "letter"
    3  else a letter that begins the reply ("b", "it's b", "B. Paris")

Recognisers write letters as words. "a", "i", "be", "see" and their like are letters only right after "option"
and its like, or where a clause ends with them: "the answer is a large city" names no letter.
"""

import re

from speech.answers.spelling import normalize_spelling

LETTER_SOUNDS = {"a": "a", "ay": "a", "eh": "a", "bee": "b", "be": "b", "see": "c", "sea": "c", "cee": "c"}
LETTER_SOUNDS |= {"dee": "d", "ee": "e", "eff": "f", "ef": "f", "gee": "g", "i": "i"}

_CLEAR = "[b-hj-z]"  # "a" and "i" are words too
_ANY = f"(?:{_CLEAR}|{'|'.join(LETTER_SOUNDS)})"
_END = r"(?= [.,;:!?]| (?:because|since|as|and|or|which|so|but|not)\b|$)"
_NAMED = r"(?:option|choice|letter)"
_NOT_DENIED = r"(?! (?:is |was )?(?:not|wrong|incorrect|false|isn't|wasn't|can't|cannot)\b)"
_LETTER = rf"(?:{_NAMED} {_ANY}|{_CLEAR}|(?:{'|'.join(LETTER_SOUNDS)}){_END})\b{_NOT_DENIED}"
_LETTERS = rf"(?P<letters>{_LETTER}(?:(?: ,)? (?:(?:or|and) )?{_LETTER}(?! is\b| was\b))*)"
_FILLERS = (
    r"(?:(?:is|was|are|be|would|will|must|should|clearly|definitely|probably|most|likely|therefore|i think|"
    r"i believe|i guess|the|my|correct|right|final|best|one|answer|with|for|[:,]) ){0,8}"
)
_ANSWER = re.compile(
    rf"\b(?:answer|answer's|choose|chose|pick|picked|select|go|going) {_FILLERS}{_LETTERS}"
    rf"|\b(?P<praised>{_CLEAR}|a|{_NAMED} {_ANY}) (?:is|was) (?:the )?(?:(?:only|final|best|correct|right) )*"
    r"(?:answer|option|choice|one|correct|right)\b"
)
_OPTION = re.compile(rf"\b(?:(?={_NAMED} )|{_NAMED} {_FILLERS}){_LETTERS}")
_BEGINNING = re.compile(rf"(?:(?:it's|it is|that's|that is|so|well|i think|i believe|,) ){{0,8}}{_LETTERS}")
_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[0-9]+|[.,;:!?]")


def find_chosen_letters(text: str) -> frozenset[str]:
    """The letters, lower case, that the deciding words name: one, or several ("b or c"), or none.

    Example:
        find_chosen_letters("Option A is wrong, so the answer is bee.")  # {"b"}
    """
    words = " ".join(_TOKEN.findall(normalize_spelling(text)))
    for cue in (_ANSWER, _OPTION):
        matches = list(cue.finditer(words))
        if matches:
            return _letters_in_match(matches[-1])
    beginning = _BEGINNING.match(words)
    return _letters_in_match(beginning) if beginning else frozenset()


def _letters_in_match(match: re.Match[str]) -> frozenset[str]:
    names = re.findall(rf"\b{_ANY}\b", match.groupdict().get("praised") or match["letters"])
    return frozenset(LETTER_SOUNDS.get(name, name) for name in names)
