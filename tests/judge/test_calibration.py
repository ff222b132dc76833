"""Maps from a judge's scores to people's: what is fitted, when it helps, and whom it may be used for."""

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from judge.agreement import RatedReply
from judge.llm.calibration import (
    AffineCurve,
    CalibrationMap,
    IsotonicCurve,
    clamp_to_scale,
    fit_calibration,
    fit_curve,
    load_calibrations,
    save_calibrations,
)
from judge.types import Scale, ScoredVerdict

NAME = "openai(model semantic/1 logprobs)"
SCALE = Scale(1.0, 5.0)
LEVELS = st.floats(1, 5).map(lambda x: round(x, 2))
SHA = "0" * 64


def items(pairs: list[tuple[float, float]], prompts: int = 3) -> list[RatedReply]:
    return [RatedReply(prompt_id=f"p{i % prompts}", judge=x, human=y) for i, (x, y) in enumerate(pairs)]


def a_map(**changes: Any) -> CalibrationMap:
    curve = IsotonicCurve(kind="isotonic", knots=((2.0, 1.0), (3.0, 2.0), (4.0, 5.0)))
    facts: dict[str, Any] = {"judge": NAME, "curve": curve, "scale": (1.0, 5.0), "items": 9, "prompts": 3}
    return CalibrationMap(**(facts | {"mae_before": 1.0, "mae_after": 0.5} | changes))


@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=2, max_size=25))
@settings(max_examples=150)
def test_an_isotonic_map_never_falls_and_has_the_pools_of_scipy(pairs: list[tuple[float, float]]) -> None:
    scores = sorted({x for x, _ in pairs})
    weights = [sum(x == score for x, _ in pairs) for score in scores]
    means = [np.mean([y for x, y in pairs if x == score]) for score in scores]
    best = isotonic_regression(means, weights=weights)
    assume(len(scores) > 1 and len(best.blocks) > 2)
    curve = fit_curve(items(pairs), "isotonic")
    assert isinstance(curve, IsotonicCurve)
    assert [y for _, y in curve.knots] == pytest.approx(best.x[best.blocks[:-1]])
    grid = [curve.at(x) for x in np.linspace(0, 6, 50)]
    assert all(a <= b for a, b in pairwise(grid))
    assert curve.at(-1) == curve.knots[0][1] and curve.at(9) == curve.knots[-1][1]


@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=2, max_size=25))
def test_an_affine_map_is_the_least_squares_line_or_refused(pairs: list[tuple[float, float]]) -> None:
    x, y = np.array(pairs).T
    assume(np.ptp(x) > 0.1)
    slope, intercept = np.polyfit(x, y, 1)
    if slope > 1e-6:
        curve = fit_curve(items(pairs), "affine")
        assert isinstance(curve, AffineCurve)
        assert (curve.slope, curve.intercept) == pytest.approx((slope, intercept), rel=1e-6, abs=1e-6)
    elif slope < -1e-6:
        with pytest.raises(ValueError, match="must rise with the judge's scores: the slope is -"):
            fit_curve(items(pairs), "affine")


def test_scores_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="same score"):
        fit_curve(items([(3.0, 1.0), (3.0, 5.0)]), "affine")
    with pytest.raises(ValueError, match="do not rise with the judge's scores anywhere"):
        fit_curve(items([(1.0, 5.0), (2.0, 4.0), (3.0, 1.0)]), "isotonic")
    with pytest.raises(ValueError, match="at least 2 prompts: got 1"):
        fit_calibration(items([(1.0, 1.0), (2.0, 2.0)], prompts=1), NAME, SCALE)
    with pytest.raises(ValueError, match="without prompt 'p1': the judge gave every reply the same"):
        fit_calibration(items([(1.0, 1.0), (5.0, 5.0), (1.0, 2.0), (4.0, 4.0)], prompts=2), NAME, SCALE)


@pytest.mark.parametrize("kind", ["affine", "isotonic"])
def test_the_error_after_is_of_prompts_that_were_left_out(kind: Any) -> None:
    random = np.random.default_rng(1)
    pairs = [
        (float(x), float(clamp_to_scale(0.5 * x + random.normal(0, 0.3), SCALE))) for x in random.uniform(1, 5, 40)
    ]
    given = items(pairs, prompts=8)
    calibration = fit_calibration(given, NAME, SCALE, kind)
    errors = []
    for prompt in {item.prompt_id for item in given}:
        other = fit_curve([item for item in given if item.prompt_id != prompt], kind)
        errors += [abs(clamp_to_scale(other.at(i.judge), SCALE) - i.human) for i in given if i.prompt_id == prompt]
    assert calibration.mae_after == pytest.approx(np.mean(errors)) and calibration.mae_after < calibration.mae_before
    assert calibration.mae_before == pytest.approx(np.mean([abs(x - y) for x, y in pairs]))
    assert (calibration.judge, calibration.scale, calibration.items, calibration.prompts) == (NAME, (1.0, 5.0), 40, 8)


