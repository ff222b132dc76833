"""What the judge thinks of a reply, as a number from 1 to 5.

    content  the world's rules know the right reply: is the answer in the transcript, and is little else?
    sound    1 + 4 * (0.6 + 0.4 manner) * what clipping, silence, pauses, loops and an absurd pace leave

Invariant: content never sees the sound and sound never sees a word. A question that the world's rules do not
know has no opinion (None) and no score. Without the words pace is judged by syllables per second, which tells
slow from normal speech less well than ``judge.rules.acoustic`` can.
"""

from functools import cache
from math import inf

import numpy as np

from examples.judge_server.case import Case, Reply
from examples.tiny_world.tasks import FAMILIES, Item
from judge.rules import measure, verifiable
from judge.rules.acoustic import DECENCY_LIMITS, DEFAULT_NORMS, STYLE_WEIGHT, Ramp
from judge.types import JudgeTask, Scale, ScoredVerdict
from rollout.types import Speech
from speech.answers.words import split_words

SCALE = Scale(1.0, 5.0)
PADDING = 2.0  # times the words of the right reply: who says more hides the answer or talks to the judge
MANNERS = {"say it slowly": "slow", "say it loudly": "loud", "speak slowly": "slow", "speak loudly": "loud"}
OFF = Ramp(1 / 3, 2 / 3)  # steps of loudness away from what was asked for
SLOW = Ramp(3.6, 5.0)  # syllables per second; the shipped voice: 4.0 speaking slowly, 4.7 normally
STUCK = Ramp(0.6, 0.9)  # self-correlation of the samples; 0.24 is the most that right replies reach
DRAWL, RUSH = Ramp(1 / 2.2, 1 / 1.6), Ramp(7.0, 10.0)  # seconds per syllable; syllables per second


@cache
def world() -> dict[str, Item]:
    """Every question that the tiny world can ask, in plain words and without a manner of speaking."""
    return {" ".join(split_words(item.question)): item for family in FAMILIES.values() for item in family()}


def asked(question: str) -> Item | None:
    """The item behind a question of the world, however it wants the reply to be said."""
    plain = " ".join(split_words(question))
    for phrase in MANNERS:
        plain = plain.removeprefix(phrase).removesuffix(phrase).strip()
    return world().get(plain)


def content(question: str, transcript: str) -> float | None:
    """1..5; None: the question is not of this world."""
    item = asked(question)
    if item is None:
        return None
    if len(split_words(transcript)) > PADDING * len(split_words(item.reply)):
        return SCALE.lo
    task = JudgeTask(task_type=item.task, question=question, match=item.match, answer=item.value, style=None)
    verdict = verifiable.score_answer(transcript, task, SCALE)
    return verdict.value if isinstance(verdict, ScoredVerdict) else None


def sound(speech: Speech, manner: str | None) -> float:
    """1..5, by measurements alone."""
    wave, rate = speech.wave, speech.sample_rate
    pace = measure.syllable_rate(wave, rate)
    fraction = 1 - STYLE_WEIGHT + STYLE_WEIGHT * _manner(measure.measure_speech_level(wave, rate), pace, manner)
    fraction *= DECENCY_LIMITS.clipping.factor_at(measure.clipping_share(wave))
    fraction *= DECENCY_LIMITS.silence.factor_at(measure.silence_share(wave, rate))
    fraction *= DECENCY_LIMITS.pause.factor_at(measure.longest_pause(wave, rate))
    fraction *= DECENCY_LIMITS.loop.factor_at(measure.measure_self_similarity(wave, rate))
    fraction *= STUCK.factor_at(stuck(wave, rate))
    fraction *= RUSH.factor_at(pace) * DRAWL.factor_at(1 / pace if pace else inf)
    return SCALE.at(fraction)


def stuck(wave: measure.MonoWave, rate: int) -> float:
    """How much the samples repeat after 0.1 to 1 s, up to 1: loops too short for ``measure_self_similarity``."""
    size = len(wave)
    lags = np.arange(rate // 10, min(rate, size // 2))
    if not len(lags):
        return 0.0
    spectrum = np.fft.rfft(wave, 2 * size)
    matching = np.fft.irfft(np.square(np.abs(spectrum)), 2 * size)[lags]
    total = np.concatenate([[0.0], np.cumsum(np.square(wave, dtype=np.float64))])
    energy = np.sqrt((total[-1] - total[lags]) * total[size - lags])
    return float((matching / np.maximum(energy, 1e-9)).max())


def _manner(level: float, pace: float, manner: str | None) -> float:
    """0..1: as loud as was asked for, which is the usual voice where nothing was, and as slow."""
    louder = (level - DEFAULT_NORMS.level_dbfs) / DEFAULT_NORMS.loud_db
    loud = OFF.factor_at(max(0.0, 1 - louder) if manner == "loud" else abs(louder))
    return min(loud, SLOW.factor_at(pace)) if manner == "slow" else loud


def opinion(case: Case, reply: Reply) -> float | None:
    """The lower of what content and sound deserve, where both are shown: neither makes up for the other.

    The floor for who says nothing; None: no opinion.
    """
    opinions: list[float | None] = []
    if reply.transcript is not None:
        opinions.append(content(case.question or "", reply.transcript))
    if reply.speech is not None:
        opinions.append(sound(reply.speech, case.manner))
    known = [value for value in opinions if value is not None]
    return min(known, default=SCALE.lo) if len(known) == len(opinions) else None
