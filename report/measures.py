"""What is measured on a held-out reply, one number per prompt, and in which direction it gets better.

IQ is what the answer is worth, EQ how it sounds: the paper's two figures, here with the checked answer *as
heard*, and with the judge's acoustic axis beside measurements that no judge can be talked into. A fault is a
measurement beyond what ordinary speech keeps to: the bounds at which the acoustic judge begins to take away.
A reply that lacks the measurement has no number here, and counts in no share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from report.records import HeldOutReply, Score

Unit = Literal["%", "points", "bits", "s"]

LONGEST_SILENCE = 0.5  # share of the time
LONGEST_PAUSE = 1.0  # seconds
MOST_LOOP = 0.8  # self-correlation
MOST_CLIPPING = 0.002  # share of samples
SLOWEST, FASTEST = 2.2, 1 / 2.0  # duration / what the words need


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure. ``better``: +1 when more is better, -1 when less is, 0 when neither."""

    name: str
    label: str
    unit: Unit
    better: int
    of: Callable[[HeldOutReply], float | None]  # in its unit; None: this reply has no such figure
    meaning: str


def _percent(name: str) -> Callable[[HeldOutReply], float | None]:
    def of(reply: HeldOutReply) -> float | None:
        figure = reply.figures.get(name)
        return None if figure is None else 100 * figure

    return of


def _fault(name: str) -> Callable[[HeldOutReply], float | None]:
    """100 or 0 for a reply that was listened to."""

    def of(reply: HeldOutReply) -> float | None:
        return 100.0 * FAULTS[name](reply.figures) if "pace" in reply.figures else None

    return of


def _any_fault(reply: HeldOutReply) -> float | None:
    """100 or 0; None for a reply that could be judged and that nobody listened to."""
    if reply.figures.get("unjudgeable"):
        return 100.0
    return 100.0 * any(fault(reply.figures) for fault in FAULTS.values()) if "pace" in reply.figures else None


def _acoustic(reply: HeldOutReply) -> float | None:
    score = reply.scores.get("acoustic")
    return score.value if isinstance(score, Score) else None


OF_HEARD = "of the replies that could be heard"

FAULTS: dict[str, Callable[[Mapping[str, float]], bool]] = {
    "duration": lambda figures: not FASTEST <= figures["pace"] <= SLOWEST,
    "silence": lambda figures: figures["silence"] > LONGEST_SILENCE or figures["pause"] > LONGEST_PAUSE,
    "loop": lambda figures: figures["loop"] > MOST_LOOP,
    "clipping": lambda figures: figures["clipping"] > MOST_CLIPPING,
}

MEASURES: tuple[Measure, ...] = (
    Measure(
        name="iq",
        label="IQ, as heard",
        unit="%",
        better=1,
        of=_percent("heard_right"),
        meaning="answers right in what the recogniser heard, of the prompts with a checkable answer",
    ),
    Measure(
        name="iq_text",
        label="IQ, in text",
        unit="%",
        better=1,
        of=_percent("text_right"),
        meaning="answers right in the text channel",
    ),
    Measure(
        name="eq",
        label="EQ, acoustic score",
        unit="points",
        better=1,
        of=_acoustic,
        meaning="the judge's acoustic axis, on its scale",
    ),
    Measure(
        name="style",
        label="style followed",
        unit="%",
        better=1,
        of=_percent("style_followed"),
        meaning="of the prompts that ask for a style",
    ),
    Measure(
        name="wer",
        label="WER, own text vs heard",
        unit="%",
        better=-1,
        of=_percent("wer"),
        meaning="word errors of what was heard against the reply's own text, mean over replies",
    ),
    Measure(
        name="fault",
        label="any fault",
        unit="%",
        better=-1,
        of=_any_fault,
        meaning="replies with any of the four faults, or unjudgeable: of all that the judge did not fail on",
    ),
    Measure(
        name="fault_duration",
        label="duration faults",
        unit="%",
        better=-1,
        of=_fault("duration"),
        meaning=f"{OF_HEARD}, those shorter than {FASTEST:g} or longer than {SLOWEST:g} times what their words need",
    ),
    Measure(
        name="fault_silence",
        label="silence faults",
        unit="%",
        better=-1,
        of=_fault("silence"),
        meaning=f"{OF_HEARD}, those silent more than {LONGEST_SILENCE:.0%} of the time or {LONGEST_PAUSE:g} s on end",
    ),
    Measure(
        name="fault_loop",
        label="loop faults",
        unit="%",
        better=-1,
        of=_fault("loop"),
        meaning=f"{OF_HEARD}, those whose sound repeats itself: self-correlation above {MOST_LOOP:g}",
    ),
    Measure(
        name="fault_clipping",
        label="clipping faults",
        unit="%",
        better=-1,
        of=_fault("clipping"),
        meaning=f"{OF_HEARD}, those with more than {MOST_CLIPPING:.1%} of their samples at full scale",
    ),
    Measure(
        name="unjudgeable",
        label="unjudgeable",
        unit="%",
        better=-1,
        of=_percent("unjudgeable"),
        meaning="replies without words, without audio, or endless: they get the floor and nobody hears them",
    ),
    Measure(
        name="truncated",
        label="truncated",
        unit="%",
        better=-1,
        of=_percent("truncated"),
        meaning="replies that used up their token budget",
    ),
    Measure(
        name="well_formed",
        label="well formed",
        unit="%",
        better=1,
        of=_percent("well_formed"),
        meaning="replies that keep to the family's grammar",
    ),
    Measure(
        name="seconds",
        label="seconds of audio",
        unit="s",
        better=0,
        of=lambda reply: reply.seconds,
        meaning="mean length of a reply",
    ),
    Measure(
        name="reward",
        label="reward",
        unit="points",
        better=1,
        of=lambda reply: reply.reward,
        meaning="the judges' weighted mean: what training was paid for",
    ),
)

DISTANCE = "distance"
DISTANCE_LABEL = "audio tokens, from base"
DISTANCE_MEANING = (
    "Jensen-Shannon divergence, in bits, between the histograms of the audio tokens of all test replies, "
    "this policy's against the base's: 0 when every token has the same share, 1 when none is in common, less "
    "what histograms of so few tokens are apart by chance (below 0: no drift to be seen). It sees which "
    "tokens are used and how often, not their order; other words also move it: drift, not a fault"
)
