"""The judges' section as JSON values: counted right, nothing made up, hostile files kept small."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from judge.types import MissingVerdict, ScoredVerdict
from report import read
from report.read import JudgedReply
from report.records import CanaryRecord, MissingScoreRecord, RolloutRecord, ScoreRecord, VerdictRecord
from report.run import calls, curves, judges, verdicts
from store.lines import read_json_lines
from tests.helpers.synthetic_judges import MODEL, SECOND, add_api_judges, judge
from tests.helpers.synthetic_run import make_run, write_lines

finite = st.floats(-1e6, 1e6)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs"), steps=8, prompts=2, size=4, every=9, hostile=False)
    return add_api_judges(run, hostile=False)


@pytest.fixture(scope="module")
def section(run_dir: Path) -> dict[str, Any]:
    return judges.build_judges_section(run_dir, read.read_metric_rows(run_dir / "metrics.jsonl").rows, (1.0, 5.0))


def reply(index: int = 0, **fields: Any) -> JudgedReply:
    whole = {"step": 1, "prompt_id": "p", "group": 0, "index": index, "scores": {}} | fields
    return JudgedReply.model_validate(whole)


def scored(value: float = 3.0, spread: float = 0.0, judge: str = "j/1", cached: bool = False) -> ScoreRecord:
    return ScoreRecord(value=value, spread=spread, judge=judge, cached=cached)


def lost(kind: str = "deadline", reason: str = "late") -> MissingScoreRecord:
    return MissingScoreRecord(missing=reason, kind=kind)


def canary(**fields: Any) -> CanaryRecord:
    whole = {"step": 0, "axis": "semantic", "name": "plea", "judge": "j/1", "value": 1.0, "most": 2.0}
    return CanaryRecord.model_validate(whole | {"fate": "passed"} | fields)


def call(**fields: Any) -> str:
    return json.dumps({"judge": "j/1", "model": "m", "seconds": 1.0, "kind": None} | fields)


# --- quantiles and shares ---


@given(st.lists(finite, min_size=1), st.floats(0, 1))
def test_quantile_is_that_of_numpy(values: list[float], share: float) -> None:
    assert calls.compute_quantile(values, share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-6)


def test_of_nothing_there_is_no_quantile_no_mean_and_no_share() -> None:
    assert calls.compute_quantile([], 0.5) is None
    assert verdicts.average_or_none([]) is None
    assert verdicts.divide_or_none(0, 0) is None


# --- verdicts ---


def test_verdicts_are_counted_per_axis_and_judge_as_a_plain_loop_does(run_dir: Path, section: dict[str, Any]) -> None:
    records = [
        record for path in read.list_rollout_files(run_dir).values() for record in read.read_rollouts(path).rows
    ]
    naive: Counter[tuple[str, str | None]] = Counter()
    for record in records:
        for axis, actual in record.scores.items():
            naive[axis, actual.judge if isinstance(actual, ScoreRecord) else None] += 1
    rows = {(row["axis"], row["judge"]): row for row in section["verdicts"]}
    assert {key: row["count"] for key, row in rows.items()} == naive
    own = [s for r in records if isinstance(s := r.scores["acoustic"], ScoreRecord)]
    row = rows["acoustic", judge("acoustic")]
    assert row["spread"] == pytest.approx(np.mean([s.spread for s in own]))
    assert row["noise"] == pytest.approx(np.mean([s.spread**2 for s in own]))
    assert row["cached"] == pytest.approx(np.mean([s.cached for s in own]))
    early = [s.value for r in records if r.step <= 2 and isinstance(s := r.scores["acoustic"], ScoreRecord)]
    assert section["spans"][0] == "steps 1 to 2" and row["early"] == pytest.approx(np.mean(early))


def test_axis_without_a_single_score_has_only_missing_verdicts() -> None:
    rows = verdicts.tabulate_by_judge([reply(scores={"a": lost()})], [], [])
    assert rows == [{"axis": "a", "judge": None, "count": 1, "share": 1.0}]


def test_latency_of_a_step_is_over_the_replies_that_tell() -> None:
    by_step = {2: [reply(judge_latency_s=s) for s in (1.0, 3.0, None)], 3: [reply()]}
    drawn = verdicts.chart_latency(by_step, [2.0], {"judge/latency_s": [9.0]})
    assert drawn["xs"] == [2.0]
    assert {s["label"]: s["ys"] for s in drawn["series"]} == {"p50": [2.0], "p95": [2.9]}


def test_latency_without_records_is_the_mean_of_the_metrics() -> None:
    drawn = verdicts.chart_latency({3: [reply()]}, [1.0, 2.0], {"judge/latency_s": [9.0, None]})
    assert drawn["series"] == [{"name": "judge/latency_s", "label": "mean", "look": "c1", "ys": [9.0, None]}]


def test_missing_verdicts_are_counted_by_kind_and_axis_with_the_commonest_reason() -> None:
    replies = [
        reply(scores={"a": lost(reason="x"), "b": scored()}),
        reply(scores={"a": lost(reason="y"), "b": lost("server")}),
        reply(scores={"a": lost(reason="y" * 999), "b": scored()}),
        reply(scores={"a": lost(reason="y"), "b": scored()}),
    ]
    missing = verdicts.tabulate_missing(replies)
    assert (missing["count"], missing["of"], missing["share"]) == (5, 8, 5 / 8)
    assert missing["rows"] == [
        {"kind": "deadline", "counts": [4, 0], "count": 4, "share": 0.5, "reason": "y"},
        {"kind": "server", "counts": [0, 1], "count": 1, "share": 1 / 8, "reason": "late"},
    ]
    long = verdicts.tabulate_missing([reply(scores={"a": lost(reason="y" * 999)})])["rows"]
    assert len(long[0]["reason"]) == verdicts.MAX_CELL_CHARS


def test_missing_share_by_length_has_gaps_inside_and_no_empty_ends() -> None:
    replies = [
        reply(seconds=1.0, scores={"a": scored()}),
        reply(seconds=1.9, scores={"a": lost()}),
        reply(seconds=9.0, scores={"a": lost(), "b": scored()}),
        reply(seconds=None, scores={"a": lost()}),
    ]
    by_length = verdicts.tabulate_by_length(replies)
    assert by_length["labels"] == ["1–2", "2–4", "4–8", "8–16"]
    assert by_length["counts"] == [2, 0, 0, 1]
    assert by_length["shares"] == [[0.5, None, None, 1.0], [None, None, None, 0.0]]
    assert by_length["unknown"] == 1
    assert verdicts.tabulate_by_length([reply(seconds=64.0, scores={"a": scored()})])["labels"] == ["64+"]


@given(st.lists(st.tuples(st.floats(0, 500), st.booleans()), max_size=40))
def test_every_reply_of_known_length_is_in_one_bin(lengths: list[tuple[float, bool]]) -> None:
    replies = [reply(seconds=s, scores={"a": lost() if bad else scored()}) for s, bad in lengths]
    by_length = verdicts.tabulate_by_length(replies)
    assert sum(by_length["counts"]) == len(lengths)
    weighed = zip(by_length["counts"], *by_length["shares"], strict=True) if lengths else []
    assert sum(n * (part or 0) for n, part in weighed) == pytest.approx(sum(bad for _, bad in lengths), abs=1e-3)


def test_rules_without_spread_have_no_histogram_of_it() -> None:
    flat, wide = scored(), scored(spread=0.5)
    spread_histograms = verdicts.build_spread_histograms(
        [reply(scores={"a": flat, "b": wide})], [reply(scores={"a": flat, "b": lost()})]
    )
    assert [histogram["axis"] for histogram in spread_histograms] == ["b"]
    assert (
        spread_histograms[0]["edges"][0] == 0
        and spread_histograms[0]["counts"] == [1, 0]
        and spread_histograms[0]["missing"] == [0, 1]
    )


# --- metrics ---


def test_kinds_of_missing_verdicts_add_up_to_the_whole() -> None:
    kinds = {f"judge/missing_k{n}": n / 100 for n in range(1, 9)}
    rows: list[dict[str, float | None]] = [
        {"step": 1, "judge/missing": 0.36, **kinds},
        {"step": 2, "judge/missing": 0.0},
        {"step": 3},
    ]
    drawn = judges.chart_missing_by_kind(rows)
    columns = {series["label"]: series["ys"] for series in drawn["series"]}
    assert list(columns) == ["k8", "k7", "k6", "k5", "k4", "others", "all"]
    assert sum(ys[0] for label, ys in columns.items() if label != "all") == pytest.approx(0.36)
    assert {ys[1] for ys in columns.values()} == {0.0} and {ys[2] for ys in columns.values()} == {None}


def test_figures_that_were_not_logged_have_no_curve_and_no_fact() -> None:
    rows: list[dict[str, float | None]] = [{"step": 1, "judge/missing": 0.0, "judge/cached": 0.5}]
    assert [panel["title"] for panel in judges.chart_judge_panels({}, rows)] == ["Missing by kind", "From the cache"]
    assert set(judges.summarise_verdicts([], rows).values()) == {0, None}
    assert judges.chart_judge_panels({}, []) == []


def test_every_judge_metric_is_drawn_in_one_section_only(run_dir: Path, section: dict[str, Any]) -> None:
    rows = read.read_metric_rows(run_dir / "metrics.jsonl").rows
    logged = {name for row in rows for name in row if name.startswith("judge/")}
    assert logged == judges.list_judge_metrics(rows)
    others = curves.build_run_curves(rows, [], judges.list_judge_metrics(rows))
    names = {s["name"] for c in others["panels"] + others["more"] for s in c["series"]}
    assert not names & logged
    assert section["facts"]["requests"] == rows[-1]["judge/requests"]


# --- canaries ---


def test_canary_that_is_paid_comes_first_then_what_was_not_judged() -> None:
    rows = judges.tabulate_canaries(
        [
            canary(name="fine"),
            canary(name="was paid", step=0, fate="paid", value=4.0),
            canary(name="was paid", step=20),
            canary(name="lost", fate="unknown", value=None, most=None),
            canary(name="is paid", step=20, fate="paid", value=4.0),
            canary(name="is paid", step=0),
        ]
    )
    assert [row["name"] for row in rows] == ["is paid", "lost", "was paid", "fine"]
    assert (rows[0]["fate"], rows[0]["paid"], rows[0]["checks"]) == ("paid", 1, 2)
    assert (rows[0]["steps"], rows[0]["values"]) == ([0, 20], [1.0, 4.0])
    assert rows[1]["values"] == [None]


def test_check_that_was_made_again_counts_once() -> None:
    (row,) = judges.tabulate_canaries([canary(fate="paid", value=4.0), canary()])
    assert (row["checks"], row["paid"], row["fate"]) == (1, 0, "passed")


# --- the second judge ---


def both(first: float, second: float, prompt: str = "p") -> JudgedReply:
    return reply(prompt_id=prompt, scores={"a": scored(first)}, second={"a": scored(second, judge="k/1")})


def test_second_judge_is_held_against_the_first_where_both_scored() -> None:
    ours, theirs = [1.0, 2.0, 4.0, 5.0], [2.0, 1.0, 3.0, 3.0]
    replies = [both(a, b, f"p{n // 2}") for n, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    replies += [
        reply(scores={"a": scored()}),
        reply(scores={"a": scored()}, second={"a": lost()}),
        reply(scores={"a": lost()}, second={"a": scored()}),
    ]
    (row,) = judges.compare_second_judge(replies, 1.0)
    assert (row["count"], row["asked"], row["missing"], row["ranked"]) == (4, 6, 1, 1)
    assert row["pearson"][0] == pytest.approx(np.corrcoef(ours, theirs)[0, 1])
    assert row["spearman"][0] == -1.0
    assert (row["mae"], row["bias"], row["within_one"]) == (1.25, 0.75, 0.75)
    assert row["judges"] == [["j/1"], ["k/1"]]


@pytest.mark.parametrize("replies", [[both(3.0, 4.0)], [both(3.0, 4.0), both(3.0, 2.0)]])
def test_correlation_that_the_replies_do_not_define_is_none(replies: list[JudgedReply]) -> None:
    (row,) = judges.compare_second_judge(replies, 1.0)
    assert row["pearson"] == [None, None] and row["within_one"] == 1.0


def test_second_judge_that_never_answered_has_a_row_without_figures() -> None:
    (row,) = judges.compare_second_judge([reply(scores={"a": scored()}, second={"a": lost()})], 1.0)
    assert (row["count"], row["missing"], row["mae"], row["judges"]) == (0, 1, None, [[], []])
    assert judges.compare_second_judge([reply(scores={"a": scored()})], 1.0) == []


# --- the log of calls ---


def test_calls_are_counted_per_judge(run_dir: Path, section: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (run_dir / "judge_calls.jsonl").read_text().splitlines()]
    assert {row["model"] for row in section["calls"]} == {MODEL, SECOND}
    for row in section["calls"]:
        own = [line for line in lines if line["judge"] == row["judge"]]
        seconds = [line["seconds"] for line in own]
        assert row["count"] == len(own) > 0
        assert (row["p50"], row["p95"]) == (
            pytest.approx(np.quantile(seconds, 0.5)),
            pytest.approx(np.quantile(seconds, 0.95)),
        )
        assert row["attempts"] == pytest.approx(np.mean([line["attempts"] for line in own]))
        assert row["again"] == pytest.approx(np.mean([line["attempts"] > 1 for line in own]))
        assert row["spent"] == pytest.approx(sum(line["spent"] for line in own))
        assert dict(row["failed"]) == Counter(line["kind"] for line in own if line["kind"])


def test_calls_of_older_runs_tell_neither_attempts_nor_cost(tmp_path: Path) -> None:
    write_lines(tmp_path / "judge_calls.jsonl", [call()])
    (row,) = calls.tabulate_calls(calls.read_call_log(tmp_path / "judge_calls.jsonl"))
    assert (row["attempts"], row["again"], row["spent"], row["failed"]) == (None, None, None, [])


def test_no_log_of_calls_is_no_call_and_no_note(tmp_path: Path) -> None:
    assert calls.read_call_log(tmp_path / "judge_calls.jsonl") == calls.CallLog(())


@pytest.mark.parametrize(
    ("lines", "note"),
    [
        ([call(), "{}", "\x00", call()], "2 lines of judge_calls.jsonl are no calls"),
        ([call(), call(), '{"judge": "x'], "the last line of judge_calls.jsonl is torn"),
        ([call(seconds=-1), call(), call()], "1 lines"),
        ([call(judge="\ud800"), call(), call()], "1 lines"),
        ([call(), call().replace("1.0", "NaN"), call()], "1 lines"),
        (["[" * 100_000, call(), call()], "1 lines"),
    ],
)
def test_lines_that_are_no_calls_are_counted_and_said(tmp_path: Path, lines: list[str], note: str) -> None:
    write_lines(tmp_path / "judge_calls.jsonl", lines)
    call_log = calls.read_call_log(tmp_path / "judge_calls.jsonl")
    assert len(call_log.by_judge[0].seconds) == 2
    assert call_log.note and call_log.note.startswith(note)


def test_endless_line_is_one_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_CALL_LINE_BYTES", 500)
    write_lines(tmp_path / "judge_calls.jsonl", [call(), call(text="x" * 5000), "y" * 500, call()])
    call_log = calls.read_call_log(tmp_path / "judge_calls.jsonl")
    assert len(call_log.by_judge[0].seconds) == 2
    assert call_log.note == "2 lines of judge_calls.jsonl are no calls and were left out"


def test_hostile_names_are_cut_and_their_number_is_bounded(tmp_path: Path) -> None:
    many = [call(judge=f"{n} " + "x" * 1000, kind=f"{n} " + "y" * 1000) for n in range(60)]
    item = [call(judge="j", kind=f"kind {n}") for n in range(60)]
    write_lines(tmp_path / "judge_calls.jsonl", item + many)
    call_log = calls.read_call_log(tmp_path / "judge_calls.jsonl")
    assert len(call_log.by_judge) == calls.MAX_CALL_ROWS
    assert call_log.note == "21 calls of further judges are not shown"
    assert max(len(name) for item in call_log.by_judge for name in (item.judge, *item.failed)) == calls.MAX_NAME_CHARS
    assert (
        call_log.by_judge[0].failed.total() == 60 and len(call_log.by_judge[0].failed) == calls.MAX_FAILURE_KINDS + 1
    )


# --- records ---


def test_records_of_older_runs_are_readable(run_dir: Path) -> None:
    path = next(iter(read.list_rollout_files(run_dir).values()))
    line = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    for name in ("seconds", "judge_latency_s", "second"):
        del line[name]
    line["scores"] = {"a": {"missing": "late"}, "b": {"value": 3.0, "judge": "j/1"}}
    record = RolloutRecord.model_validate(line)
    actual: tuple[VerdictRecord, VerdictRecord] = (record.scores["a"], record.scores["b"])
    assert isinstance(actual[0], MissingScoreRecord) and actual[0].kind == "unknown"
    assert isinstance(actual[1], ScoreRecord) and not actual[1].cached
    assert (record.seconds, record.judge_latency_s, record.second) == (None, None, {})


def test_verdict_is_recorded_with_its_kind_or_its_provenance() -> None:
    from actors.run.record import verdict_to_score

    late = MissingVerdict(judge="j/1", reason="late", kind="deadline", retryable=True)
    assert verdict_to_score(late) == MissingScoreRecord(missing="late", kind="deadline")
    heard = ScoredVerdict(value=2.0, judge="j/1", spread=0.5, why="heard", cached=True)
    assert verdict_to_score(heard) == ScoreRecord(value=2.0, judge="j/1", spread=0.5, why="heard", cached=True)


def test_resume_forgets_the_canaries_of_later_steps(tmp_path: Path) -> None:
    from actors.run.record import RunDirectory

    write_lines(tmp_path / "canaries.jsonl", [canary(step=step).model_dump_json() for step in (0, 20, 40)])
    RunDirectory(tmp_path)._remove_later_files(20, 20)
    assert [line.step for line in read_json_lines(tmp_path / "canaries.jsonl", TypeAdapter(CanaryRecord)).rows] == [
        0,
        20,
    ]


def test_run_of_many_steps_is_read_at_evenly_spaced_ones(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "MAX_VERDICT_STEPS", 3)
    judges_section: dict[str, Any] = judges.build_judges_section(run_dir, [], None)
    assert judges_section["facts"]["verdicts"] == 3 * 8 * 3
    assert judges_section["notes"] == ["verdicts are read from 3 of 8 recorded steps, evenly spaced"]


def test_run_without_anything_has_an_empty_section(tmp_path: Path) -> None:
    judges_section: dict[str, Any] = judges.build_judges_section(tmp_path, [], None)
    lists = ("notes", "verdicts", "panels", "spreads", "calls", "canaries", "second")
    assert [judges_section[name] for name in lists] == [[]] * len(lists)
    assert judges_section["missing"]["share"] is None and judges_section["lengths"]["labels"] == []


def test_tables_are_bounded_whatever_the_files_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "MAX_TABLE_ROWS", 5)
    birds = [canary(name=f"{n} " + "x" * 9999) for n in range(9)]
    write_lines(tmp_path / "canaries.jsonl", [bird.model_dump_json() for bird in birds])
    judges_section: dict[str, Any] = judges.build_judges_section(tmp_path, [], None)
    assert len(judges_section["canaries"]) == 5 and judges_section["notes"] == ["canaries: the first 5 of 9 rows"]
    assert max(len(row["name"]) for row in judges_section["canaries"]) == verdicts.MAX_CELL_CHARS


def test_torn_canaries_are_said(tmp_path: Path) -> None:
    (tmp_path / "canaries.jsonl").write_text(canary().model_dump_json() + '\n{"step": 1')
    judges_section: dict[str, Any] = judges.build_judges_section(tmp_path, [], None)
    assert len(judges_section["canaries"]) == 1 and "line 2, the last, is left out" in judges_section["notes"][0]
