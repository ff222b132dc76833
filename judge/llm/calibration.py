"""A map from a judge's scores to people's ratings, fitted once and bound to exactly that judge.

    affine     human = slope * score + intercept, least squares
    isotonic   never falling, by pooling adjacent violators: one knot per pool, straight lines between, flat
               outside

Invariant: a map applies to one judge name (model, rubric and version, way of answering) on one scale, and to
nothing else: scores of another version mean something else. Every map rises: it keeps or joins, but never
swaps, the order of two scores. Only a map that helps on prompts it was not fitted on is worth writing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy.optimize import isotonic_regression

from judge.agreement import RatedReply
from judge.types import Scale, ScoredVerdict
from store.files import write_atomically

MAX_CALIBRATION_BYTES = 1 << 20
MIN_ISOTONIC_ITEMS = 30  # items below which two numbers are all that can be learnt
CALIBRATED_SUFFIX = "+calibrated"

CurveKind = Literal["affine", "isotonic"]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class _StrictRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AffineCurve(_StrictRecord):
    """A rising straight line."""

    kind: Literal["affine"]
    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    intercept: FiniteFloat

    def at(self, score: float) -> float:
        """The rating that people would give."""
        return self.slope * score + self.intercept


class IsotonicCurve(_StrictRecord):
    """Straight lines between knots (score, rating), flat outside."""

    kind: Literal["isotonic"]
    knots: Annotated[tuple[tuple[FiniteFloat, FiniteFloat], ...], Field(min_length=2, max_length=10_000)]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for (x, y), (further, higher) in pairwise(self.knots):
            if not (x < further and y < higher):
                raise ValueError(f"knots must rise: got {[x, y]} before {[further, higher]}")
        return self

    def at(self, score: float) -> float:
        """The rating that people would give."""
        xs, ys = zip(*self.knots, strict=True)
        return float(np.interp(score, xs, ys))


CalibrationCurve = AffineCurve | IsotonicCurve


class CalibrationMap(_StrictRecord):
    """What was fitted, for whom, and what it was worth on prompts that were left out of the fit."""

    judge: Annotated[str, Field(min_length=1, max_length=1000)]
    curve: Annotated[CalibrationCurve, Field(discriminator="kind")]
    scale: tuple[FiniteFloat, FiniteFloat]
    items: Annotated[int, Field(ge=2)]
    prompts: Annotated[int, Field(ge=2)]
    mae_before: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    mae_after: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def check_scale(self, scale: Scale) -> None:
        """ValueError: it was fitted on another scale."""
        if (scale.lo, scale.hi) != self.scale:
            raise ValueError(f"calibration is for the scale {list(self.scale)}: got [{scale.lo:g}, {scale.hi:g}]")

    def apply(self, scored: ScoredVerdict, scale: Scale) -> ScoredVerdict:
        """The score as people would have given it, within the scale.

        Its spread is what the map makes of value +- spread, halved: the map's slope over just that stretch.
        ValueError: another judge, or another scale.
        """
        if scored.judge != self.judge:
            raise ValueError(f"calibration is for {self.judge}: got a score of {scored.judge}")
        self.check_scale(scale)
        low, value, high = (
            clamp_to_scale(self.curve.at(scored.value + step * scored.spread), scale) for step in (-1, 0, 1)
        )
        return replace(scored, value=value, spread=(high - low) / 2, judge=scored.judge + CALIBRATED_SUFFIX)


class _CalibrationFile(_StrictRecord):
    format: Literal[1]
    maps: Annotated[dict[str, CalibrationMap], Field(min_length=1, max_length=16)]
    ratings_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class Calibrations:
    """The maps of one file."""

    path: Path
    maps: Mapping[str, CalibrationMap]  # by axis

    def map_for_axis(self, axis: str, judge: str, scale: Scale) -> CalibrationMap | None:
        """The map of an axis; None: nobody rated it or no map helped, its scores stay as they come.

        ValueError: the axis has a map, and it is another judge's or for another scale.
        """
        axis_map = self.maps.get(axis)
        if axis_map is not None and axis_map.judge != judge:
            rule = f"has no map for {judge}, only for {axis_map.judge}"
            raise ValueError(f"{self.path}: {rule}: run `wavgate judge calibrate` again")
        if axis_map is not None:
            axis_map.check_scale(scale)
        return axis_map


def load_calibrations(path: Path) -> Calibrations:
    """Read what ``save_calibrations`` wrote. ValueError: not there, or not a calibration, with every reason."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path}: a calibration must be a file, no folder and no pipe")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CALIBRATION_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: calibration cannot be read: {error.strerror}") from error
    if len(data) > MAX_CALIBRATION_BYTES:
        raise ValueError(f"{path}: a calibration has at most {MAX_CALIBRATION_BYTES} bytes")
    try:
        return Calibrations(path, _CalibrationFile.model_validate_json(data).maps)
    except ValidationError as error:
        raise ValueError(f"{path}: not a calibration: {_format_errors(error)}") from error


