"""What an endpoint can do, as ``judge.llm.probe`` found out, and how it is asked because of it."""

from dataclasses import dataclass, field

from judge.llm.answers import AnswerMode

MODE_LABELS = {"logprobs": "expected score", "schema": "JSON", "tagged": "tagged text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What worked. ``forced``: token probabilities only came with the choice of labels enforced.

    ``ranking``: the mode of a ranking, which has no single label whose probabilities could be read.
    """

    audio: bool
    json_schema: bool
    logprobs: bool
    choice: bool
    forced: bool
    latency_s: float  # of one answer in the chosen mode
    mode: AnswerMode
    ranking: AnswerMode = "tagged"
    usage: bool = True  # it says how many tokens a call took
    lacks: dict[str, str] = field(default_factory=dict)  # what did not work -> why

    def describe(self) -> str:
        """One line for people."""
        works = {
            "audio": self.audio,
            "logprobs": self.logprobs,
            "json_schema": self.json_schema,
            "choice": self.choice,
        }
        descriptions = [name if ok else f"no {name} ({self.lacks.get(name)})" for name, ok in works.items()]
        return f"judge answers by {MODE_LABELS[self.mode]}, {self.latency_s:.2f} s a call: {', '.join(descriptions)}"
