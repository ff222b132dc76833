"""A study goes on: after a failed cell, a crash, an interrupt, a beginning without a checkpoint; it mixes nothing."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from actors.errors import UserError
from actors.run.provenance import hash_source
from commands.cli import main
from commands.study import freeze
from commands.study import verb as study
from commands.study.attempt import AttemptResult, run_command
from commands.study.attempt_log import AttemptLog
from commands.study.cells import plan_study_runs
from conf.keys import CONFIG_GROUPS
from conf.study import BASE_METHOD, MAIN_ARM, StudyError, read_study
from tests.helpers import stub_driver
from tests.helpers.processes import HANG_S, wait_for

ROOT = Path(__file__).parents[2]
STUB = (sys.executable, stub_driver.__file__)
METHODS = "  base: untrained\n  sft: [algo=sft]\n  gated: [algo=gated]\n"


def study_file(folder: Path, methods: str = METHODS, more: str = "", seeds: str = "[0]") -> Path:
    file = folder / "tiny.yaml"
    file.write_text(
        f"name: a tiny study\ncommon: [learner.ranks=1]\nseeds: {seeds}\nmethods:\n{methods}{more}"
        "bootstrap: {draws: 100}\n"
    )
    return file


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cells are the stub's, in this process; the log of what it was asked to run."""

    def here(
        command: Sequence[str],
        logs: Path,
        limit_s: float | None,
        hold: Sequence[int],
        beat: Callable[[], None],
    ) -> AttemptResult:
        if command[:2] != list(STUB):
            return run_command(command, logs, limit_s, hold, beat)
        start, errors = time.monotonic(), io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = stub_driver.main(list(command[2:]))
        parts = errors.getvalue().split("\n")
        why = None if code == 0 else [line for line in parts if line][-1]
        return AttemptResult(code=code, seconds=time.monotonic() - start, error=why)

    monkeypatch.setattr(study, "DRIVER_COMMAND", STUB)
    monkeypatch.setattr(study, "run_command", here)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "asked.jsonl"))
    return tmp_path / "asked.jsonl"


def asked(log: Path) -> list[tuple[str, bool]]:
    """Names of the cells that were started, and whether from a checkpoint."""
    lines = map(json.loads, log.read_text().splitlines() if log.exists() else [])
    return [(line["name"], line["resumed"]) for line in lines]