def _format_errors(error: ValidationError) -> str:
    reasons = (f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors(include_url=False))
    return "; ".join(reasons)[:1000]


def save_calibrations(path: Path, maps: Mapping[str, CalibrationMap], ratings_sha256: str) -> None:
    """Write the maps whole or not at all. OSError: not writable."""
    content = _CalibrationFile(format=1, maps=dict(maps), ratings_sha256=ratings_sha256)
    write_atomically(path, json.dumps(content.model_dump(mode="json"), indent=1) + "\n")


def fit_calibration(
    items: Sequence[RatedReply], judge: str, scale: Scale, kind: CurveKind | None = None
) -> CalibrationMap:
    """Fit and cross-validate. ``kind`` None: affine below 30 items, else isotonic.

    ``mae_before``, ``mae_after``: of raw scores, and of maps each fitted without the prompt it is tried on.
    ValueError: fewer than two prompts, or people's ratings do not rise with the scores.
    """
    kind = kind or ("affine" if len(items) < MIN_ISOTONIC_ITEMS else "isotonic")
    prompts = sorted({item.prompt_id for item in items})
    if len(prompts) < 2:
        raise ValueError(f"a map needs replies to at least 2 prompts: got {len(prompts)}")
    curve, errors = fit_curve(items, kind), []
    for prompt in prompts:
        try:
            curve_without_prompt = fit_curve([item for item in items if item.prompt_id != prompt], kind)
        except ValueError as error:
            raise ValueError(f"without prompt {prompt!r}: {error}") from error
        left_out = (item for item in items if item.prompt_id == prompt)
        errors += [abs(clamp_to_scale(curve_without_prompt.at(item.judge), scale) - item.human) for item in left_out]
    return CalibrationMap(
        judge=judge,
        curve=curve,
        scale=(scale.lo, scale.hi),
        items=len(items),
        prompts=len(prompts),
        mae_before=fmean(abs(item.judge - item.human) for item in items),
        mae_after=fmean(errors),
    )


def fit_curve(items: Sequence[RatedReply], kind: CurveKind) -> CalibrationCurve:
    """One curve through (judge, human). ValueError: no rising one exists."""
    x, y = np.array([item.judge for item in items]), np.array([item.human for item in items])
    if not len(x) or np.ptp(x) <= 1e-9:
        raise ValueError("the judge gave every reply the same score: there is nothing to map")
    if kind == "isotonic":
        return _fit_isotonic(x, y)
    slope = float(np.cov(x, y, ddof=0)[0, 1] / x.var())
    if not slope > 1e-9:
        raise ValueError(f"people's ratings must rise with the judge's scores: the slope is {slope:.3g}")
    return AffineCurve(kind="affine", slope=slope, intercept=float(y.mean() - slope * x.mean()))


def _fit_isotonic(x: np.ndarray, y: np.ndarray) -> IsotonicCurve:
    """Pools of scores that no rising map can tell apart; each has its knot at its mean score and rating."""
    scores, place_of, counts = np.unique(x.round(9), return_inverse=True, return_counts=True)
    ratings = np.bincount(place_of, weights=y) / counts
    best = isotonic_regression(ratings, weights=counts)
    pools = best.blocks
    if len(pools) < 3:  # borders of a single pool
        raise ValueError("people's ratings do not rise with the judge's scores anywhere")
    knots: list[tuple[float, float]] = []
    for first, end in pairwise(pools):
        middle = np.average(scores[first:end], weights=counts[first:end])
        knots.append((float(middle), float(best.x[first])))
    return IsotonicCurve(kind="isotonic", knots=tuple(knots))


def clamp_to_scale(value: float, scale: Scale) -> float:
    """Clamped to the scale."""
    return min(scale.hi, max(scale.lo, value))
