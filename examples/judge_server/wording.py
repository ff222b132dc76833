"""Opinions put into the answer that was asked for: a label with its probabilities, JSON, or tagged text.

Invariant: the expectation under the probabilities is the opinion itself, not its nearest level.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, floor, log
from random import Random
from typing import Any

from examples.judge_server.case import Style

LEVELS = (1, 2, 3, 4, 5)
BLUR = 0.05  # probability that goes to each neighbour of a level
SHARPNESS = 2.0  # of a comparison: log-odds per level
TIE = 0.25  # levels apart that nobody would notice
LEAST = 1e-6  # probability that is worth a line
REASON = "This is what was asked for in the reply, as far as it goes."
NO_SCORE = "I am not sure what to say about this."


@dataclass(frozen=True, slots=True)
class Worded:
    """The text of an answer, and the log-probabilities of its only token where it is a label."""

    text: str
    logprobs: dict[str, Any] | None = None


def score_chances(value: float) -> dict[str, float]:
    """Probability of each level, of mean ``value`` (1..5)."""
    low = min(floor(value), LEVELS[-1] - 1)
    chances = dict.fromkeys(LEVELS, 0.0)
    chances[low], chances[low + 1] = low + 1 - value, value - low
    blurred = dict(chances)
    for level in LEVELS[1:-1]:  # to both sides alike, which keeps the mean
        blurred[level] -= 2 * BLUR * chances[level]
        blurred[level - 1] += BLUR * chances[level]
        blurred[level + 1] += BLUR * chances[level]
    return {str(level): chance for level, chance in blurred.items()}


def choice_chances(first: float, second: float) -> dict[str, float]:
    """A, B or T (neither) for two opinions."""
    if abs(first - second) < TIE:
        return {"A": 0.1, "B": 0.1, "T": 0.8}
    better = 1 / (1 + exp(-SHARPNESS * (first - second)))
    return {"A": better, "B": 1 - better, "T": 0.0}


def ranking(opinions: Mapping[str, float]) -> str:
    """The places, best first; of equals the one shown first."""
    return ", ".join(sorted(opinions, key=lambda name: -opinions[name]))


def drawn(chances: Mapping[str, float], temperature: float, random: Random) -> str:
    """The likeliest label, or one drawn as a model would at this temperature."""
    if temperature == 0:
        return max(chances, key=lambda label: chances[label])
    weights = [chance ** (1 / max(temperature, 0.05)) for chance in chances.values()]
    return random.choices(list(chances), weights)[0]


def worded(field: str, label: str, chances: Mapping[str, float] | None, style: Style) -> Worded:
    """The answer with this label; ``chances``: to be told with it."""
    if style == "label":
        return Worded(label, None if chances is None else _logprobs(label, chances))
    if style == "schema":
        shown: Any = label if field == "choice" else json.loads(f"[{label}]")
        shown = shown[0] if field == "score" else shown
        return Worded(json.dumps({"reason": REASON, field: shown}))
    return Worded(f"{REASON} <{field}>{label}</{field}>")


def _logprobs(label: str, chances: Mapping[str, float]) -> dict[str, Any]:
    shown_logprobs = {name: log(chance) for name, chance in chances.items() if chance >= LEAST}
    options = [
        {"token": name, "logprob": value} for name, value in sorted(shown_logprobs.items(), key=lambda x: -x[1])
    ]
    return {"content": [{"token": label, "logprob": shown_logprobs[label], "top_logprobs": options}]}
