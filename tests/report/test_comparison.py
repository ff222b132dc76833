"""The figures of a study against loops over the same files, and what is said about runs that do not fit."""

import csv
import io
import json
import random
from collections import Counter
from dataclasses import replace
from math import log2
from pathlib import Path
from statistics import fmean

import pytest

from conf.study import BASE_METHOD, MAIN_ARM, BootstrapConfig
from judge.rules.acoustic import DECENCY_LIMITS
from report.study import measures
from report.study import tables as study_tables
from report.study.comparison import StudyRow, pair_seeds
from report.study.data import average_columns, build_study_data, find_pareto_front
from report.study.findings import Study, StudyCell, StudyFindings, compute_findings
from report.study.measures import HELD_OUT_MEASURES
from report.study.paired import IntervalEstimate, sign_test
from report.study.trials import is_finished, read_trial
from report.study.write import write_study_files
from tests.helpers.synthetic_diagnostics import diagnosis
from tests.helpers.synthetic_run import write_lines
from tests.helpers.synthetic_study import make_trial

FEW = BootstrapConfig(draws=200)


def cells(
    root: Path, methods: str = "sft gated grpo_all", seeds: str = "012", arm: str = MAIN_ARM, **more: str
) -> list[StudyCell]:
    findings = []
    for method in methods.split():
        for seed in map(int, seeds):
            name = f"{method}-seed{seed}" if arm == MAIN_ARM else f"{arm}-{method}-seed{seed}"
            run = make_trial(root, method, seed, name=name, **more)  # type: ignore[arg-type]
            findings.append(StudyCell(name=name, arm=arm, method=method, seed=seed, run=run, wall_s=100.0))
    return findings


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("runs")
    both = [*cells(root), *cells(root, "gated", arm="noise")]
    return Study(name="made up", cells=both, baseline="gated", bootstrap=FEW, arms={"noise": "judge.noise=1"})


@pytest.fixture(scope="module")
def findings(given: Study) -> StudyFindings:
    return compute_findings(given)


def row(findings: StudyFindings, method: str, measure: str, arm: str = MAIN_ARM) -> StudyRow:
    return next(r for r in findings.rows if (r.arm, r.method, r.measure) == (arm, method, measure))


@pytest.mark.parametrize("name", ["iq", "eq", "style", "wer", "reward", "fault_loop", "seconds"])
def test_means_differences_and_wins_equal_loops_over_the_replies(findings: StudyFindings, name: str) -> None:
    measure = next(one for one in HELD_OUT_MEASURES if one.name == name)
    ours, theirs = ([trial.after for trial in findings.trials_of(MAIN_ARM, method)] for method in ("sft", "gated"))
    known = [value for replies in ours for reply in replies if (value := measure.of(reply)) is not None]
    here = row(findings, "sft", name)
    assert here.mean.value == pytest.approx(fmean(known))
    assert here.mean.lo is not None and here.mean.hi is not None and here.mean.lo < here.mean.value < here.mean.hi
    gaps: dict[str, list[float]] = {}
    for mine, other in zip(ours, theirs, strict=True):
        for one, two in zip(mine, other, strict=True):
            a, b = measure.of(one), measure.of(two)
            if a is not None and b is not None:
                gaps.setdefault(one.row_id, []).append(a - b)
    assert here.difference is not None
    assert here.difference.value == pytest.approx(fmean(gap for own in gaps.values() for gap in own))
    if not measure.better:
        assert here.signs is None
        return
    per_prompt = [fmean(own) * measure.better for own in gaps.values()]
    wins, losses = sum(gap > 1e-9 for gap in per_prompt), sum(gap < -1e-9 for gap in per_prompt)
    assert here.signs is not None and (here.signs.wins, here.signs.losses) == (wins, losses)
    assert here.signs.ties == len(gaps) - wins - losses and here.signs.p == sign_test(wins, losses)


def test_the_base_is_what_the_runs_began_with_and_the_baseline_is_not_held_against_itself(
    findings: StudyFindings,
) -> None:
    trials = findings.trials_of(MAIN_ARM, "gated")
    right = [reply.figures["heard_right"] for trial in trials for reply in trial.before]
    assert row(findings, BASE_METHOD, "iq").mean.value == pytest.approx(100 * fmean(right))
    assert row(findings, BASE_METHOD, "distance").mean.value == 0
    assert row(findings, "gated", "iq").difference is None and row(findings, "gated", "iq").signs is None
    assert [method for arm, method in findings.list_arm_methods() if arm == MAIN_ARM] == [
        BASE_METHOD,
        "sft",
        "gated",
        "grpo_all",
    ]
    assert [method for arm, method in findings.list_arm_methods() if arm == "noise"] == [BASE_METHOD, "gated"]


