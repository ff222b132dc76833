"""The section on diagnostics: gaps stay gaps, means are over what there is, a run without diagnoses says so."""

import random
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from report import read
from report.records import DiagnosisRecord
from report.run import diagnostics, layers
from tests.helpers.synthetic_diagnostics import add_diagnostics, diagnosis
from tests.helpers.synthetic_run import make_run, write_lines

RUN = {"step": 1.0, "groups/kept": 3.0}


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of 20 steps with a diagnosis at 1, 5, 10, 15, 20; there is no preference gradient at 5."""
    run = add_diagnostics(make_run(tmp_path_factory.mktemp("runs"), prompts=1, size=2))
    return diagnostics.build_diagnostics_section(run, read.read_metric_rows(run / "metrics.jsonl").rows)


def titled(charts: list[dict[str, Any]], title: str) -> dict[str, Any]:
    (actual,) = (chart for chart in charts if chart["title"] == title)
    return actual


def test_a_map_holds_every_part_and_step_and_a_gap_where_nothing_was_defined(section: dict[str, Any]) -> None:
    ratio, cosine = section["maps"]
    assert (ratio["scale"], cosine["scale"]) == ("ratio", "cosine")
    for drawn in (ratio, cosine):
        assert drawn["steps"] == [1, 5, 10, 15, 20]
        assert (drawn["rows"][0], drawn["rows"][1], drawn["rows"][-1]) == ("embedding", "layer 0", "head")
        assert drawn["marks"][:2] == ["emb", "0"] and len(drawn["marks"]) == len(drawn["values"]) == 31
        assert all([value is None for value in row] == [False, True, False, False, False] for row in drawn["values"])


def test_lines_over_layers_are_early_against_late_with_few_marks(section: dict[str, Any]) -> None:
    drawn = titled(section["gradients"], "Text / audio, by layer")
    assert [series["label"] for series in drawn["series"]] == ["early", "late"]
    assert drawn["hint"] == "early: step 1; late: step 20" and drawn["rule"] == 1
    assert len(drawn["xs"]) == 31 and sum(map(bool, drawn["marks"])) == layers.MAX_AXIS_MARKS
    assert (drawn["marks"][0], drawn["marks"][-1]) == ("emb", "head")
    assert {item["title"]: item.get("rule") for item in section["gradients"] if "names" in item} == {
        "Text / audio, by layer": 1,
        "Text · audio, by layer": 0,
        "Reference answers · text, by layer": 0,
        "Gradient norm, by layer": None,
    }


def test_means_are_geometric_for_what_is_positive_and_plain_for_cosines() -> None:
    assert layers.average_figure("text_audio_ratio", [2.0, None, 8.0]) == pytest.approx(4.0)
    assert layers.average_figure("text", [0.0, 3.0]) == pytest.approx(3.0)
    assert layers.average_figure("sft_text_cosine", [-0.5, None, 0.1]) == pytest.approx(-0.2)
    assert [layers.average_figure(field, [None]) for field in ("text", "text_audio_cosine")] == [None, None]


@pytest.mark.parametrize(("looks", "sides"), [(1, ["early"]), (2, ["early", "late"]), (9, ["early", "late"])])
def test_one_diagnosis_has_no_late_side(looks: int, sides: list[str]) -> None:
    actual = [diagnosis(step, 0.5, layers=2, rng=random.Random(0)) for step in range(1, looks + 1)]
    drawn = titled(layers.build_layer_charts(actual), "Text / audio, by layer")
    assert [series["label"] for series in drawn["series"]] == sides
    assert drawn["names"] == ["embedding", "layer 0", "layer 1", "norm", "head"]


def test_early_and_late_are_quarters() -> None:
    rng = random.Random(0)
    actual = [diagnosis(step, step / 8, layers=1, rng=rng) for step in range(1, 9)]
    drawn = titled(layers.build_layer_charts(actual), "Text / audio, by layer")
    assert drawn["hint"] == "early: steps 1 to 2; late: steps 7 to 8"
    one, other = (actual[n].layers[0].text_audio_ratio or 0.0 for n in (0, 1))
    assert drawn["series"][0]["ys"][0] == pytest.approx(sqrt(one * other), rel=1e-5)


def test_figures_of_the_whole_model_and_shifts_are_drawn_over_the_steps_that_have_them(
    section: dict[str, Any],
) -> None:
    rollouts = titled(section["shifts"], "Shift on the rollouts")
    assert rollouts["xs"] == [1, 5, 10, 15, 20]
    assert [series["label"] for series in rollouts["series"]] == ["text", "audio", "|text|", "|audio|"]
    ratio = titled(section["gradients"], "Text / audio, whole model")
    assert [y is None for y in ratio["series"][0]["ys"]] == [False, True, False, False, False]


def test_every_axis_and_every_reason_is_told(section: dict[str, Any]) -> None:
    spread = titled(section["learning"], "Diversity per axis")
    assert [series["label"] for series in spread["series"]] == ["acoustic", "reward", "semantic"]
    groups = titled(section["learning"], "Groups")
    assert [series["label"] for series in groups["series"]] == ["kept", "equal rewards", "few verdicts"]
    assert all(sum(ys) == 4 for ys in zip(*(series["ys"] for series in groups["series"]), strict=True))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([RUN | {"groups/dropped": 1.0}], {"kept": [3], "dropped": [1]}),  # an older run does not tell why
        ([RUN], {"kept": [3]}),
        ([RUN, {"step": 2.0, "groups/dropped_small_margin": 2.0, "groups/kept": 1.0}], {"kept": [3, 1], "small margin": [0, 2]}),
        ([RUN | {"groups/dropped_equal_rewards": 1.0}, {"step": 2.0}], {"kept": [3, None], "equal rewards": [1, None]}),
    ],
)  # fmt: skip
def test_a_reason_that_a_step_does_not_name_did_not_occur_in_it(
    rows: list[dict[str, float | None]], expected: dict[str, list[float | None]]
) -> None:
    (groups,) = diagnostics.chart_learning_signal(rows)
    assert {series["label"]: series["ys"] for series in groups["series"]} == expected


def test_a_run_without_diagnoses_has_an_empty_section_and_no_note(tmp_path: Path) -> None:
    empty = {"notes": [], "learning": [], "gradients": [], "maps": [], "shifts": []}
    assert diagnostics.build_diagnostics_section(tmp_path, []) == empty
    assert diagnostics.build_diagnostics_section(tmp_path, [{"step": 1.0, "lambda": 0.2}]) == empty


def test_a_diagnosis_made_again_counts_once_and_a_torn_line_is_said(tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = [
        diagnosis(step, done, layers=1, rng=rng).model_dump_json() for step, done in ((1, 0.0), (5, 0.1), (5, 0.9))
    ]
    write_lines(tmp_path / "diagnostics.jsonl", [*lines, '{"step": 10, "pol'])
    diagnostics_section = diagnostics.build_diagnostics_section(tmp_path, [])
    assert diagnostics_section["maps"][0]["steps"] == [1, 5]
    again = DiagnosisRecord.model_validate_json(lines[2]).layers[0].text_audio_ratio
    assert diagnostics_section["maps"][0]["values"][0][1] == pytest.approx(again, rel=1e-5)
    assert diagnostics_section["notes"] == [
        "diagnostics.jsonl: line 4, the last, is left out: Invalid JSON: EOF while parsing a string at line 1 column 17"
    ]
    write_lines(tmp_path / "diagnostics.jsonl", ['{"step": 10}', lines[0]])
    with pytest.raises(ValueError, match=r"diagnostics\.jsonl:1: policy_version: Field required"):
        diagnostics.build_diagnostics_section(tmp_path, [])


def test_many_diagnoses_are_mapped_at_evenly_spaced_steps(tmp_path: Path) -> None:
    rng = random.Random(0)
    looks = [diagnosis(step, 0.5, layers=1, rng=rng) for step in range(1, 101)]
    write_lines(tmp_path / "diagnostics.jsonl", [look.model_dump_json() for look in looks])
    diagnostics_section = diagnostics.build_diagnostics_section(tmp_path, [])
    assert len(diagnostics_section["maps"][0]["steps"]) == diagnostics.MAX_MAPPED_DIAGNOSES
    assert diagnostics_section["notes"] == ["48 of 100 diagnoses are mapped, evenly spaced"]
