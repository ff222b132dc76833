"""The acoustic axis: was it understood, was it said in the manner asked for, and is it decent audio?

    score = scale.at(intelligibility * (1 - w + w * manner) * product of decency factors)

``intelligibility`` = 1 - WER of the reply's own words in what an independent recogniser heard. ``rate_manner``
only counts for words that were understood: noise played loudly is not loud speech. Decency factors (clipping,
silence, loops, absurd pace) are 1 for ordinary speech and only take away: measurements of this kind are
easily pleased, so none of them can earn anything. The reply's text is a yardstick here, not an argument:
nobody who could be talked round is asked for an opinion.
"""

from dataclasses import dataclass
from math import log

from judge.recognisers.pocketsphinx import word_error_rate
from judge.rules import measure
from judge.rules.voice import TINY_VOICE_NORMS, SpeechNorms
from judge.types import JudgeTask, Scale, ScoredVerdict
from rollout.types import Speech
from speech.answers.words import split_spoken_words

ACOUSTIC_JUDGE = "acoustic/1"


@dataclass(frozen=True, slots=True)
class Ramp:
    """A factor that is 1 up to ``start``, 0 from ``end`` on, linear between."""

    start: float
    end: float

    def factor_at(self, x: float) -> float:
        """In [0, 1]."""
        return min(1.0, max(0.0, (self.end - x) / (self.end - self.start)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecencyLimits:
    """What ordinary speech stays clear of, and where it stops being acceptable."""

    clipping: Ramp = Ramp(0.002, 0.02)  # share of samples
    silence: Ramp = Ramp(0.5, 0.85)  # share of the time
    pause: Ramp = Ramp(1.0, 2.5)  # seconds
    loop: Ramp = Ramp(0.8, 0.95)  # self-correlation; 0.72 is the most that right replies reach
    drawl: Ramp = Ramp(2.2, 4.0)  # duration / expected
    rush: Ramp = Ramp(2.0, 4.0)  # expected / duration


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundMeasurements:
    """Everything measured on one reply."""

    seconds: float
    pace: float  # duration / expected duration of the text; 1 = normal, above = slower
    words_per_second: float
    syllables_per_second: float  # nuclei per second of speech
    level_dbfs: float  # of the speech, without its pauses
    silence: float  # share of the time, 0..1
    pause: float  # seconds, the longest
    clipping: float  # share of samples, 0..1
    loop: float  # self-correlation, 0..1


STYLE_WEIGHT = 0.4  # w: how much of an intelligible reply's score its manner decides
DEFAULT_NORMS = TINY_VOICE_NORMS
DECENCY_LIMITS = DecencyLimits()


def measure_sound(speech: Speech, text: str, norms: SpeechNorms = DEFAULT_NORMS) -> SoundMeasurements:
    """Measure a finite, non-empty wave that should say ``text``. ValueError: the text has no words."""
    wave, rate = speech.wave, speech.sample_rate
    return SoundMeasurements(
        seconds=speech.seconds,
        pace=speech.seconds / norms.seconds(text),
        words_per_second=len(split_spoken_words(text)) / speech.seconds,
        syllables_per_second=measure.syllable_rate(wave, rate),
        level_dbfs=measure.measure_speech_level(wave, rate),
        silence=measure.silence_share(wave, rate),
        pause=measure.longest_pause(wave, rate),
        clipping=measure.clipping_share(wave),
        loop=measure.measure_self_similarity(wave, rate),
    )


def rate_manner(sound: SoundMeasurements, style: str | None, norms: SpeechNorms = DEFAULT_NORMS) -> float:
    """How well the style was followed, 0..1, the worse of pace and level. No style means normal, both ways.

    One step is the way from normal to the style: full marks within a third of a step of the target, none from
    two thirds on. More than was asked for is no fault here; ``DecencyLimits`` ends it where it is absurd. Fast and
    quiet have twice the room: there is no style on that side to be mistaken for.
    """
    if style not in (None, "slow", "loud"):
        raise ValueError(f"style must be slow, loud or none: got {style!r}")
    slower = log(sound.pace) / log(norms.slow_ratio)
    louder = (sound.level_dbfs - norms.level_dbfs) / norms.loud_db
    off_pace = max(0.0, 1.0 - slower) if style == "slow" else max(slower, -slower / 2)
    off_level = max(0.0, 1.0 - louder) if style == "loud" else max(louder, -louder / 2)
    return Ramp(1 / 3, 2 / 3).factor_at(max(off_pace, off_level))


def is_style_followed(sound: SoundMeasurements, style: str | None, norms: SpeechNorms = DEFAULT_NORMS) -> bool:
    """Closer to the style asked for than to any other."""
    return rate_manner(sound, style, norms) > 0.5


def find_decency_factors(sound: SoundMeasurements, limits: DecencyLimits = DECENCY_LIMITS) -> dict[str, float]:
    """The factors below 1, by name."""
    factors = {
        "clipping": limits.clipping.factor_at(sound.clipping),
        "silence": limits.silence.factor_at(sound.silence),
        "pause": limits.pause.factor_at(sound.pause),
        "loop": limits.loop.factor_at(sound.loop),
        "drawl": limits.drawl.factor_at(sound.pace),
        "rush": limits.rush.factor_at(1.0 / sound.pace),
    }
    return {name: factor for name, factor in factors.items() if factor < 1.0}


def score_acoustics(
    sound: SoundMeasurements,
    text: str,
    transcript: str,
    task: JudgeTask,
    scale: Scale,
    norms: SpeechNorms = DEFAULT_NORMS,
) -> ScoredVerdict:
    """Put what was measured and heard onto the scale."""
    understood = max(0.0, 1.0 - word_error_rate(text, transcript))
    followed = rate_manner(sound, task.style, norms)
    fraction = understood * (1.0 - STYLE_WEIGHT + STYLE_WEIGHT * followed)
    faults = find_decency_factors(sound)
    for factor in faults.values():
        fraction *= factor
    why = f"understood {understood:.2f}, {task.style or 'normal'} manner {followed:.2f}"
    why += "".join(f", {name} {factor:.2f}" for name, factor in faults.items())
    return ScoredVerdict(value=scale.at(fraction), judge=ACOUSTIC_JUDGE, why=why)
