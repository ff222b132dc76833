"""Methods held against a baseline: every measure with its interval, its difference, its wins and losses.

    Field (one arm: the same judge and prompts for all)
      side "base"    seed -> replies before training
      side "gated"   seed -> replies after it
      ...
    compare_methods(arm, sides, "gated", bootstrap) -> one StudyRow per side and measure

Pairs are the same prompt and the same seed on both sides. Sides that have no seed in common are paired in the
order of their seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from conf.study import BASE_METHOD, BootstrapConfig
from report.study import paired
from report.study.measures import DISTANCE_LABEL, HELD_OUT_MEASURES, TOKEN_DISTANCE, Measure, MeasureUnit
from report.study.paired import FigureArray, IntervalEstimate, SignCounts
from report.study.trials import TestReplies, Trial

RepliesBySeed = Mapping[int, TestReplies]  # seed -> replies to the same prompts, in the same order


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEntry:
    """A finished run in its place."""

    arm: str
    method: str
    trial: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One measure of one method. ``difference`` and ``signs``: against the baseline; None where undefined."""

    arm: str
    method: str
    measure: str
    label: str
    unit: MeasureUnit
    better: int
    mean: IntervalEstimate
    by_seed: Mapping[int, float | None]
    gaps: Sequence[float | None]  # difference in each pair of seeds
    difference: IntervalEstimate | None
    signs: SignCounts | None
    prompts: int  # that have the figure
    seeds: int

    @property
    def decided(self) -> int:
        """The sign of the difference where its interval leaves 0 out and every seed has that sign, else 0."""
        sign = self.difference.decided if self.difference else 0
        alike = all(gap is not None and gap * sign > 0 for gap in self.gaps)
        return sign if alike else 0


def collect_sides(entries: Sequence[TrialEntry], arm: str, baseline: str) -> Mapping[str, RepliesBySeed]:
    """The sides of an arm, the base first: it is what the baseline's runs began with, or else any run's."""
    replies_by_method: dict[str, dict[int, TestReplies]] = {}
    before: dict[int, TestReplies] = {}
    for entry in sorted((entry for entry in entries if entry.arm == arm), key=lambda entry: entry.method == baseline):
        replies_by_method.setdefault(entry.method, {})[entry.trial.seed] = entry.trial.after
        before[entry.trial.seed] = entry.trial.before
    order = dict.fromkeys(entry.method for entry in entries if entry.arm == arm)
    own = set(replies_by_method.get(baseline, before))
    base = {seed: replies for seed, replies in sorted(before.items()) if seed in own}
    return {BASE_METHOD: base} | {method: dict(sorted(replies_by_method[method].items())) for method in order}


def compare_methods(
    arm: str, field: Mapping[str, RepliesBySeed], baseline: str, bootstrap: BootstrapConfig
) -> Iterator[StudyRow]:
    """Side by side, measure by measure; last the distance of the audio tokens from the base's."""
    distances = _TokenDistances(field, bootstrap)
    for method, side in field.items():
        for measure in HELD_OUT_MEASURES:
            yield _compare_measure(arm, method, measure, side, field.get(baseline), method == baseline, bootstrap)
        yield distances.compare_distance(arm, method, baseline)