def test_few_items_get_two_numbers_and_many_a_curve() -> None:
    pairs = [(1 + i % 5, 1 + (i * i) % 5) for i in range(60)]
    assert fit_calibration(items(pairs[:29]), NAME, SCALE).curve.kind == "affine"
    assert fit_calibration(items(pairs[:30]), NAME, SCALE).curve.kind == "isotonic"
    assert fit_calibration(items(pairs[:30]), NAME, SCALE, "affine").curve.kind == "affine"


def test_a_score_is_moved_its_spread_with_the_slope_and_its_provenance_says_so() -> None:
    scored = ScoredVerdict(value=3.5, judge=NAME, spread=0.1, why="clear", cached=True)
    moved = a_map().apply(scored, SCALE)
    assert moved.spread == pytest.approx(0.3)
    assert replace(moved, spread=0.1) == replace(scored, judge=f"{NAME}+calibrated")
    at_a_knot = a_map().apply(replace(scored, value=3.0), SCALE)
    assert at_a_knot.value == 2.0 and at_a_knot.spread == pytest.approx((0.1 + 0.3) / 2)
    flat = a_map().apply(replace(scored, value=4.5), SCALE)
    assert (flat.value, flat.spread) == (5.0, 0.0)
    steep = a_map(curve=AffineCurve(kind="affine", slope=4.0, intercept=-8.0))
    assert steep.apply(replace(scored, value=5.0), SCALE).value == 5.0, "clamped to the scale"
    assert steep.apply(replace(scored, value=1.0), SCALE).value == 1.0


def test_a_map_serves_one_judge_and_one_scale() -> None:
    for other in ("openai(model semantic/2 logprobs)", "openai(model semantic/1 schema)", "openai(m2 semantic/1 logprobs)"):  # fmt: skip
        with pytest.raises(ValueError, match=r"calibration is for openai\(model semantic/1 logprobs\): got a"):
            a_map().apply(ScoredVerdict(value=3.0, judge=other), SCALE)
    with pytest.raises(ValueError, match=r"for the scale \[1.0, 5.0\]: got \[0, 1\]"):
        a_map().apply(ScoredVerdict(value=0.5, judge=NAME), Scale(0.0, 1.0))


def test_what_is_saved_is_loaded_and_found_by_the_exact_judge(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    maps = {"semantic": a_map(), "acoustic": a_map(judge="openai(model acoustic/1 logprobs)")}
    save_calibrations(path, maps, SHA)
    assert [file.name for file in tmp_path.iterdir()] == ["calibration.json"]
    calibrations = load_calibrations(path)
    assert calibrations.maps == maps and calibrations.map_for_axis("semantic", NAME, Scale()) == maps["semantic"]
    assert (
        calibrations.map_for_axis("semantic", NAME, Scale()) == maps["semantic"]
        and calibrations.map_for_axis("holistic", NAME, Scale()) is None
    )
    wanted = "openai(model semantic/2 logprobs)"
    with pytest.raises(ValueError, match="has no map for"):
        calibrations.map_for_axis("semantic", wanted, Scale())
    with pytest.raises(ValueError) as refused:
        calibrations.map_for_axis("semantic", wanted, Scale())
    assert str(path) in str(refused.value) and f"no map for {wanted}, only for {NAME}" in str(refused.value)


def saved(path: Path) -> dict[str, Any]:
    save_calibrations(path, {"semantic": a_map()}, SHA)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file.update(format=2),
        lambda file: file.update(extra=1),
        lambda file: file.update(maps={}),
        lambda file: file.update(ratings_sha256="x"),
        lambda file: file["maps"]["semantic"].update(judge=""),
        lambda file: file["maps"]["semantic"].update(items="9"),
        lambda file: file["maps"]["semantic"].update(more=1),
        lambda file: file["maps"]["semantic"].update(scale=[1.0, float("nan")]),
        lambda file: file["maps"]["semantic"]["curve"].update(knots=[[1.0, 1.0]]),
        lambda file: file["maps"]["semantic"]["curve"].update(knots=[[1.0, 2.0], [2.0, 1.0]]),
        lambda file: file["maps"]["semantic"]["curve"].update(knots=[[2.0, 1.0], [1.0, 2.0]]),
        lambda file: file["maps"]["semantic"]["curve"].update(knots=[[1.0, 1.0], [2.0, float("inf")]]),
        lambda file: file["maps"]["semantic"].update(curve={"kind": "affine", "slope": -1.0, "intercept": 0.0}),
        lambda file: file["maps"]["semantic"].update(curve={"kind": "cubic", "slope": 1.0, "intercept": 0.0}),
    ],
)
def test_a_file_that_is_no_calibration_is_refused_by_name(edit: Any, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    content = saved(path)
    assert load_calibrations(path).map_for_axis("semantic", NAME, Scale())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"calibration\.json: not a calibration: "):
        load_calibrations(path)


def test_a_file_that_is_not_there_or_too_large_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a calibration must be a file, no folder and no pipe"):
        load_calibrations(tmp_path / "pipe")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        load_calibrations(tmp_path / "none.json")
    path = tmp_path / "large.json"
    saved(path)
    path.write_bytes(path.read_bytes() + b" " * (1 << 20))
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        load_calibrations(path)
    path.write_bytes(b"\xff[[[")
    with pytest.raises(ValueError, match="not a calibration"):
        load_calibrations(path)
