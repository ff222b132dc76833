"""``wavgate report | data check | export``."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.errors import UserError
from actors.exits import OK
from actors.run import checkpoint
from conf.schema import Config
from report.run import page


def redraw_report(run: Path) -> int:
    """Draw the page again."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run directory (no config.yaml)")
    print(page.write_run_page(run.absolute()))
    return OK


def check_manifests(manifests: Sequence[Path], max_seconds: float) -> int:
    """All problems of manifests, of prompts or of pairs, or what is in them and what they share."""
    from actors.checks.overlap import RowsFile, describe_overlaps
    from speech.data import pairs
    from speech.data.manifest import Problem, read_manifest
    from speech.data.problems import ManifestError, escape_unprintable

    problems: list[Problem] = []
    files: dict[str, RowsFile] = {}
    for manifest in manifests:
        if escape_unprintable(str(manifest)) in files:
            raise UserError(f"{manifest}: must be named once")
        form = pairs.detect_pairs_form(manifest)
        try:
            paired = None if form == "prompts" else pairs.read_pairs(manifest, max_seconds, deep=True)
            rows = paired or read_manifest(manifest, max_seconds, deep=True)
        except ManifestError as error:
            problems += error.problems
            continue
        types = Counter(row.task_type or "of no type" for row in rows)
        summary = ", ".join(f"{name} {count}" for name, count in sorted(types.items()))
        summary = escape_unprintable(f"{manifest}: {len(rows)} rows, no problem; {summary}")
        details = pairs.describe_pairs(paired, form) if paired else _describe_references(manifest, rows, max_seconds)
        print("\n".join([summary, *details]))
        files[escape_unprintable(str(manifest))] = manifest, rows
    if problems:
        raise ManifestError(problems)
    for line in describe_overlaps(files):
        print(line)
    return OK


def _describe_references(manifest: Path, rows: Sequence[Any], max_seconds: float) -> list[str]:
    """Two of them as the recogniser hears them that a run has where no other is set."""
    from actors.checks.references import describe_user_references
    from conf.judging import AsrConfig

    try:
        return describe_user_references(AsrConfig(), manifest, rows, max_seconds)
    except UserError as error:
        return [f"references not heard: {error}"]


def export_checkpoint(run: Path, to: Path | None) -> int:
    """The newest whole checkpoint of a run as a Hugging Face folder, by one learner rank in this process."""
    from actors.checks.prepare import load_usable_family
    from conf.load import read_config

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run directory (no config.yaml)")
    snapshot, state, _ = checkpoint.find_newest_snapshot(run)
    target = to or run / f"export-step{state.step}"
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{target}: must be empty or new")
    config = read_config(run / "config.yaml")
    load_usable_family(config)
    _export_on_one_rank(
        config.model_copy(update={"learner": config.learner.model_copy(update={"ranks": 1})}),
        snapshot,
        target,
    )
    print(target)
    return OK


def _export_on_one_rank(config: Config, snapshot: Path, target: Path) -> None:
    import socket

    import torch

    from learner.ranks import join_process_group, leave_process_group
    from learner.step import Learner

    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    join_process_group(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=config.learner.timeout_s)
    learner = Learner(config, 0, 1)
    learner.load(snapshot / "learner")
    learner.export(target)
    leave_process_group()
