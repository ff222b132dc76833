"""Vetoes: a measured figure out of its bounds makes the reward the scale's floor, whatever the axes say.

    any rule broken                          Scored(floor)   even where an axis or another figure is missing
    none broken, a figure could not be had   Missing         nobody knows whether the veto holds
    none broken                              None            the axes decide

Invariant: a veto only ever takes away. The figures that it looks at (loops, clipping, predictors of quality
or likeness) are easily pleased, so none of them adds to a reward. The axes keep their scores, for diagnosis.
"""

from collections.abc import Mapping, Sequence

from conf.judging import VetoConfig
from judge.types import CallFailed, MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict

VETO_JUDGE = "veto/1"


def find_broken_rules(figures: Mapping[str, float], rules: Sequence[VetoConfig]) -> list[str]:
    """Which rules the figures break; a figure that is not there breaks none.

    Example:
        find_broken_rules({"loop": 0.97}, [VetoConfig(measure="loop", most=0.9)])
        # ["loop must be at most 0.9: got 0.97"]
    """
    broken = []
    for rule in rules:
        figure = figures.get(rule.measure)
        if figure is None:
            continue
        if rule.least is not None and figure < rule.least:
            broken.append(f"{rule.measure} must be at least {rule.least:g}: got {figure:.4g}")
        if rule.most is not None and figure > rule.most:
            broken.append(f"{rule.measure} must be at most {rule.most:g}: got {figure:.4g}")
    return broken


def judge_by_vetoes(
    figures: Mapping[str, float],
    failures: Mapping[str, CallFailed],
    rules: Sequence[VetoConfig],
    scale: Scale,
) -> Verdict | None:
    """What the rules make of the reward; None: nothing. ``failures``: why a figure could not be had."""
    broken = find_broken_rules(figures, rules)
    if broken:
        return ScoredVerdict(value=scale.lo, judge=VETO_JUDGE, why="; ".join(broken))
    for name in dict.fromkeys(rule.measure for rule in rules if rule.measure not in figures):
        failed = failures[name]
        reason = f"plugin {name}: {failed.reason}"
        return MissingVerdict(judge=VETO_JUDGE, reason=reason, kind=failed.kind, retryable=failed.retryable)
    return None


def find_veto(judged: ReplyJudgement) -> Verdict | None:
    """The reward of a judged reply where the vetoes made it; None where the axes did."""
    return judged.reward if judged.reward.judge == VETO_JUDGE else None
