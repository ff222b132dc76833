"""What each command of ``wavgate`` does, once its arguments are parsed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from actors import checkpoint
from actors.errors import UserError
from conf.schema import Config
from report import page, table
from report.read import lines
from report.records import Evaluation

OK = 0


def train(arguments: Sequence[str]) -> int:
    """A run, several (--multirun), or only a look at one (--cfg job, --dry-run)."""
    from conf.load import dump, load, sweep

    flags, overrides = _flags(arguments)
    if "--help" in flags:
        from actors.cli import TRAIN_HELP

        print("wavgate train: " + TRAIN_HELP)
        return OK
    if not flags & {"--cfg", "--dry-run"}:
        print("checking settings, model and data", flush=True)  # their packages alone take seconds to import
    from actors.prepare import dry_run, overrides_of, prepare

    if "--cfg" in flags:
        print(dump(load(overrides_of(overrides)[0])), end="")
        return OK
    jobs = [prepare(one) for one in sweep(overrides)] if "--multirun" in flags else [prepare(overrides)]
    if "--dry-run" in flags:
        for job in jobs:
            print(dump(job.config) + "\n".join(dry_run(job)))
        return OK
    from actors.driver import run

    for job in jobs:
        _closing(run(job).path)
    return OK


def _flags(arguments: Sequence[str]) -> tuple[set[str], list[str]]:
    """Split ``--flags`` from overrides. UserError: a flag that does not exist."""
    from conf.overrides import FOLDERS, quoted

    known = {
        "--dry-run": "--dry-run",
        "--multirun": "--multirun",
        "-m": "--multirun",
        "--help": "--help",
        "-h": "--help",
        "--cfg": "--cfg",
        "-c": "--cfg",
        "--config-dir": "--config-dir",
        "-cd": "--config-dir",
    }
    flags, overrides, rest = set(), [], list(arguments)
    while rest:
        one = rest.pop(0)
        if not one.startswith("-"):
            overrides.append(one)
            continue
        name, _, value = one.partition("=")
        if name not in known:
            raise UserError(
                f"{one}: no such flag; train knows --cfg job, --config-dir DIR, --dry-run, --multirun "
                "(settings are key=value)"
            )
        if known[name] in ("--cfg", "--config-dir"):
            value = value or (rest.pop(0) if rest else "")
        if known[name] == "--cfg" and value != "job":
            raise UserError("--cfg: must be followed by job")
        if known[name] == "--config-dir":
            if not value:
                raise UserError("--config-dir: must be followed by a folder")
            overrides.append(f"{FOLDERS}=[{quoted(value)}]")
        flags.add(known[name])
    return flags, overrides


def _closing(run: Path) -> None:
    evaluations = lines(run / "evaluations.jsonl", TypeAdapter(Evaluation)).rows
    print("\n".join(table.lines(evaluations)))
    print(f"run directory: {run}\nreport:        {run / 'report.html'}")


def report(run: Path) -> int:
    """Draw the page again."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run directory (no config.yaml)")
    print(page.build(run.absolute()))
    return OK


def data_check(manifests: Sequence[Path], max_seconds: float) -> int:
    """All problems of manifests, of prompts or of pairs, or what is in them and what they share."""
    from actors.overlap import File, overlaps
    from speech import pairs
    from speech.manifest import Problem, read
    from speech.problems import ManifestError, printable

    problems: list[Problem] = []
    files: dict[str, File] = {}
    for manifest in manifests:
        if printable(str(manifest)) in files:
            raise UserError(f"{manifest}: must be named once")
        form = pairs.form_of(manifest)
        try:
            paired = None if form == "prompts" else pairs.read(manifest, max_seconds, deep=True)
            rows = paired or read(manifest, max_seconds, deep=True)
        except ManifestError as error:
            problems += error.problems
            continue
        types = Counter(row.task_type or "of no type" for row in rows)
        told = ", ".join(f"{name} {count}" for name, count in sorted(types.items()))
        told = printable(f"{manifest}: {len(rows)} rows, no problem; {told}")
        more = pairs.described(paired, form) if paired else _references(manifest, rows, max_seconds)
        print("\n".join([told, *more]))
        files[printable(str(manifest))] = manifest, rows
    if problems:
        raise ManifestError(problems)
    for line in overlaps(files):
        print(line)
    return OK


def _references(manifest: Path, rows: Sequence[Any], max_seconds: float) -> list[str]:
    """Two of them as the recogniser hears them that a run has where no other is set."""
    from actors.references import heard, own
    from conf.judging import AsrConfig

    try:
        return heard(AsrConfig(), manifest, rows, max_seconds) if own(manifest) else []
    except UserError as error:
        return [f"references not heard: {error}"]


def export(run: Path, to: Path | None) -> int:
    """The newest whole checkpoint of a run as a Hugging Face folder, by one learner rank in this process."""
    from actors.prepare import usable_model
    from conf.load import read

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run directory (no config.yaml)")
    snapshot, state, _ = checkpoint.newest(run)
    target = to or run / f"export-step{state.step}"
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: must be empty or new")
    config = read(run / "config.yaml")
    usable_model(config)
    _export(
        config.model_copy(update={"learner": config.learner.model_copy(update={"ranks": 1})}),
        snapshot,
        target,
    )
    print(target)
    return OK


def _export(config: Config, snapshot: Path, target: Path) -> None:
    import socket

    import torch

    from learner.ranks import connect, disconnect
    from learner.step import Learner

    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    connect(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=config.learner.timeout_s)
    learner = Learner(config, 0, 1)
    learner.load(snapshot / "learner")
    learner.export(target)
    disconnect()
