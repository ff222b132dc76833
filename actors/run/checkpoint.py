"""One atomic snapshot of a run: learner shards and driver state, whole or not at all.

    step_000010.tmp/ learner/..., driver.json, ahead.json (staleness 1)
        ->  manifest.json (size, sha256 of every file)  ->  fsync  ->  rename to step_000010/  ->  `latest`

A kill at any moment leaves the older snapshots valid and at most one *.tmp folder, which the next
start removes. Loading checks every file first and names what is wrong; nothing is changed by a refusal.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from actors.errors import RunError, UserError
from actors.run.batch_ahead import PrefetchedBatch
from speech.checkpoints.folder import weight_files

SNAPSHOT_MANIFEST_FILE, PREFETCHED_BATCH_FILE = "manifest.json", "ahead.json"
CHECKPOINT_FORMAT: Literal["wavgate-checkpoint-3"] = "wavgate-checkpoint-3"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverState:
    """All that the driver knows after a step: enough to draw the next prompts and decide the next lambda."""

    step: int
    seed: int
    gate: Mapping[str, Any]
    cursors: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # as ``BatchScheduler.cursors`` has them
    model: str = ""  # fingerprint of the start checkpoint, which the KL terms refer to
    data: str = ""  # digest of the training rows, which the cursors refer to


class SnapshotManifest(BaseModel):
    """manifest.json: size and sha256 of every file of a snapshot, by its path in it."""

    format: Literal["wavgate-checkpoint-3"]
    step: int
    files: dict[str, tuple[int, str]]


def model_fingerprint(path: Path) -> str:
    """Tells start checkpoints apart without reading all of it: size, first and last MiB of each file."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(1 << 20))
            content.seek(max(0, size - (1 << 20)))
            digest.update(content.read())
    return digest.hexdigest()[:16]


def snapshot_folder(run: Path, step: int) -> Path:
    """Where the snapshot of ``step`` lives."""
    return run / "checkpoints" / f"step_{step:06d}"


def save_snapshot(
    run: Path,
    state: DriverState,
    save_learner: Callable[[Path], None],
    keep: int,
    ahead: PrefetchedBatch | None = None,
) -> Path:
    """Write the snapshot of ``state.step``; ``save_learner`` fills a folder.

    Then drop all but the newest ``keep``. RunError: it cannot be written; nothing of it is left.
    """
    final = snapshot_folder(run, state.step)
    unfinished = final.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _write_snapshot_files(unfinished, state, save_learner, ahead)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # of a full disk it is what can be given back
        if not isinstance(error, OSError):
            raise
        rule = "the checkpoint cannot be written" + (", the one before is whole" if list_snapshots(run) else "")
        raise RunError(f"{unfinished}: {rule}: {error.strerror or error}") from error
    if final.exists():  # the same step again after a resume: the new one wins
        shutil.rmtree(final)
    unfinished.rename(final)
    _sync_to_disk(final.parent)
    _point_latest_at(final)
    for old in list_snapshots(run)[:-keep]:
        shutil.rmtree(old)
    return final


def _write_snapshot_files(
    unfinished: Path, state: DriverState, save_learner: Callable[[Path], None], ahead: PrefetchedBatch | None
) -> None:
    """Everything of a snapshot, safe on the disk."""
    (unfinished / "learner").mkdir(parents=True)
    save_learner(unfinished / "learner")
    if ahead is not None:
        (unfinished / PREFETCHED_BATCH_FILE).write_text(json.dumps(asdict(ahead)))
    (unfinished / "driver.json").write_text(json.dumps(asdict(state)))
    files = {str(path.relative_to(unfinished)): _fingerprint_file(path) for path in _list_files(unfinished)}
    manifest = SnapshotManifest(format=CHECKPOINT_FORMAT, step=state.step, files=files)
    (unfinished / SNAPSHOT_MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1))
    for path in [*_list_files(unfinished), *[path for path in unfinished.rglob("*") if path.is_dir()], unfinished]:
        _sync_to_disk(path)


def list_snapshots(run: Path) -> list[Path]:
    """Complete snapshot folders, oldest first."""
    root = run / "checkpoints"
    return (
        sorted(path for path in root.glob("step_*") if path.is_dir() and path.suffix != ".tmp")
        if root.is_dir()
        else []
    )


def remove_unfinished_snapshots(run: Path) -> None:
    """Remove what a killed save left behind."""
    for path in (run / "checkpoints").glob("*.tmp"):
        shutil.rmtree(path)


def check_snapshot(snapshot: Path) -> list[str]:
    """Everything wrong with a snapshot, one line each; empty when it is whole."""
    path = snapshot / SNAPSHOT_MANIFEST_FILE
    if not path.is_file():
        return [f"{path}: missing"]
    try:
        manifest = SnapshotManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        return [f"{path}: not the manifest of a {CHECKPOINT_FORMAT}: {field} {first['msg']}".replace(":  ", ": ")]
    problems = []
    for name, (size, digest) in manifest.files.items():
        file = snapshot / name
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != size:
            problems.append(f"{file}: must have {size} bytes, has {file.stat().st_size}")
        elif _fingerprint_file(file)[1] != digest:
            problems.append(f"{file}: content differs from its sha256 in {SNAPSHOT_MANIFEST_FILE}")
    return problems


def find_newest_snapshot(run: Path) -> tuple[Path, DriverState, list[str]]:
    """The newest whole snapshot, its driver state, and what is wrong with newer ones.

    UserError: none is whole.
    """
    if not run.is_dir():
        raise UserError(f"run.resume: no run directory at {run}")
    candidates = list_snapshots(run)
    if not candidates:
        raise UserError(f"run.resume: {run / 'checkpoints'} holds no checkpoint")
    problems: list[str] = []
    for snapshot in reversed(candidates):
        wrong = check_snapshot(snapshot)
        if not wrong:
            return snapshot, _read_driver_state(snapshot), problems
        problems += wrong
    raise UserError("run.resume: no whole checkpoint: " + "; ".join(problems))


def check_still_newest(snapshot: Path) -> None:
    """UserError: since this was found to be its run's newest whole snapshot, somebody has gone on from it."""
    run = snapshot.parent.parent
    newer = [
        candidate
        for candidate in list_snapshots(run)
        if candidate.name > snapshot.name and not check_snapshot(candidate)
    ]
    if newer or not snapshot.is_dir():
        raise UserError(f"run.resume: {run} has changed since it was looked at: start this command again")


def read_prefetched_batch(snapshot: Path) -> PrefetchedBatch | None:
    """The batch that was sampled before the weights of a whole snapshot were learnt; None: there is none."""
    file = snapshot / PREFETCHED_BATCH_FILE
    return TypeAdapter(PrefetchedBatch).validate_python(json.loads(file.read_bytes())) if file.is_file() else None


def _read_driver_state(snapshot: Path) -> DriverState:
    return DriverState(**json.loads((snapshot / "driver.json").read_text()))


def _list_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != SNAPSHOT_MANIFEST_FILE) + (
        [root / SNAPSHOT_MANIFEST_FILE] if (root / SNAPSHOT_MANIFEST_FILE).is_file() else []
    )


def _fingerprint_file(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _sync_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _point_latest_at(final: Path) -> None:
    pointer = final.parent / "latest.new"
    pointer.write_text(final.name + "\n")
    _sync_to_disk(pointer)
    pointer.rename(final.parent / "latest")
