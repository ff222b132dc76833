"""What is known about a judge once people have rated the same replies: figures per axis, and a map.

Invariant: a missing verdict is no item and is counted with its kind; so is a score that a local rule gave in
the judge's place (the floor). A map is kept only when it brings the judge closer to people on prompts that it
was not fitted on.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from judge.agreement import (
    SCORE_TOLERANCE,
    Agreement,
    AgreementEstimate,
    RatedReply,
    RaterAgreement,
    RetestAgreement,
    compare_passes,
    estimate_repeat_variance,
    measure_agreement,
    measure_rater_agreement,
)
from judge.llm.calibration import CalibrationMap, CurveKind, fit_calibration
from judge.panel import FLOOR_JUDGE
from judge.types import MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReliability:
    """One axis. ``retest``, ``variance`` (of one reading) None: there was no second pass.

    ``judge`` None: it gave no score at all. ``curve`` None: ``no_map`` says why.
    """

    axis: str
    judge: str | None
    repeats: int
    point: float
    agreement: Agreement
    raters: RaterAgreement
    variance: float | None
    retest: RetestAgreement | None
    missing: Mapping[str, int]
    by_rule: int
    curve: CalibrationMap | None
    no_map: str


def assess_reliability(
    axis: str,
    ratings: Mapping[str, Sequence[float]],
    first: Mapping[str, ReplyJudgement],
    second: Mapping[str, ReplyJudgement] | None,
    *,
    scale: Scale,
    repeats: int,
    kind: CurveKind | None,
    maps: bool,
) -> JudgeReliability:
    """Hold one axis against its ratings (id -> raters); ``first``, ``second``: passes, by id.

    ``maps`` False: nobody could use a map of this judge.
    """
    verdicts = {name: first[name].axes[axis] for name in ratings}
    scores = {name: verdict for name, verdict in verdicts.items() if isinstance(verdict, ScoredVerdict)}
    judge = _find_main_judge(scores.values())
    own_verdicts = {name: verdict for name, verdict in scores.items() if verdict.judge == judge}
    items = [
        RatedReply(prompt_id=first[name].prompt_id, judge=verdict.value, human=fmean(ratings[name]))
        for name, verdict in own_verdicts.items()
    ]
    point = scale.point
    pairs = [] if second is None else _pair_passes(own_verdicts, second, axis)
    curve, no_map = (
        _fit_helpful_map(items, judge, scale, kind) if maps else (None, "only an API judge's scores are mapped")
    )
    return JudgeReliability(
        axis=axis,
        judge=judge,
        repeats=repeats,
        point=point,
        agreement=measure_agreement(items, point),
        raters=measure_rater_agreement(list(ratings.values())),
        variance=estimate_repeat_variance([(a.value, a.spread, b.value, b.spread) for a, b in pairs], repeats),
        retest=None if second is None else compare_passes([a.value for a, _ in pairs], [b.value for _, b in pairs]),
        missing=Counter(verdict.kind for verdict in verdicts.values() if isinstance(verdict, MissingVerdict)),
        by_rule=len(scores) - len(own_verdicts),
        curve=curve,
        no_map=no_map,
    )


def _find_main_judge(scores: Iterable[ScoredVerdict]) -> str | None:
    """Whose scores these are; a rule that stepped in now and then is not it."""
    names = Counter(score.judge for score in scores if score.judge != FLOOR_JUDGE)
    return names.most_common(1)[0][0] if names else None


def _pair_passes(
    first: Mapping[str, ScoredVerdict], second: Mapping[str, ReplyJudgement], axis: str
) -> list[tuple[ScoredVerdict, ScoredVerdict]]:
    again: dict[str, Verdict] = {name: judged.axes[axis] for name, judged in second.items()}
    paired_verdicts = [(first_score, again[name]) for name, first_score in first.items() if name in again]
    return [(a, b) for a, b in paired_verdicts if isinstance(b, ScoredVerdict) and b.judge == a.judge]


def _fit_helpful_map(
    items: Sequence[RatedReply], judge: str | None, scale: Scale, kind: CurveKind | None
) -> tuple[CalibrationMap | None, str]:
    if judge is None:
        return None, "the judge gave no score"
    try:
        axis_map = fit_calibration(items, judge, scale, kind)
    except ValueError as error:
        return None, str(error)
    if axis_map.mae_before - axis_map.mae_after > SCORE_TOLERANCE:
        return axis_map, ""
    figures = f"{axis_map.mae_before:.2f} -> {axis_map.mae_after:.2f}"
    return None, f"{axis_map.curve.kind} would not help: mean absolute error {figures} on prompts left out"


def format_reliability(reliability: JudgeReliability) -> list[str]:
    """The figures for people, a line each."""
    a, heading = reliability.agreement, f"{reliability.axis}: {reliability.judge or 'no score'}"
    unranked = f"; {a.unranked} left out, one side all alike" if a.unranked else ""
    shown = {
        "Pearson": _format_estimate(a.pearson),
        "Spearman within a prompt": f"{_format_estimate(a.spearman)}  mean of {a.ranked} prompts{unranked}",
        "mean absolute error": _format_number(a.mae),
        "bias (judge - people)": "-" if a.bias is None else f"{a.bias:+.2f}",
        f"within {reliability.point:g} point": _format_share(a.within_one),
        "repeat variance": _format_noise(reliability),
        "test-retest": _format_retest(reliability.retest),
    }
    if reliability.raters.items:
        r = reliability.raters
        apart = f"mean difference {_format_number(r.difference)}, ICC(1) {_format_number(r.icc)}"
        shown["people among themselves"] = f"{apart}, {r.items} replies with 2 raters or more"
    if reliability.missing:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(reliability.missing.items()))
        shown["missing"] = f"{sum(reliability.missing.values())} left out ({kinds})"
    if reliability.by_rule:
        shown["by a local rule"] = f"{reliability.by_rule} left out"
    shown["map"] = _format_map(reliability)
    head = f"{heading}, {a.items} replies to {a.prompts} prompts"
    return [head, *(f"  {name:<26}{value}" for name, value in shown.items())]


def _format_noise(reliability: JudgeReliability) -> str:
    if reliability.variance is None:
        return "-"
    of_score = reliability.variance / reliability.repeats
    mean = f"the mean of {reliability.repeats} readings" if reliability.repeats > 1 else "one reading"
    gate = "the sigma_J^2 of the noise-corrected gate (algo.gate.denoise)"
    return f"{reliability.variance:.4f} of one reading (n - 1); of a score, {mean}, {of_score:.4f}: {gate}"


def _format_retest(retest_agreement: RetestAgreement | None) -> str:
    if retest_agreement is None:
        return "- (a local rule gives the same score again)"
    pearson, difference = _format_number(retest_agreement.pearson), _format_number(retest_agreement.mae)
    return f"Pearson {pearson}, mean difference {difference}, {retest_agreement.items} replies"


def _format_map(reliability: JudgeReliability) -> str:
    if reliability.curve is None:
        return f"none: {reliability.no_map}"
    curve = reliability.curve.curve
    what = (
        f"{curve.slope:.3f} * score {curve.intercept:+.3f}" if curve.kind == "affine" else f"{len(curve.knots)} knots"
    )
    figures = f"{reliability.curve.mae_before:.2f} -> {reliability.curve.mae_after:.2f}"
    return f"{curve.kind}, {what}: mean absolute error {figures} on prompts left out of the fit"


def _format_estimate(estimate: AgreementEstimate) -> str:
    if estimate.interval is None:
        return _format_number(estimate.value)
    low, high = estimate.interval
    return f"{_format_number(estimate.value)}  [{low:.2f}, {high:.2f}]"


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _format_share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
