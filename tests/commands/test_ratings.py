"""People's ratings: read from CSV however hostile, and held against two passes of a judge."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.errors import RunError, UserError
from commands.judge import ratings
from commands.judge.verbs import calibrate_judge
from judge.llm import calibration
from tests.helpers.finished_replies import asked, hum, in_this_process, manifest, refused, served, settings
from tests.helpers.judge_builders import SCALE
from tests.helpers.judge_server import MODEL, Body, JudgeServer, said


def rated(folder: Path, people: Callable[[int], list[float]], count: int = 8, **more: str) -> Path:
    """Replies as in ``manifest``, each with its raters."""
    manifest(folder, count)
    path = folder / "ratings.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "prompt_id", "question", "audio", "human", "transcript", *more])
        for i in range(count):
            for human in people(i):
                table.writerow([f"r{i}", f"p{i // 2}", "What is six plus six?", f"{i}.wav", human, f"twelve {i}", *more.values()])  # fmt: skip
    return path


def readings(path: Path, judged: tuple[str, ...] = ("semantic", "acoustic")) -> ratings.HumanRatings:
    return ratings.read_ratings(path, SCALE, judged, 30.0)


def test_several_lines_of_a_reply_are_several_raters_of_every_judged_axis(tmp_path: Path) -> None:
    actual = readings(rated(tmp_path, lambda i: [1.0 + i % 5, 3.5], count=2))
    assert actual.of == {axis: {"r0": (1.0, 3.5), "r1": (2.0, 3.5)} for axis in ("semantic", "acoustic")}
    assert [item.id for item in actual.replies.items] == ["r0", "r1"] and not actual.left_out
    named = readings(rated(tmp_path, lambda i: [2.0], axis="acoustic"))
    assert list(named.of) == ["acoustic"]
    whole = readings(rated(tmp_path, lambda i: [2.0, 3.0], count=3, axis="acoustic"), ("semantic", "acoustic"))
    assert whole.of["acoustic"]["r2"] == (2.0, 3.0)
    assert (
        "has no rating of an axis that is judged (semantic)"
        in refused(lambda path: readings(path, ("semantic",)), rated(tmp_path, lambda i: [2.0], axis="holistic"))[0]
    )


HEAD = "id,prompt_id,question,audio,human"
BAD_CSV = {
    "no column": ("id,prompt_id,question,audio", ["r,p,?,a.wav"], ":1:human: column is missing"),
    "typo": (HEAD + ",transcripts", [], ":1:'transcripts': unknown column, did you mean transcript?"),
    "twice": (HEAD + ",human", [], ":1:human: column must not appear twice"),
    "few": (HEAD, ["r,p,?,a.wav"], ":2: must have 5 cells: got 4"),
    "word": (HEAD, ["r,p,?,a.wav,good"], ":2:human: must be a number from 1 to 5: got 'good'"),
    "nan": (HEAD, ["r,p,?,a.wav,nan"], ":2:human: must be a number"),
    "off": (HEAD, ["r,p,?,a.wav,6"], ":2:human: must be a number from 1 to 5: got '6'"),
    "empty": (HEAD, ["r,p,?,a.wav,"], ":2:human: must be a number"),
    "no id": (HEAD, [",p,?,a.wav,3"], ":2:id: key is missing"),
    "no audio": (HEAD, ["r,p,?,none.wav,3"], ":2:audio: "),
    "out": (HEAD, ["r,p,?,../a.wav,3"], ":2:audio: audio path must be relative"),
    "axis": (HEAD + ",axis", ["r,p,?,a.wav,3,both"], ":2:axis: must be one of semantic, acoustic, holistic: got 'both'"),
    "changed": (HEAD, ["r,p,?,a.wav,3", "r,p2,?,a.wav,3"], ":3:prompt_id: must be as on line 2, which has the same id: 'p'"),
    "clips": (HEAD + ",user_audio", ["r,p,?,a.wav,3,a.wav; b.wav"], ":2:user_audio[1]: "),
    "answer": (HEAD + ",answer", ["r,p,?,a.wav,3,four"], ":2:answer.match: key is missing"),
    "quote": (HEAD, ['r,p,?,a.wav,"3"x'], ":2: must be CSV: "),
    "after a break": (HEAD, ['r,p,"a\nb",a.wav,3', "r2,p,?,a.wav,9"], ":4:human: "),
    "nothing": ("", [], ": has no rating of an axis that is judged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_ratings_are_refused_by_file_line_and_column(name: str, tmp_path: Path) -> None:
    hum(tmp_path / "a.wav", 200)
    head, lines, told_ = BAD_CSV[name]
    path = tmp_path / "r.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    assert any(f"{path}{told_}" in item for item in refused(readings, path)), refused(readings, path)


def test_ratings_that_are_not_text_or_too_large_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(HEAD.encode() + b"\n\xff")
    assert refused(readings, path) == [f"{path}: must be UTF-8: invalid start byte"]
    path.write_bytes(b"a" * ((1 << 26) + 1))
    assert refused(readings, path) == [f"{path}: must have at most {1 << 26} bytes"]
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"\nr,p,?,a.wav,3\n")
    hum(tmp_path / "a.wav", 200)
    assert readings(path).of["semantic"] == {"r": (3.0,)}, "a mark of byte order is none of the data"


def opinion(text: str) -> float:
    """Of a reply by the digit in its transcript: people think the same of it, on half the range."""
    return 1.0 + 0.5 * int(text.rpartition("twelve ")[2][0])


def test_calibrate_measures_both_passes_and_writes_a_map_that_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rated(tmp_path, lambda i: [1 + 0.25 * i, 1.2 + 0.25 * i], axis="semantic")
    to = tmp_path / "calibration.json"
    turn: list[int] = []

    def unsteady(body: Body) -> float:
        if "six plus six" not in said(body):
            return 3.0
        turn.append(1)
        return opinion(said(body)) + (0.2 if len(turn) > 8 else 0.0)  # the second pass is kinder

    def scenario(server: JudgeServer) -> None:
        cache = f"judge.api.cache={tmp_path / 'cache.sqlite'}"
        only = settings(server, "judge.acoustic=0", cache)
        assert calibrate_judge(path, to, None, only) == 0
        assert len(asked(server.bodies)) == 16, "two passes over eight replies, the second past the cache"
        shown = capsys.readouterr().out
        name = f"openai({MODEL} semantic/1 logprobs)"
        assert f"semantic: {name}, 8 replies to 4 prompts" in shown
        assert "Pearson                   1.00  [1.00, 1.00]" in shown
        assert "Spearman within a prompt  1.00  [1.00, 1.00]  mean of 4 prompts" in shown
        assert "mean absolute error       0.80" in shown and "bias (judge - people)     +0.77" in shown
        assert "repeat variance           0.0200 of one reading" in shown
        assert "test-retest               Pearson 1.00, mean difference 0.20, 8 replies" in shown
        assert "people among themselves   mean difference 0.20" in shown
        assert "affine, 0.500 * score +0.600: mean absolute error 0.80 -> 0.00" in shown
        actual = calibration.load_calibrations(to).maps["semantic"]
        assert actual.judge == name and (actual.items, actual.prompts) == (8, 4)
        assert isinstance(actual.curve, calibration.AffineCurve)
        assert actual.curve.slope == pytest.approx(0.5) and actual.curve.intercept == pytest.approx(0.6)
        server.bodies.clear()
        calibrate_judge(path, to, "isotonic", only)
        assert len(asked(server.bodies)) == 8, "the first pass is remembered, the second never"
        assert calibration.load_calibrations(to).maps["semantic"].curve.kind == "isotonic"

    served(scenario, JudgeServer(unsteady))


def test_a_map_that_does_not_help_is_not_written_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "c.json"

    def scenario(server: JudgeServer) -> None:
        path = rated(tmp_path, lambda i: [1 + 0.5 * i], axis="semantic")
        server.edit = lambda body, text: "no idea" if "twelve 5" in said(body) else text
        assert calibrate_judge(path, to, None, settings(server, "judge.acoustic=0")) == 0
        shown = capsys.readouterr().out
        assert "map                       none: affine would not help: mean absolute error 0.00 -> 0.00" in shown
        assert "missing                   1 left out (malformed 1)" in shown and "7 replies to 4 prompts" in shown
        assert "written: nothing, no map helps" in shown and not to.exists()

    served(scenario, JudgeServer(lambda body: opinion(said(body)) if "six" in said(body) else 3.0))


def test_a_judge_that_scored_none_of_the_rated_replies_fails_with_the_first_reason(tmp_path: Path) -> None:
    def scenario(server: JudgeServer) -> None:
        path = rated(tmp_path, lambda i: [1 + 0.5 * i], axis="semantic")
        server.edit = lambda body, text: "no idea" if "twelve" in said(body) else text
        with pytest.raises(RunError, match=r"scored none of 8; the first is missing for malformed: .*'no idea'"):
            calibrate_judge(path, tmp_path / "c.json", None, settings(server, "judge.acoustic=0"))

    served(scenario, JudgeServer(lambda body: 3.0))


def test_calibrate_writes_over_nothing_but_a_calibration(tmp_path: Path) -> None:
    path = rated(tmp_path, lambda i: [3.0])
    to = tmp_path / "notes.json"
    to.write_text("{}")
    with pytest.raises(UserError, match=r"notes\.json: not a calibration"):
        calibrate_judge(path, to, None, [])
    with pytest.raises(UserError, match="its folder must exist"):
        calibrate_judge(path, tmp_path / "none" / "c.json", None, [])


def test_a_local_judge_is_measured_in_one_pass_and_gets_no_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("commands.judge.judge_pass.open_local_judges", in_this_process)
    path = rated(tmp_path, lambda i: [5.0 - 4 * (i % 2)], count=4, axis="semantic", match="final", answer="0")
    assert calibrate_judge(path, tmp_path / "c.json", None, ["judge.workers=1", "judge.acoustic=0"]) == 0
    shown = capsys.readouterr().out
    assert "semantic: verifiable/1, 4 replies to 2 prompts" in shown
    assert "test-retest               - (a local rule gives the same score again)" in shown
    assert "none: only an API judge's scores are mapped" in shown