def cells_csv(to: Path) -> dict[str, dict[str, str]]:
    with (to / "cells.csv").open() as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def test_every_cell_is_a_run_and_the_same_command_skips_what_is_finished(
    tmp_path: Path, stub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, to = study_file(tmp_path, seeds="[0, 1]"), tmp_path / "out here"
    assert main(["study", str(file), "--to", str(to), "run.steps=7"]) == 0
    names = ["sft-seed0", "gated-seed0", "sft-seed1", "gated-seed1"]
    assert asked(stub) == [(name, False) for name in names], "seed by seed"
    shown = capsys.readouterr().out
    assert "[1/4] sft-seed0" in shown and ", left about" in shown and f"page: {to / 'study.html'}" in shown
    written = {
        "study.html",
        "study.csv",
        "cells.csv",
        "study.yaml",
        "versions.json",
        "cells.jsonl",
    }
    assert written <= {path.name for path in to.iterdir()}
    rows = cells_csv(to)
    assert {name: row["state"] for name, row in rows.items()} == dict.fromkeys(names, "finished")
    assert all(float(row["wall_s"]) > 0 and row["iq"] for row in rows.values())
    assert "run.steps=7" in (to / "study.yaml").read_text(), "what was said on the command line is kept"

    assert main(["study", str(to / "study.yaml"), "--to", str(to)]) == 0
    assert len(asked(stub)) == 4 and "4 of 4 cells are finished already" in capsys.readouterr().out
    with pytest.raises(StudyError, match=r"gated-seed0: run\.steps was 7, is 60: choose another --to"):
        study.run_study(file, to, [])
    assert len(asked(stub)) == 4, "nothing is run where something changed"


def test_a_failed_cell_is_listed_and_the_others_go_on_and_it_is_tried_again(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, to = study_file(tmp_path), tmp_path / "out"
    monkeypatch.setenv("STUB_FAIL", "sft-seed0")
    assert main(["study", str(file), "--to", str(to)]) == 1
    assert asked(stub) == [("sft-seed0", False), ("gated-seed0", False)]
    assert "failed" in capsys.readouterr().out
    row = cells_csv(to)["sft-seed0"]
    assert (row["state"], row["detail"], row["iq"]) == ("failed", "stopped: 3 of 4 verdicts are missing", "")
    assert "1 of 2 cells failed: sft-seed0" in (to / "study.html").read_text()
    monkeypatch.delenv("STUB_FAIL")
    assert main(["study", str(file), "--to", str(to)]) == 0
    assert asked(stub)[2:] == [("sft-seed0", False)]


def test_a_crashed_cell_resumes_from_its_checkpoint_and_one_without_begins_again(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, to = study_file(tmp_path), tmp_path / "it's out, = here"
    (to / "runs" / "gated-seed0").mkdir(parents=True)
    (to / "runs" / "gated-seed0" / "metrics.jsonl").touch()
    monkeypatch.setenv("STUB_CRASH", "sft-seed0")
    assert main(["study", str(file), "--to", str(to)]) == 1
    assert cells_csv(to)["sft-seed0"]["detail"] == "LearnerFailed: rank 1 died"
    assert (to / "abandoned" / "gated-seed0" / "metrics.jsonl").exists(), "nothing is thrown away"
    first = float(cells_csv(to)["sft-seed0"]["wall_s"])
    assert main(["study", str(file), "--to", str(to)]) == 0
    assert asked(stub) == [("sft-seed0", False), ("gated-seed0", False), ("sft-seed0", True)]
    assert float(cells_csv(to)["sft-seed0"]["wall_s"]) > first, "both parts of the run"


def test_an_interrupt_stops_the_running_cell_cleanly_and_the_study_goes_on_from_there(
    tmp_path: Path, stub: Path
) -> None:
    file, to = study_file(tmp_path), tmp_path / "out"
    code = (
        "import sys; from commands.study import verb as study; from commands.cli import main; "
        f"study.DRIVER_COMMAND = {STUB!r}; sys.exit(main(['study', {str(file)!r}, '--to', {str(to)!r}]))"
    )
    environment = {**os.environ, "STUB_HANG": "sft-seed0", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        wait_for((to / "runs" / "sft-seed0" / "waiting").exists, running)
        second = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert second.returncode == 2 and "is at work there" in second.stderr, "never two at once"
        running.send_signal(signal.SIGTERM)
        out, error = running.communicate(timeout=HANG_S)
    assert running.returncode == 130 and "Traceback" not in error
    assert "interrupted" in out and asked(stub) == [("sft-seed0", False)]
    assert (to / "runs" / "sft-seed0" / "checkpoints" / "latest").exists(), "it was asked, not killed"
    assert study.run_study(file, to, [], page_only=True) == 1
    states = {name: row["state"] for name, row in cells_csv(to).items()}
    assert states == {"sft-seed0": "stopped", "gated-seed0": "waiting"}
    assert study.run_study(file, to, []) == 0
    assert asked(stub)[1:] == [("sft-seed0", True), ("gated-seed0", False)]


PAIRS = (
    "  base: untrained\n  gated: [algo=gated]\n  dpo: [algo=sft, data.train=@pairs]\n",
    "prepare: {pairs: {each: study, arguments: [rollout.group_size=8]}}\n",
)
MAKES = "import sys; to = sys.argv[sys.argv.index('--to') + 1]; open(to, 'w').write(' '.join(sys.argv[1:]))"


def test_what_cells_need_is_made_once_before_them(tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, to = study_file(tmp_path, *PAIRS, seeds="[3, 4]"), tmp_path / "out"
    monkeypatch.setattr(study, "CLI_COMMAND", (sys.executable, "-c", MAKES))
    assert study.run_study(file, to, []) == 0
    made = to / "prepared" / "pairs.jsonl"
    expected = f"pairs --to {made} learner.ranks=1 rollout.group_size=8 run.seed=3"
    assert made.read_text() == expected
    assert f"data.train: {made}".split(": ")[1] in (to / "runs" / "dpo-seed4" / "config.yaml").read_text()
    file.write_text(file.read_text().replace("group_size=8", "group_size=6"))
    with pytest.raises(StudyError, match=r"prepare\.pairs: was `pairs --to .*group_size=8"):
        study.run_study(file, to, [])


def test_a_prepared_file_is_a_row_of_the_cells_with_its_time_and_tokens(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = "import os, json; os.makedirs(to[:-6] + '.files'); json.dump({'sampled_tokens': 4321}, open(to[:-6] + '.files/summary.json', 'w'))"  # fmt: skip
    file, to = study_file(tmp_path, *PAIRS, seeds="[3, 4]"), tmp_path / "out"
    monkeypatch.setattr(study, "CLI_COMMAND", (sys.executable, "-c", f"{MAKES}; {summary}"))
    assert study.run_study(file, to, []) == 0
    row = cells_csv(to)["pairs"]
    assert (row["state"], row["method"], row["sampled_tokens"]) == ("finished", "for dpo", "4321")
    assert float(row["wall_s"]) > 0
    assert "dpo: all seeds train on the one file pairs" in (to / "study.html").read_text()


def test_a_prepared_file_has_a_time_limit_of_its_own(tmp_path: Path) -> None:
    methods, prepare = PAIRS
    file = study_file(tmp_path, methods, prepare.replace("each", "minutes: 7, each"))
    cells = plan_study_runs(read_study(file), file, tmp_path / "out")
    assert {need.minutes for cell in cells for need in cell.needs} == {7}


def test_a_study_goes_on_with_the_code_it_was_begun_with_and_with_no_other(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, to = study_file(tmp_path), tmp_path / "out"
    monkeypatch.setenv("STUB_FAIL", "sft-seed0")
    assert main(["study", str(file), "--to", str(to)]) == 1
    begun = json.loads((to / "study.json").read_text())
    assert begun["source"] == hash_source()
    monkeypatch.setattr(freeze, "collect_versions", lambda: {"source": "f" * 12, "commit": "c" * 40})
    capsys.readouterr()
    assert main(["study", str(file), "--to", str(to)]) == 2
    error = capsys.readouterr().err
    assert f"was begun with source {begun['source']}, this is {'f' * 12}" in error
    assert f"git checkout {begun['commit']}" in error and len(asked(stub)) == 2
    assert main(["study", str(file), "--to", str(to), "--page"]) == 1, "drawing runs nothing"
    (to / "study.json").write_text("{}")
    assert main(["study", str(file), "--to", str(to)]) == 2
    assert "study.json: must be what a study wrote at its first start" in capsys.readouterr().err


def test_an_attempt_that_ran_when_the_study_was_killed_is_counted_up_to_its_last_beat(tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    log = AttemptLog(file)
    log.begin("a", fresh=True, arguments=["x=1"])
    log.touch_running()
    running = tmp_path / "running.json"
    started = json.loads(running.read_text())["started"]
    os.utime(running, (started + 50, started + 50))
    again = AttemptLog(file)
    again.recover()
    last = again.last("a")
    assert last is not None and (last.error, last.arguments) == ("the study was killed", ("x=1",))
    assert again.wall_s("a") == pytest.approx(50, abs=0.01) and not running.exists()
    again.begin("a", fresh=False, arguments=())
    again.record_end("a", AttemptResult(code=0, seconds=7.0, error=None), fresh=False, arguments=())
    again.recover()
    assert again.wall_s("a") == pytest.approx(57, abs=0.01) and len(again.read_attempts("a")) == 2
    running.write_text("{")
    with pytest.raises(UserError, match=r"running\.json: must be what a study wrote"):
        again.recover()


def test_it_is_said_now_and_then_that_a_process_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.study.attempt.CHILD_POLL_INTERVAL_S", 0.05)
    heard = tmp_path / "heard"
    heard.touch()

    def beat() -> None:
        heard.write_text(heard.read_text() + "x")

    waiting = f"import pathlib, time\nwhile pathlib.Path({str(heard)!r}).stat().st_size < 3: time.sleep(0.01)"
    assert run_command([sys.executable, "-c", waiting], tmp_path / "cell", beat=beat).error is None


def test_cells_whose_file_cannot_be_made_fail_with_its_reason_and_the_others_go_on(
    tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, to = study_file(tmp_path, *PAIRS, seeds="[0, 1]"), tmp_path / "out"
    monkeypatch.setattr(study, "CLI_COMMAND", (sys.executable, "-c", "import sys; sys.exit('no replies differ')"))
    assert study.run_study(file, to, []) == 1
    assert [name for name, _ in asked(stub)] == ["gated-seed0", "gated-seed1"]
    rows = cells_csv(to)
    assert {rows[f"dpo-seed{seed}"]["detail"] for seed in (0, 1)} == {"needs pairs: no replies differ"}


def test_a_cell_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(3600)"]
    ended = run_command(sleeper, tmp_path / "logs" / "cell", limit_s=0.5)
    assert ended.error == "took longer than 0.5 s and was stopped" and not ended.interrupted


def test_the_last_line_of_this_attempt_is_the_error_and_all_output_is_kept(tmp_path: Path) -> None:
    def failing(message: str) -> list[str]:
        return [sys.executable, "-c", f"import sys; sys.stderr.write({message!r}); sys.exit(3)"]

    assert run_command(failing("one\ntwo\n\n"), tmp_path / "cell").error == "two"
    assert run_command(failing(""), tmp_path / "cell").error == "ended with 3", "not the line of the attempt before"
    killed = "import os, signal; print('begun', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    assert run_command([sys.executable, "-c", killed], tmp_path / "cell").error == "killed by SIGKILL"
    assert run_command([sys.executable, "-c", "print('done')"], tmp_path / "cell").error is None
    assert (tmp_path / "cell.log").read_text() == "begun\ndone\n"


def test_a_torn_line_of_the_attempts_is_cut_off_and_another_bad_one_is_named(tmp_path: Path) -> None:
    log, file = AttemptLog(tmp_path / "cells.jsonl"), tmp_path / "cells.jsonl"
    well = AttemptResult(code=0, seconds=1.0, error=None)
    log.record_end("a", well, fresh=True, arguments=())
    with file.open("a") as torn:
        torn.write('{"name": "b", "en')
    log.record_end("b", well, fresh=True, arguments=())
    assert log.wall_s("a") == log.wall_s("b") == 1.0 and len(file.read_text().splitlines()) == 2
    file.write_text("{}\n" + file.read_text())
    with pytest.raises(UserError, match=r"cells.jsonl:1: name: "):
        log.last("a")


BAD = {
    "not a mapping": ("[]", "must be a mapping with name, seeds and methods (got [])"),
    "no seeds": ("name: a\nmethods: {gated: []}", "seeds: must be set"),
    "typo": ("name: a\nseeds: [0]\nmethod: {}\nmethods: {gated: []}", "method: unknown field; there are name, common"),
    "twice": ("name: a\nname: b", "line 1: name stands twice"),
    "same seeds": ("name: a\nseeds: [1, 1]\nmethods: {gated: []}", "seeds: must differ from each other (got [1, 1])"),
    "not a list": ("name: a\nseeds: [0]\nmethods: {gated: algo=gated}", "methods.gated: must be a list (got algo=gated)"),
    "trained base": ("name: a\nseeds: [0]\nmethods: {base: [], gated: []}", "methods.base: base alone must be untrained"),
    "no baseline": ("name: a\nseeds: [0]\nmethods: {sft: []}", "baseline: must be one of sft (got gated)"),
    "arm": (
        "name: a\nseeds: [0]\nmethods: {gated: []}\narms: {x: {overrides: [run.steps=1], methods: [sft]}}",
        "arms.x.methods: must be of gated (got sft)",
    ),
    "a file called as a cell": (
        "name: a\nseeds: [0]\nmethods: {gated: [], x: [data.train=@x]}\nprepare: {x: {each: seed}}",
        "prepare: a cell is called x-seed0 too: choose another name",
    ),
    "key": ("name: a\nseeds: [0]\nmethods: {gated: [algo.gate.alfa=1]}", "methods.gated: algo.gate.alfa: unknown key; did you mean"),
    "value": ("name: a\nseeds: [0]\nmethods: {gated: [run.steps=0]}", "methods.gated: run.steps: must be greater than or equal to 1"),
    "own": ("name: a\nseeds: [0]\nmethods: {gated: [run.seed=3]}", "methods.gated: run.seed: is decided by the study"),
    "file": ("name: a\nseeds: [0]\nmethods: {gated: [data.train=@x]}", "methods.gated: data.train: @x must be one of prepare, which has nothing"),
    "names": (
        "name: a\nseeds: [0]\nmethods: {gated: [], x-gated: []}\narms: {x: {overrides: [run.steps=1], methods: [gated]}}",
        "methods: two cells would be called x-gated-seed0",
    ),
    "arm value": (
        "name: a\nseeds: [0]\nmethods: {gated: []}\narms: {x: {overrides: [run.step=1], methods: [gated]}}",
        "arms.x, gated: run.step: unknown key; did you mean run.steps?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_named_with_its_place_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD[name]
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert main(["study", str(file), "--to", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{file}: " in error and message in error and "Traceback" not in error
    assert list(tmp_path.iterdir()) == [file]


def test_a_study_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: must be a readable file" in capsys.readouterr().err


def test_arms_come_after_the_methods_settings_and_may_have_seeds_of_their_own(tmp_path: Path) -> None:
    arms = "arms: {few: {overrides: [rollout.group_size=2], methods: [gated], seeds: [5]}}\n"
    file = study_file(tmp_path, "  gated: [algo=gated, rollout.group_size=6]\n", arms)
    cells = plan_study_runs(read_study(file), file, tmp_path / "out")
    assert [(cell.name, cell.config.rollout.group_size) for cell in cells] == [
        ("gated-seed0", 6),
        ("few-gated-seed5", 2),
    ]
    assert all(cell.config.run.name == cell.name and cell.config.run.seed == cell.seed for cell in cells)


def test_the_shipped_study_has_every_method_three_seeds_and_the_noisy_judges(tmp_path: Path) -> None:
    file = ROOT / "examples" / "study.yaml"
    settings = read_study(file)
    cells = plan_study_runs(settings, file, tmp_path)
    assert set(settings.methods) == {BASE_METHOD, *CONFIG_GROUPS["algo"]}
    assert {cell.seed for cell in cells} == {0, 1, 2} and len(cells) == 3 * (12 + 2 * 2 + 2) == 54
    assert all(cell.config.algo.name == cell.method for cell in cells)
    noisy = {(cell.arm, cell.config.judge.noise, cell.config.judge.readings) for cell in cells}
    assert noisy == {(MAIN_ARM, 0.0, 1), ("noise0.5", 0.5, 2), ("noise1.0", 1.0, 2), ("anchored", 0.0, 1)}
    weights = {(cell.arm, cell.config.algo.fixed_lambda) for cell in cells if cell.needs}
    assert weights == {(MAIN_ARM, 1.0), ("anchored", 0.5)}
    assert {cell.method for cell in cells if cell.needs} == {"dpo_all", "dpo_text"}
    stages = next(cell.config for cell in cells if cell.method == "two_stage")
    assert stages.algo.sft_steps < stages.run.steps
