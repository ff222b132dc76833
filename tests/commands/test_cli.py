"""The command line: bad input gives one line per problem and exit 2, and nothing is written."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from actors.checks.prepare import complete_overrides
from actors.cluster import count_usable_cores, plan_placement
from actors.errors import UserError
from actors.run import checkpoint
from actors.run.checkpoint import DriverState
from commands.cli import main
from conf.load import load_config
from rollout.environment import CPU_ENV, ENV
from tests.helpers.processes import HANG_S, ended, wait_for

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "tiny_world" / "data"

BAD = {
    "unknown key": (["algo.group_sise=4"], "did you mean rollout.group_size?"),
    "+ typo": (["+algo.gate.alfa=0.5"], "did you mean algo.gate.alpha?"),
    "unknown group": (["algo=gatd"], "algo"),
    "group of one": (["rollout.group_size=1"], "rollout.group_size"),
    "alpha": (["algo.gate.alpha=1.5"], "algo.gate.alpha"),
    "top_p": (["rollout.top_p=0.9"], "rollout.top_p"),
    "ranks": (["learner.ranks=4096"], f"learner.ranks=4096 needs 4096 cores: this machine has {count_usable_cores()}"),
    "engines": (["rollout.workers=4096", "learner.ranks=1"], "rollout.workers=4096"),
    "gpus": (["cluster=gpu1", "learner.ranks=2"], "= 2 GPUs: cluster.nodes=1 x gpus_per_node=1 = 1"),
    "no model": (["model.path=/nowhere"], "model.path: no folder at /nowhere"),
    "no manifest": (["data.train=/nowhere.jsonl"], "/nowhere.jsonl: manifest does not exist"),
    "too few rows": (
        ["rollout.prompts_per_step=100000"],
        "rollout.prompts_per_step=100000 needs as many rows",
    ),
    "no run": (["resume=/nowhere"], "resume"),
    "flag": (["--dryrun"], "--dryrun: no such flag"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_named_on_a_line_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD[name]
    root = [] if any(argument.startswith("resume") for argument in arguments) else [f"run.root={tmp_path}"]
    assert main(["train", *arguments, *root]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_named_and_the_run_is_untouched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    from conf.load import dump_config

    (run / "config.yaml").write_text(
        dump_config(load_config([f"run.root={tmp_path}", "run.name=run", "learner.ranks=1"]))
    )
    state = DriverState(step=1, seed=0, gate={}, cursors={})
    saved = checkpoint.save_snapshot(run, state, lambda folder: (folder / "x").write_text("abc") and None, keep=2)  # type: ignore[func-returns-value]
    (saved / "learner" / "x").write_text("ab")
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    assert main(["train", f"run.resume={run}"]) == 2
    assert "learner/x: must have 3 bytes, has 2" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before


def test_dry_run_shows_placement_memory_and_calls_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--dry-run", "experiment=smoke", "learner.ranks=1", f"run.root={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert (
        "placement: this machine" in shown
        and "memory: about" in shown
        and "judge calls: 12 replies in 3 sampled steps" in shown
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_a_place_in_which_no_folder_can_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run", "experiment=smoke", "learner.ranks=1", "run.root=/proc/x"]) == 2
    assert capsys.readouterr().err.startswith("run.root: no folder can be made in /proc: ")


def test_cfg_prints_the_resolved_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "job", "algo=sft"]) == 0
    assert "fixed_lambda: 0.0" in capsys.readouterr().out


def test_gpu_plans_count_gpus_apart_and_colocated() -> None:
    apart = plan_placement(load_config(["cluster=gpu8"]), 1)
    assert sum(bundle.get("GPU", 0) for bundle in apart.bundles) == 8
    assert apart.bundle_of("rollout", 0) == apart.role("learner").count
    together = plan_placement(load_config(["cluster=gpu1"]), 1)
    assert sum(bundle.get("GPU", 0) for bundle in together.bundles) == 1
    assert together.bundle_of("rollout", 0) == together.bundle_of("learner", 0) == 0
    with pytest.raises(UserError, match="tensor_parallel=1"):
        plan_placement(load_config(["cluster=gpu1", "cluster.tensor_parallel=2"]), 1)


def test_a_ray_job_writes_to_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    overrides, notes = complete_overrides(["algo=sft"])
    assert overrides == ["algo=sft", f"run.root={Path('~/wavgate-runs').expanduser()}"] and len(notes) == 1
    assert complete_overrides(["run.root=/data"]) == (["run.root=/data"], [])


def test_data_check_lists_all_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("not json\n" + '{"id": "a"}\n')
    assert main(["data", "check", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}:1" in error and f"{path}:2:messages" in error


def test_data_check_counts_a_sound_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(DATA / "validation.jsonl")]) == 0
    assert "92 rows, no problem" in capsys.readouterr().out


def test_doctor_says_ok_or_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith("ok") or "->" in line, line


@pytest.mark.parametrize(
    "arguments",
    [
        ["say", "hello", "out.txt"],
        ["report", "/nowhere"],
        ["export", "/nowhere"],
        ["say", "hello", "x.wav", "--model", "/nowhere"],
        ["judge", "score", "/nowhere.jsonl", "--to", "/tmp/out.csv"],
        ["judge", "score", "/nowhere.jsonl", "--to", "/nowhere/out.parquet"],
        ["judge", "calibrate", "/nowhere.csv"],
        ["judge", "calibrate", "/nowhere.csv", "judge.semantic=-1"],
    ],
)
def test_other_commands_refuse_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["judge", "score", "PIPE", "--to", "OUT.parquet"],
        ["judge", "calibrate", "PIPE"],
        ["data", "check", "PIPE"],
        ["data", "convert", "PIPE", "--to", "OUT"],
        ["study", "PIPE"],
        ["train", "--dry-run", "data.train=PIPE"],
        ["eval", "--json", "PIPE"],
    ],
)
def test_a_pipe_in_place_of_a_file_is_named_and_not_waited_for(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "PIPE")
    assert (
        main(
            [argument.replace("PIPE", f"{tmp_path}/PIPE").replace("OUT", f"{tmp_path}/out") for argument in arguments]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert f"{tmp_path}/PIPE" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("given", "command", "overrides"),
    [
        (["score", "m.jsonl", "--to", "o.parquet", "judge=openai", "a=b"], "score", ["judge=openai", "a=b"]),
        (["score", "--to", "o.parquet", "m.jsonl", "a=b"], "score", ["a=b"]),
        (["score", "m.jsonl", "a=b", "--to", "o.parquet", "c=d"], "score", ["a=b", "c=d"]),
        (["calibrate", "r.csv", "--map", "affine", "a=b"], "calibrate", ["a=b"]),
        (["probe", "a=b", "c=d"], "probe", ["a=b", "c=d"]),
    ],
)
def test_settings_may_stand_before_and_behind_the_flags_of_judge(
    given: list[str], command: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from commands.judge import verbs as judging

    collected: list[object] = []
    verbs = {"score": "score_manifest_replies", "calibrate": "calibrate_judge", "probe": "probe_endpoint"}
    monkeypatch.setattr(judging, verbs[command], lambda *arguments: collected.append(arguments[-1]) or 0)
    assert main(["judge", *given]) == 0
    assert collected == [overrides]


@pytest.mark.parametrize(
    "given",
    [
        ["judge"],
        ["judge", "score", "m"],
        ["judge", "score", "m", "--to", "o", "--tp=3"],
        ["report", "r", "s"],
        *(["data", "check", "m", f"--max-seconds={seconds}"] for seconds in ("-1", "0", "nan", "inf", "long")),
    ],
)
def test_what_no_command_takes_is_a_usage_error(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(given)
    assert left.value.code == 2 and "usage: wavgate" in capsys.readouterr().err


MANY = 400  # replies: more than are judged before a signal arrives


def test_judge_score_survives_interrupt_and_kill_with_whole_verdicts_and_no_process_left(
    tmp_path: Path,
) -> None:
    replies = []
    for i in range(MANY):
        tone = 0.2 * np.sin(2 * np.pi * (150 + i / 2) * np.arange(16_000) / 16_000)
        soundfile.write(tmp_path / f"{i}.wav", tone, 16_000)
        replies.append(json.dumps({"id": f"r{i}", "question": "?", "audio": f"{i}.wav"}) + "\n")
    (tmp_path / "m.jsonl").write_text("".join(replies))
    kept, table = tmp_path / "o.verdicts.jsonl", tmp_path / "o.parquet"
    command = [sys.executable, "-m", "commands.cli", "judge", "score", str(tmp_path / "m.jsonl")]

    def stopped(after: int, stop: Callable[[int], None]) -> tuple[int, str]:
        with subprocess.Popen(
            [*command, "--to", str(table), "judge.workers=1"],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE, text=True, start_new_session=True,
            # a background shell has its children ignore SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as running:  # fmt: skip
            wait_for(lambda: kept.exists() and kept.read_bytes().count(b"\n") > after, running)
            judges = psutil.Process(running.pid).children(recursive=True)
            stop(running.pid)
            _, error = running.communicate(timeout=HANG_S)
        assert judges and ended(judges), "a judge process outlived its parent"
        return running.returncode, error

    # As a terminal does it: to the whole group.
    code, error = stopped(2, lambda process: os.killpg(process, signal.SIGINT))
    verdicts = kept.read_bytes().count(b"\n") - 1
    assert code == 130 and "Traceback" not in error and error.endswith("interrupted\n")
    assert f"judge score: {verdicts} of {MANY} verdicts are kept; the same command goes on" in error
    before = kept.read_bytes()
    code, error = stopped(verdicts + 1, lambda process: os.kill(process, signal.SIGKILL))
    assert code == -signal.SIGKILL and not table.exists()
    assert kept.read_bytes().startswith(before), "what was judged is not judged again"
    names = [json.loads(line)["id"] for line in kept.read_text().splitlines()[1:]]
    assert verdicts < len(names) < MANY and len(set(names)) == len(names)


def without_compilers(folder: Path) -> str:
    """A PATH with everything that this one has, but no C or C++ compiler."""
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            if not re.search(r"(^|-)(cc|gcc|g\+\+|c\+\+|clang(\+\+)?|icx|icpx)(-|$)", program.name):
                link = folder / program.name
                link.unlink(missing_ok=True)
                link.symlink_to(program)
    return str(folder)


def test_say_turns_a_prompt_into_speech_on_a_machine_without_a_compiler(tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    command = [sys.executable, "-m", "commands.cli", "say", "what is seven plus five", str(out)]
    environment = {**os.environ, "PATH": without_compilers(tmp_path / "bin")}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    for own in (*ENV, *CPU_ENV):  # the command sets them itself
        environment.pop(own, None)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert soundfile.info(out).samplerate == 16_000


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, commands.cli; print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