def pair_seeds(side: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Seeds to be held against each other."""
    common = sorted(set(side) & set(other))
    return [(seed, seed) for seed in common] or list(zip(sorted(side), sorted(other), strict=False))


def tabulate_values(side: RepliesBySeed, seeds: Sequence[int], measure: Measure) -> FigureArray:
    """[S, P]; NaN where a reply has no such figure."""
    table = [[measure.of(reply) for reply in side[seed]] for seed in seeds]
    return np.array([[np.nan if value is None else value for value in row] for row in table], np.float64)


def _compare_measure(
    arm: str,
    method: str,
    measure: Measure,
    side: RepliesBySeed,
    baseline: RepliesBySeed | None,
    itself: bool,
    bootstrap: BootstrapConfig,
) -> StudyRow:
    ours_SP = tabulate_values(side, list(side), measure)
    whole, prompts = 100.0 if measure.unit == "%" else None, _count_prompts(ours_SP)
    difference = signs = None
    gaps: list[float | None] = []
    if baseline is not None and not itself:
        left, right = zip(*pair_seeds(list(side), list(baseline)), strict=True)
        one_SP, other_SP = tabulate_values(side, left, measure), tabulate_values(baseline, right, measure)
        shared_prompts = _count_prompts(one_SP - other_SP)
        difference = paired.estimate_difference(one_SP, other_SP, bootstrap)
        difference = paired.replace_zero_width_interval(difference, shared_prompts, whole, bootstrap, signed=True)
        signs = paired.count_signs(one_SP, other_SP, measure.better) if measure.better else None
        gaps = [_mean_of_known(row) for row in one_SP - other_SP]
    return StudyRow(
        arm=arm,
        method=method,
        measure=measure.name,
        label=measure.label,
        unit=measure.unit,
        better=measure.better,
        mean=paired.replace_zero_width_interval(paired.estimate_mean(ours_SP, bootstrap), prompts, whole, bootstrap),
        by_seed={seed: _mean_of_known(row) for seed, row in zip(side, ours_SP, strict=True)},
        gaps=gaps,
        difference=difference if difference and difference.value is not None else None,
        signs=signs,
        prompts=prompts,
        seeds=len(side),
    )


def _count_prompts(values_SP: FigureArray) -> int:
    """How many prompts have a value."""
    return int((~np.isnan(values_SP)).any(axis=0).sum())


def _mean_of_known(row: FigureArray) -> float | None:
    known = row[~np.isnan(row)]
    return float(known.mean()) if known.size else None


class _TokenDistances:
    """Divergences of the sides of one arm from its base; those of the baseline are needed for every other."""

    def __init__(self, field: Mapping[str, RepliesBySeed], bootstrap: BootstrapConfig) -> None:
        self._field, self._bootstrap = field, bootstrap
        kinds = sorted(
            {code for side in field.values() for replies in side.values() for r in replies for code in r.codes}
        )
        self._place = {code: place for place, code in enumerate(kinds)}
        self._distances_by_method: dict[str, tuple[list[int], FigureArray, FigureArray]] = {}
        base = field[BASE_METHOD]
        self._base = {seed: self._counts(replies) for seed, replies in base.items()}

    def _counts(self, replies: TestReplies) -> FigureArray:
        """How often each kind of token is in each reply; shape [P, V]."""
        found_PV = np.zeros((len(replies), len(self._place)))
        for row, reply in zip(found_PV, replies, strict=True):
            np.add.at(row, [self._place[code] for code in reply.codes], 1.0)
        return found_PV

    def _distances_of_method(self, method: str) -> tuple[list[int], FigureArray, FigureArray]:
        """Seeds, divergence of each, and of each in every draw."""
        if method not in self._distances_by_method:
            side = self._field[method]
            matched = pair_seeds(list(side), list(self._base))
            ours_SPV = np.stack([self._counts(side[seed]) for seed, _ in matched])
            base_SPV = np.stack([self._base[seed] for _, seed in matched])
            self._distances_by_method[method] = (
                [seed for seed, _ in matched],
                paired.compute_token_distances(ours_SPV, base_SPV),
                paired.bootstrap_token_distances(ours_SPV, base_SPV, self._bootstrap),
            )
        return self._distances_by_method[method]

    def compare_distance(self, arm: str, method: str, baseline: str) -> StudyRow:
        """The measure that is no mean over prompts: it has no wins and losses."""
        seeds, found_S, drawn_BS = self._distances_of_method(method)
        prompts = len(next(iter(self._field[method].values())))
        difference = None
        gaps_S = np.empty(0)
        if method != baseline and baseline in self._field:
            others, theirs_S, theirs_BS = self._distances_of_method(baseline)
            left, right = zip(*pair_seeds(seeds, others), strict=True)
            left_indices, right_indices = [seeds.index(seed) for seed in left], [others.index(seed) for seed in right]
            gap_S, gap_BS = (
                found_S[left_indices] - theirs_S[right_indices],
                drawn_BS[:, left_indices] - theirs_BS[:, right_indices],
            )
            difference = paired.estimate_mean_distance(gap_S, gap_BS, prompts, self._bootstrap)
            gaps_S = paired.remove_bias(gap_S, gap_BS)
        return StudyRow(
            arm=arm,
            method=method,
            measure=TOKEN_DISTANCE,
            label=DISTANCE_LABEL,
            unit="bits",
            better=0,
            mean=paired.estimate_mean_distance(found_S, drawn_BS, prompts, self._bootstrap),
            by_seed={
                seed: _mean_of_known(seed_value)
                for seed, seed_value in zip(seeds, paired.remove_bias(found_S, drawn_BS)[:, None], strict=True)
            },
            gaps=[_mean_of_known(seed_value) for seed_value in gaps_S[:, None]],
            difference=difference if difference and difference.value is not None else None,
            signs=None,
            prompts=prompts,
            seeds=len(seeds),
        )
