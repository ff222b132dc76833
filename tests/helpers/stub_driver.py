"""Stands in for ``python -m actors.driver``: makes a finished run at once, or fails as the environment says.

STUB_FAIL=a,b     these cells fail with a line on stderr     STUB_HANG=a   these wait until SIGTERM, then save
STUB_CRASH=a      these die in the middle, after a checkpoint
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from actors.run import checkpoint
from actors.run.checkpoint import DriverState
from conf.load import dump_config, load_config
from tests.helpers.synthetic_study import make_trial


def named(variable: str, name: str) -> bool:
    return name in os.environ.get(variable, "").split(",")


def save(run: Path) -> None:
    state = DriverState(step=4, seed=0, gate={}, cursors={})
    checkpoint.save_snapshot(run, state, lambda folder: (folder / "x").write_text("x") and None, keep=2)  # type: ignore[func-returns-value]


def main(arguments: list[str]) -> int:
    config = load_config(arguments)
    run, resumed = config.run.root / config.run.name, config.run.resume is not None
    with Path(os.environ["STUB_LOG"]).open("a") as log:
        log.write(json.dumps({"name": run.name, "resumed": resumed, "there": run.exists()}) + "\n")
    print(f"run directory: {run}")
    if named("STUB_FAIL", run.name):
        print("a warning\nstopped: 3 of 4 verdicts are missing\n", file=sys.stderr)
        return 1
    if not resumed:
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(dump_config(config))
    if named("STUB_HANG", run.name):
        return hang(run)
    if named("STUB_CRASH", run.name) and not resumed:
        save(run)
        print("LearnerFailed: rank 1 died", file=sys.stderr)
        return 1
    shutil.rmtree(run)
    make_trial(run.parent, config.algo.name, config.run.seed, name=run.name, prompts=6)
    (run / "config.yaml").write_text(dump_config(config))
    return 0


def hang(run: Path) -> int:
    """As the driver: SIGTERM, then a checkpoint, then 130."""

    def save_and_exit(number: int, frame: FrameType | None) -> None:
        save(run)
        print("interrupted", file=sys.stderr)
        sys.exit(130)

    signal.signal(signal.SIGTERM, save_and_exit)
    (run / "waiting").touch()
    time.sleep(3600)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
