"""Noise put on local verdicts, to study what a noisy judge does to a method (``judge.noise``).

Invariant: the same reply of the same step gets the same noise in every run of a seed; what is not a score
(missing) or is no opinion (the floor, a veto) stays as it is.
"""

from dataclasses import replace
from math import fsum, hypot, sqrt
from statistics import fmean, pstdev

import numpy as np

from conf.judging import JudgeConfig
from judge.panel import FLOOR_JUDGE, combine_axes
from judge.rules import vetoes
from judge.types import ReplyJudgement, Scale, ScoredVerdict, Verdict


def add_judge_noise(judged: ReplyJudgement, config: JudgeConfig, seed: int) -> ReplyJudgement:
    """What judges would have said whose reward errs by ``config.noise`` points, before it is cut off.

    Every axis errs alike, and each of ``config.readings`` readings so much that the mean of them, weighed
    together, errs by that. Score and spread are mean and population deviation of the readings, each cut off
    at the scale's ends.
    """
    place = [int(byte) for byte in f"{judged.prompt_id}/{judged.index}".encode()]
    rng = np.random.default_rng([seed, *place])
    scale = Scale(config.scale_lo, config.scale_hi)
    weights = [weight for weight in config.weights.values() if weight > 0]
    each = config.noise * sqrt(config.readings) * fsum(weights) / hypot(*weights)
    axes = {axis: _add_noise(verdict, each, config, scale, rng) for axis, verdict in judged.axes.items()}
    return replace(judged, axes=axes, reward=vetoes.find_veto(judged) or combine_axes(axes, config.weights))


def _add_noise(verdict: Verdict, noise: float, config: JudgeConfig, scale: Scale, rng: np.random.Generator) -> Verdict:
    readings = rng.normal(0.0, noise, config.readings)  # drawn whatever the verdict is
    if not isinstance(verdict, ScoredVerdict) or verdict.judge == FLOOR_JUDGE:
        return verdict
    values = [min(max(verdict.value + off, scale.lo), scale.hi) for off in readings.tolist()]
    judge = f"{verdict.judge}+noise({config.noise:g})"
    return replace(verdict, value=fmean(values), spread=pstdev(values), judge=judge)
