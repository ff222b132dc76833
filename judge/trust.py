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
    ROUNDING,
    Agreement,
    Estimate,
    Item,
    Raters,
    Retest,
    agreement,
    raters,
    repeat_variance,
    retest,
)
from judge.calibration import Kind, Map, fitted
from judge.panel import FLOOR
from judge.types import Judged, Missing, Scale, Scored, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """One axis. ``retest``, ``variance`` (of one reading) None: there was no second pass.

    ``judge`` None: it gave no score at all. ``curve`` None: ``no_map`` says why.
    """

    axis: str
    judge: str | None
    repeats: int
    point: float
    agreement: Agreement
    raters: Raters
    variance: float | None
    retest: Retest | None
    missing: Mapping[str, int]
    by_rule: int
    curve: Map | None
    no_map: str


def trust(
    axis: str,
    ratings: Mapping[str, Sequence[float]],
    first: Mapping[str, Judged],
    second: Mapping[str, Judged] | None,
    *,
    scale: Scale,
    repeats: int,
    kind: Kind | None,
    maps: bool,
) -> Trust:
    """Hold one axis against its ratings (id -> raters); ``first``, ``second``: passes, by id.

    ``maps`` False: nobody could use a map of this judge.
    """
    verdicts = {name: first[name].axes[axis] for name in ratings}
    scores = {name: one for name, one in verdicts.items() if isinstance(one, Scored)}
    judge = _judge(scores.values())
    ours = {name: one for name, one in scores.items() if one.judge == judge}
    items = [
        Item(prompt_id=first[name].prompt_id, judge=one.value, human=fmean(ratings[name]))
        for name, one in ours.items()
    ]
    point = scale.point
    pairs = [] if second is None else _pairs(ours, second, axis)
    curve, no_map = _map(items, judge, scale, kind) if maps else (None, "only an API judge's scores are mapped")
    return Trust(
        axis=axis,
        judge=judge,
        repeats=repeats,
        point=point,
        agreement=agreement(items, point),
        raters=raters(list(ratings.values())),
        variance=repeat_variance([(a.value, a.spread, b.value, b.spread) for a, b in pairs], repeats),
        retest=None if second is None else retest([a.value for a, _ in pairs], [b.value for _, b in pairs]),
        missing=Counter(one.kind for one in verdicts.values() if isinstance(one, Missing)),
        by_rule=len(scores) - len(ours),
        curve=curve,
        no_map=no_map,
    )


def _judge(scores: Iterable[Scored]) -> str | None:
    """Whose scores these are; a rule that stepped in now and then is not it."""
    names = Counter(one.judge for one in scores if one.judge != FLOOR)
    return names.most_common(1)[0][0] if names else None


def _pairs(ours: Mapping[str, Scored], second: Mapping[str, Judged], axis: str) -> list[tuple[Scored, Scored]]:
    again: dict[str, Verdict] = {name: judged.axes[axis] for name, judged in second.items()}
    found = [(one, again[name]) for name, one in ours.items() if name in again]
    return [(a, b) for a, b in found if isinstance(b, Scored) and b.judge == a.judge]


def _map(items: Sequence[Item], judge: str | None, scale: Scale, kind: Kind | None) -> tuple[Map | None, str]:
    if judge is None:
        return None, "the judge gave no score"
    try:
        found = fitted(items, judge, scale, kind)
    except ValueError as error:
        return None, str(error)
    if found.mae_before - found.mae_after > ROUNDING:
        return found, ""
    figures = f"{found.mae_before:.2f} -> {found.mae_after:.2f}"
    return None, f"{found.curve.kind} would not help: mean absolute error {figures} on prompts left out"


def lines(found: Trust) -> list[str]:
    """The figures for people, a line each."""
    a, told = found.agreement, f"{found.axis}: {found.judge or 'no score'}"
    unranked = f"; {a.unranked} left out, one side all alike" if a.unranked else ""
    shown = {
        "Pearson": _estimate(a.pearson),
        "Spearman within a prompt": f"{_estimate(a.spearman)}  mean of {a.ranked} prompts{unranked}",
        "mean absolute error": _plain(a.mae),
        "bias (judge - people)": "-" if a.bias is None else f"{a.bias:+.2f}",
        f"within {found.point:g} point": _share(a.within_one),
        "repeat variance": _noise(found),
        "test-retest": _again(found.retest),
    }
    if found.raters.items:
        r = found.raters
        apart = f"mean difference {_plain(r.difference)}, ICC(1) {_plain(r.icc)}"
        shown["people among themselves"] = f"{apart}, {r.items} replies with 2 raters or more"
    if found.missing:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(found.missing.items()))
        shown["missing"] = f"{sum(found.missing.values())} left out ({kinds})"
    if found.by_rule:
        shown["by a local rule"] = f"{found.by_rule} left out"
    shown["map"] = _shown_map(found)
    head = f"{told}, {a.items} replies to {a.prompts} prompts"
    return [head, *(f"  {name:<26}{value}" for name, value in shown.items())]


def _noise(found: Trust) -> str:
    if found.variance is None:
        return "-"
    of_score = found.variance / found.repeats
    mean = f"the mean of {found.repeats} readings" if found.repeats > 1 else "one reading"
    gate = "the sigma_J^2 of the noise-corrected gate (algo.gate.denoise)"
    return f"{found.variance:.4f} of one reading (n - 1); of a score, {mean}, {of_score:.4f}: {gate}"


def _again(found: Retest | None) -> str:
    if found is None:
        return "- (a local rule gives the same score again)"
    return f"Pearson {_plain(found.pearson)}, mean difference {_plain(found.mae)}, {found.items} replies"


def _shown_map(found: Trust) -> str:
    if found.curve is None:
        return f"none: {found.no_map}"
    curve = found.curve.curve
    what = (
        f"{curve.slope:.3f} * score {curve.intercept:+.3f}" if curve.kind == "affine" else f"{len(curve.knots)} knots"
    )
    figures = f"{found.curve.mae_before:.2f} -> {found.curve.mae_after:.2f}"
    return f"{curve.kind}, {what}: mean absolute error {figures} on prompts left out of the fit"


def _estimate(found: Estimate) -> str:
    if found.interval is None:
        return _plain(found.value)
    low, high = found.interval
    return f"{_plain(found.value)}  [{low:.2f}, {high:.2f}]"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