def test_the_distance_is_the_divergence_of_the_histograms_less_what_is_chance(findings: StudyFindings) -> None:
    def shares(replies: tuple[measures.HeldOutReply, ...]) -> dict[int, float]:
        counts = Counter(code for reply in replies for code in reply.codes)
        return {code: count / counts.total() for code, count in counts.items()}

    by_seed = []
    for trial in findings.trials_of(MAIN_ARM, "grpo_all"):
        p, q = shares(trial.after), shares(trial.before)
        middle = {code: (p.get(code, 0) + q.get(code, 0)) / 2 for code in {*p, *q}}
        by_seed.append(sum(x / 2 * log2(x / middle[code]) for side in (p, q) for code, x in side.items()))
    here = row(findings, "grpo_all", "distance")
    ours = [value for value in here.by_seed.values() if value is not None]
    assert here.mean.value == pytest.approx(fmean(ours))
    assert all(0.0005 < plain - own < 0.01 for own, plain in zip(ours, by_seed, strict=True))


def test_a_difference_is_decided_where_its_interval_leaves_0_out_and_every_seed_agrees(
    findings: StudyFindings,
) -> None:
    item = replace(row(findings, "sft", "iq"), difference=IntervalEstimate(-1.0, -2.0, -0.5))
    assert replace(item, gaps=[-1.0, -0.1, -3.0]).decided == -1
    assert replace(item, gaps=[-1.0, 0.1, -3.0]).decided == 0
    assert replace(item, gaps=[-1.0, 0.0]).decided == replace(item, gaps=[-1.0, None]).decided == 0
    assert replace(item, gaps=[-1.0], difference=IntervalEstimate(-1.0, -2.0, 0.5)).decided == 0
    real = row(findings, "sft", "iq")
    mine, theirs = real.by_seed, row(findings, "gated", "iq").by_seed
    gaps = [(mine[seed] or 0) - (theirs[seed] or 0) for seed in mine]
    assert real.gaps == pytest.approx(gaps, abs=2), "some replies of one side have no answer"


