"""What is measured on a held-out reply, one number per prompt, and in which direction it gets better.

IQ is what the answer is worth, EQ how it sounds: the paper's two figures, here with the checked answer *as
heard*, and with the judge's acoustic axis beside measurements that no judge can be talked into. A fault is a
measurement beyond what ordinary speech keeps to: the bounds at which the acoustic judge begins to take away.
A reply that lacks the measurement has no number here, and counts in no share.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from report.records import HeldOutReply, ScoreRecord

MeasureUnit = Literal["%", "points", "bits", "s"]

MAX_SILENCE_SHARE = 0.5  # share of the time
MAX_PAUSE_S = 1.0  # seconds
MAX_SELF_CORRELATION = 0.8  # self-correlation
MAX_CLIPPING_SHARE = 0.002  # share of samples
MAX_DURATION_RATIO, MIN_DURATION_RATIO = 2.2, 1 / 2.0  # duration / what the words need


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure. ``better``: +1 when more is better, -1 when less is, 0 when neither."""

    name: str
    label: str
    unit: MeasureUnit
    better: int
    of: Callable[[HeldOutReply], float | None]  # in its unit; None: this reply has no such figure
    meaning: str


def _figure_in_percent(name: str) -> Callable[[HeldOutReply], float | None]:
    def of(reply: HeldOutReply) -> float | None:
        figure = reply.figures.get(name)
        return None if figure is None else 100 * figure

    return of


def _fault_in_percent(name: str) -> Callable[[HeldOutReply], float | None]:
    """100 or 0 for a reply that was listened to."""

    def of(reply: HeldOutReply) -> float | None:
        return 100.0 * SPEECH_FAULTS[name](reply.figures) if "pace" in reply.figures else None

    return of


def _any_fault_in_percent(reply: HeldOutReply) -> float | None:
    """100 or 0; None for a reply that could be judged and that nobody listened to."""
    if reply.figures.get("unjudgeable"):
        return 100.0
    return 100.0 * any(fault(reply.figures) for fault in SPEECH_FAULTS.values()) if "pace" in reply.figures else None


def _get_acoustic_score(reply: HeldOutReply) -> float | None:
    score = reply.scores.get("acoustic")
    return score.value if isinstance(score, ScoreRecord) else None


OF_HEARD = "of the replies that could be heard"

SPEECH_FAULTS: dict[str, Callable[[Mapping[str, float]], bool]] = {
    "duration": lambda figures: not MIN_DURATION_RATIO <= figures["pace"] <= MAX_DURATION_RATIO,
    "silence": lambda figures: figures["silence"] > MAX_SILENCE_SHARE or figures["pause"] > MAX_PAUSE_S,
    "loop": lambda figures: figures["loop"] > MAX_SELF_CORRELATION,
    "clipping": lambda figures: figures["clipping"] > MAX_CLIPPING_SHARE,
}

HELD_OUT_MEASURES: tuple[Measure, ...] = (
    Measure(
        name="iq",
        label="IQ, as heard",
        unit="%",
        better=1,
        of=_figure_in_percent("heard_right"),
        meaning="answers right in what the recogniser heard, of the prompts with a checkable answer",
    ),
    Measure(
        name="iq_text",
        label="IQ, in text",
        unit="%",
        better=1,
        of=_figure_in_percent("text_right"),
        meaning="answers right in the text channel",
    ),
    Measure(
        name="eq",
        label="EQ, acoustic score",
        unit="points",
        better=1,
        of=_get_acoustic_score,
        meaning="the judge's acoustic axis, on its scale",
    ),
    Measure(
        name="style",
        label="style followed",
        unit="%",
        better=1,
        of=_figure_in_percent("style_followed"),
        meaning="of the prompts that ask for a style",
    ),
    Measure(
        name="wer",
        label="WER, own text vs heard",
        unit="%",
        better=-1,
        of=_figure_in_percent("wer"),
        meaning="word errors of what was heard against the reply's own text, mean over replies",
    ),
    Measure(
        name="fault",
        label="any fault",
        unit="%",
        better=-1,
        of=_any_fault_in_percent,
        meaning="replies with any of the four faults, or unjudgeable: of all that the judge did not fail on",
    ),
    Measure(
        name="fault_duration",
        label="duration faults",
        unit="%",
        better=-1,
        of=_fault_in_percent("duration"),
        meaning=f"{OF_HEARD}, those shorter than {MIN_DURATION_RATIO:g} or longer than {MAX_DURATION_RATIO:g} times"
        " what their words need",
    ),
    Measure(
        name="fault_silence",
        label="silence faults",
        unit="%",
        better=-1,
        of=_fault_in_percent("silence"),
        meaning=f"{OF_HEARD}, those silent more than {MAX_SILENCE_SHARE:.0%} of the time or {MAX_PAUSE_S:g} s on end",
    ),
    Measure(
        name="fault_loop",
        label="loop faults",
        unit="%",
        better=-1,
        of=_fault_in_percent("loop"),
        meaning=f"{OF_HEARD}, those whose sound repeats itself: self-correlation above {MAX_SELF_CORRELATION:g}",
    ),
    Measure(
        name="fault_clipping",
        label="clipping faults",
        unit="%",
        better=-1,
        of=_fault_in_percent("clipping"),
        meaning=f"{OF_HEARD}, those with more than {MAX_CLIPPING_SHARE:.1%} of their samples at full scale",
    ),
    Measure(
        name="unjudgeable",
        label="unjudgeable",
        unit="%",
        better=-1,
        of=_figure_in_percent("unjudgeable"),
        meaning="replies without words, without audio, or endless: they get the floor and nobody hears them",
    ),
    Measure(
        name="truncated",
        label="truncated",
        unit="%",
        better=-1,
        of=_figure_in_percent("truncated"),
        meaning="replies that used up their token budget",
    ),
    Measure(
        name="well_formed",
        label="well formed",
        unit="%",
        better=1,
        of=_figure_in_percent("well_formed"),
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

TOKEN_DISTANCE = "distance"
DISTANCE_LABEL = "audio tokens, from base"
DISTANCE_MEANING = (
    "Jensen-Shannon divergence, in bits, between the histograms of the audio tokens of all test replies, "
    "this policy's against the base's: 0 when every token has the same share, 1 when none is in common, less "
    "what histograms of so few tokens are apart by chance (below 0: no drift to be seen). It sees which "
    "tokens are used and how often, not their order; other words also move it: drift, not a fault"
)
