"""The tasks of the tiny world: questions with checkable answers, and their split into three sets.

Invariant: what a held-out set asks was never trained on in any phrasing or style. For arithmetic and
comparison the held-out thing is an unordered pair of numbers, for repetition a sentence; for facts that
must be seen (opposites, what comes next) it is a fact together with a style. Pure and
seeded: same rows every time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from examples.tiny_world.words import ADJECTIVES, DAYS, LAST, MONTHS, NOUNS, NUMBERS, OPPOSITES, VERBS

STYLES = ("slow", "loud")
STYLE_SHARE = 0.35
TRAIN_ROWS = {"plus": 560, "minus": 400, "comparison": 480, "next": 450, "opposite": 270, "repeat": 500}
LARGEST_SUM = 16
LARGEST_MINUEND = 12
HELD_OUT = {  # task -> (validation keys, test keys); each key gives one row
    "plus": (12, 25),
    "minus": (12, 25),
    "comparison": (18, 38),
    "next": (18, 38),
    "opposite": (16, 32),
    "repeat": (24, 42),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question without a style request, with the only right reply."""

    task: str
    key: str  # what must stay unseen, phrasing aside
    question: str
    reply: str
    value: str  # the answer to check
    match: str = "final"  # "final": the reply ends with value; "exact": the reply is value


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """An item asked in a style: what one manifest row holds."""

    item: Item
    style: str | None
    question: str


def sums() -> Iterator[Item]:
    """a + b up to sixteen, two phrasings each."""
    for a in range(LARGEST_SUM + 1):
        for b in range(LARGEST_SUM + 1 - a):
            yield from _arithmetic(a, "plus", b, a + b)


def differences() -> Iterator[Item]:
    """a - b from zero, a up to twelve, two phrasings each."""
    for a in range(LARGEST_MINUEND + 1):
        for b in range(a + 1):
            yield from _arithmetic(a, "minus", b, a - b)


def _arithmetic(a: int, sign: str, b: int, result: int) -> Iterator[Item]:
    for opening in ("what is", "how much is"):
        yield Item(
            task="arithmetic",
            key=f"{a} {sign} {b}",
            question=f"{opening} {NUMBERS[a]} {sign} {NUMBERS[b]}",
            reply=f"the answer is {NUMBERS[result]}",
            value=NUMBERS[result],
        )


def comparison() -> Iterator[Item]:
    """Which of two different numbers is bigger or smaller, in both orders and two phrasings."""
    for a in range(21):
        for b in range(21):
            if a == b:
                continue
            for how, pick in (("bigger", max), ("smaller", min)):
                for opening in ("which is", "tell me which is"):
                    value = NUMBERS[pick(a, b)]
                    yield Item(
                        task="comparison",
                        key=f"{min(a, b)} {max(a, b)}",
                        question=f"{opening} {how} {NUMBERS[a]} or {NUMBERS[b]}",
                        reply=f"the {how} one is {value}",
                        value=value,
                    )


def succession() -> Iterator[Item]:
    """What comes after or before a number, a day, a month; days and months go round."""
    facts = list(pairwise(NUMBERS))
    for ring in (DAYS, MONTHS):
        facts += pairwise([*ring, ring[0]])
    for first, second in facts:
        for how, given, value in (("after", first, second), ("before", second, first)):
            for opening in ("what", "which one", "tell me what"):
                yield Item(
                    task="next",
                    key=f"{how} {given}",
                    question=f"{opening} comes {how} {given}",
                    reply=f"{how} {given} comes {value}",
                    value=value,
                )


def opposites() -> Iterator[Item]:
    """The opposite of a word, both ways round."""
    for left, right in OPPOSITES:
        for given, value in ((left, right), (right, left)):
            for opening in ("what is", "tell me", "say"):
                yield Item(
                    task="opposite",
                    key=given,
                    question=f"{opening} the opposite of {given}",
                    reply=f"the opposite of {given} is {value}",
                    value=value,
                )


def repetition() -> Iterator[Item]:
    """Little sentences of three to five words to say back."""
    for noun in NOUNS:
        for verb in VERBS:
            for adjective in ADJECTIVES:
                last = LAST[(len(noun) + len(verb) + len(adjective)) % len(LAST)]
                for sentence in (
                    f"the {noun} {verb}",
                    f"my {adjective} {noun} {verb}",
                    f"the {adjective} {noun} {verb} {last}",
                    f"my {noun} is {adjective} {last}",
                ):
                    for opening in ("repeat after me", "say after me"):
                        yield Item(
                            task="repeat",
                            key=sentence,
                            question=f"{opening} {sentence}",
                            reply=sentence,
                            value=sentence,
                            match="exact",
                        )


FAMILIES = {
    "plus": sums,
    "minus": differences,
    "comparison": comparison,
    "next": succession,
    "opposite": opposites,
    "repeat": repetition,
}


def in_style(item: Item, style: str | None, random: Random) -> Prompt:
    """Ask for a style before the question or, unless the question is a sentence to repeat, after it."""
    if style is None:
        return Prompt(item=item, style=None, question=item.question)
    adverb = {"slow": "slowly", "loud": "loudly"}[style]
    forms = [f"say it {adverb} {item.question}", f"{item.question} speak {adverb}"]
    return Prompt(item=item, style=style, question=random.choice(forms[: 1 if item.match == "exact" else 2]))


def draw_style(random: Random) -> str | None:
    """A style request in about a third of the rows."""
    return random.choice(STYLES) if random.random() < STYLE_SHARE else None