def test_the_same_runs_give_the_same_figures_page_and_tables(
    given: Study, findings: StudyFindings, tmp_path: Path
) -> None:
    assert compute_findings(given).rows == findings.rows
    first, again = (write_study_files(findings, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == [
        "study.html",
        "study.csv",
        "cells.csv",
        "versions.json",
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].stat().st_size < 2_000_000


def test_the_tables_hold_every_measure_and_every_cell(findings: StudyFindings) -> None:
    rows = list(csv.DictReader(io.StringIO(study_tables.measures_to_csv(findings))))
    assert len(rows) == (4 + 2) * (len(HELD_OUT_MEASURES) + 1) and tuple(rows[0]) == study_tables.MEASURE_COLUMNS
    sft = next(r for r in rows if (r["arm"], r["method"], r["measure"]) == ("main", "sft", "iq"))
    assert float(sft["lo"]) < float(sft["mean"]) < float(sft["hi"]) and (sft["prompts"], sft["seeds"]) == (
        "40",
        "3",
    )
    runs = list(csv.DictReader(io.StringIO(study_tables.cells_to_csv(findings))))
    assert len(runs) == 12 and tuple(runs[0]) == study_tables.CELL_COLUMNS, "no run has more to tell"
    assert (runs[0]["sampled_tokens"], runs[0]["trained_tokens"], runs[0]["train_s"]) == (
        "36000",
        "60000",
        "72",
    )
    assert (runs[0]["evaluation_s"], runs[0]["wall_s"], runs[0]["commit"]) == ("40", "100", "a" * 40)


def test_the_bounds_of_faults_are_those_at_which_the_judge_takes_away() -> None:
    assert (
        DECENCY_LIMITS.silence.start == measures.MAX_SILENCE_SHARE
        and DECENCY_LIMITS.pause.start == measures.MAX_PAUSE_S
    )
    assert (
        DECENCY_LIMITS.loop.start == measures.MAX_SELF_CORRELATION
        and DECENCY_LIMITS.clipping.start == measures.MAX_CLIPPING_SHARE
    )
    assert (DECENCY_LIMITS.drawl.start, 1 / DECENCY_LIMITS.rush.start) == (
        measures.MAX_DURATION_RATIO,
        measures.MIN_DURATION_RATIO,
    )


def test_a_reply_that_nobody_listened_to_is_in_no_share(findings: StudyFindings) -> None:
    reply = findings.trials_of(MAIN_ARM, "sft")[0].after[0]
    silent = reply.model_copy(update={"figures": {"unjudgeable": 1.0, "truncated": 0.0}, "scores": {}, "reward": None})
    known = {measure.name for measure in HELD_OUT_MEASURES if measure.of(silent) is not None}
    assert known == {"fault", "unjudgeable", "truncated", "seconds"}


def test_any_fault_counts_what_cannot_be_judged_and_not_what_the_judge_failed_on(findings: StudyFindings) -> None:
    fault = next(item for item in HELD_OUT_MEASURES if item.name == "fault")
    sound = {"pace": 1.0, "silence": 0.1, "pause": 0.1, "loop": 0.1, "clipping": 0.0}
    reply = findings.trials_of(MAIN_ARM, "sft")[0].after[0]
    figures: list[tuple[dict[str, float], float | None]] = [
        (sound, 0.0), (sound | {"loop": 0.9}, 100.0), (sound | {"pace": 3.0}, 100.0), (sound | {"pause": 1.5}, 100.0),
        ({"unjudgeable": 1.0}, 100.0), ({"unjudgeable": 0.0}, None),
    ]  # fmt: skip
    assert [fault.of(reply.model_copy(update={"figures": own})) for own, _ in figures] == [
        expected for _, expected in figures
    ]


def test_seeds_are_paired_with_themselves_or_in_order() -> None:
    assert pair_seeds([0, 1, 2], [1, 2, 3]) == [(1, 1), (2, 2)]
    assert pair_seeds([0, 1], [5]) == [(0, 5)]


def test_a_method_is_on_the_front_when_none_beats_it_in_both(findings: StudyFindings) -> None:
    def at(method: str, iq: float | None, eq: float | None) -> list[StudyRow]:
        known = {"iq": iq, "eq": eq}
        return [
            replace(item, method=method, mean=replace(item.mean, value=known[item.measure]))
            for item in (row(findings, "sft", "iq"), row(findings, "sft", "eq"))
        ]

    rows = [*at("a", 70, 3), *at("b", 60, 4), *at("c", 60, 3.5), *at("d", 70, 3), *at("e", None, 5)]
    assert find_pareto_front(rows) == ["a", "b", "d"]


def test_the_mean_of_curves_is_over_the_seeds_that_tell_the_step() -> None:
    assert average_columns([[1.0, None, None], [3.0, 2.0, None]]) == [2.0, 2.0, None]


# --- what does not fit


def test_cells_that_are_not_finished_are_listed_without_figures(tmp_path: Path) -> None:
    whole = cells(tmp_path, "gated", "0")
    lost = StudyCell(name="sft-seed0", method="sft", seed=0, run=tmp_path / "none", state="failed", detail="=1+1")
    findings = compute_findings(Study(name="x", cells=[*whole, lost], baseline="gated", bootstrap=FEW))
    assert findings.notes == ["1 of 2 cells failed: sft-seed0"]
    assert {method for _, method in findings.list_arm_methods()} == {BASE_METHOD, "gated"}
    assert "sft-seed0,main,sft,0,failed,'=1+1,,,," in study_tables.cells_to_csv(findings), (
        "no formula for a spreadsheet"
    )


@pytest.mark.parametrize("bad", [b"{}\n{}\n", b"\xff\n\xff\n", b""])
def test_a_cell_that_cannot_be_read_has_failed_and_the_page_is_drawn(tmp_path: Path, bad: bytes) -> None:
    both = cells(tmp_path, "gated sft", "0")
    (both[1].run / "heldout" / "test_after.jsonl").write_bytes(bad)
    findings = compute_findings(Study(name="x", cells=both, baseline="gated", bootstrap=FEW))
    assert list(findings.trials) == ["gated-seed0"] and findings.study.cells[1].state == "failed"
    assert str(findings.study.cells[1].detail).startswith("cannot be read: ")
    assert "1 of 2 cells failed: sft-seed0" in findings.notes and "sft-seed0" in study_tables.cells_to_csv(findings)


@pytest.mark.parametrize("name", ["heldout/test_before.jsonl", "heldout/test_after.jsonl", "report.html", "final"])
def test_a_run_that_lacks_one_of_its_ends_is_not_finished(tmp_path: Path, name: str) -> None:
    run = make_trial(tmp_path, "gated", 0, prompts=3)
    assert is_finished(run)
    (run / name).rename(tmp_path / "away")
    assert not is_finished(run)


def test_why_is_the_last_diagnosis_and_means_over_steps_in_page_and_table(tmp_path: Path) -> None:
    both = cells(tmp_path, "gated sft", "01")
    rng = random.Random(0)
    looks = [diagnosis(step, step / 10, layers=2, rng=rng) for step in (1, 5)]
    for seed in (0, 1):
        write_lines(both[seed].run / "diagnostics.jsonl", [look.model_dump_json() for look in looks])
    metrics = both[0].run / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for n, line in enumerate(lines):
        line |= {"groups/dropped": 2.0, "clip_fraction": 0.1} | ({"groups/dropped_equal_rewards": 1.0} if n else {})
    write_lines(metrics, [json.dumps(line) for line in lines])
    findings = compute_findings(Study(name="x", cells=both, baseline="gated", bootstrap=FEW))
    why = findings.trials["gated-seed0"].why
    assert why["text_audio_ratio"] == looks[1].model.text_audio_ratio
    assert why["shift_anchor_text"] == looks[1].shift["anchor_text"].mean
    assert (why["groups_dropped"], why["groups_dropped_equal_rewards"]) == (24.0, 11.0)
    assert why["clip_fraction"] == pytest.approx(0.1) and "clip_fraction" not in findings.trials["gated-seed1"].why
    rows = {item["cell"]: item for item in csv.DictReader(io.StringIO(study_tables.cells_to_csv(findings)))}
    assert rows["gated-seed0"]["why_groups_dropped"] == "24" and rows["sft-seed0"]["why_groups_dropped"] == ""
    shown = build_study_data(findings)["arms"][0]["why"]  # type: ignore[index]
    named = [figure["name"] for figure in shown["figures"]]
    table = {row["method"]: dict(zip(named, row["values"], strict=True)) for row in shown["rows"]}
    assert table["gated"]["clip_fraction"] == pytest.approx(0.1), "of the seed that tells it"
    assert table["sft"]["text_audio_ratio"] is None and table["sft"]["lambda"] is not None


def test_a_study_without_any_finished_run_has_a_page(tmp_path: Path) -> None:
    waiting = StudyCell(name="a", method="gated", seed=0, run=tmp_path, state="waiting")
    findings = compute_findings(Study(name="x", cells=[waiting], baseline="gated"))
    assert all(path.stat().st_size for path in write_study_files(findings, tmp_path / "out"))


def test_runs_of_different_code_are_said_and_have_no_common_versions(tmp_path: Path) -> None:
    both = [*cells(tmp_path, "gated", "0"), *cells(tmp_path, "sft", "0", commit="c" * 40)]
    findings = compute_findings(Study(name="x", cells=both, baseline="gated", bootstrap=FEW))
    assert (
        "the runs were made with different code: commit is aaaaaaaaaaaa (1 runs), cccccccccccc (1 runs)"
        in findings.notes
    )
    (tmp_path / "versions.json").touch()
    write_study_files(findings, tmp_path)
    assert not (tmp_path / "versions.json").exists()
    assert ["commit", "a" * 40] not in build_study_data(findings)["head"]["versions"]  # type: ignore[index]


def test_missing_seeds_baselines_and_other_beginnings_are_said(tmp_path: Path) -> None:
    some = [*cells(tmp_path, "sft", "01"), *cells(tmp_path, "grpo_all", "0")]
    file = some[0].run / "heldout" / "test_before.jsonl"
    file.write_text(file.read_text().replace('"text":"seven"', '"text":"eight"', 1))
    notes = compute_findings(Study(name="x", cells=some, baseline="gated", bootstrap=FEW)).notes
    assert any(note.startswith("no finished run of gated") for note in notes)
    assert "not every method has the seeds 0, 1: grpo_all (0)" in notes
    assert any(note.startswith("the replies before training are not the same in all runs") for note in notes)


def test_runs_with_other_prompts_are_refused(tmp_path: Path) -> None:
    both = [*cells(tmp_path, "gated", "0"), *cells(tmp_path, "sft", "0", prompts=8)]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"same test prompts in the same order: .*sft-seed0 differs from"):
        compute_findings(Study(name="x", cells=both, baseline="gated"))


def test_rows_of_the_same_ids_that_ask_something_else_are_refused(tmp_path: Path) -> None:
    both = cells(tmp_path, "gated sft", "0")
    for when in ("before", "after"):
        file = both[1].run / "heldout" / f"test_{when}.jsonl"
        file.write_text(file.read_text().replace('"style":"slow"', '"style":"fast"'))
    with pytest.raises(ValueError, match="same test prompts in the same order"):
        compute_findings(Study(name="x", cells=both, baseline="gated"))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("config.yaml", "not a run directory"),
        ("heldout/test_after.jsonl", "has no heldout/test_after.jsonl: the run has not come to its end"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_named(tmp_path: Path, name: str, rule: str) -> None:
    run = make_trial(tmp_path, "gated", 0, prompts=3)
    (run / name).unlink()
    with pytest.raises(ValueError, match=rule):
        read_trial(run)
