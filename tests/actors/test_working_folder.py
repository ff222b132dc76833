"""The folder that a command is run in is data: no module of the user's own is taken for one of the project's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("store", "conf", "speech", "rollout", "judge", "learner", "report")


def write_own(folder: Path) -> Path:
    """A user's modules named as ours; the file that they note their import in."""
    noted = folder / "imported"
    for name in ("judge.py", "rollout.py", "learner.py", "report.py", "speech.py", "conf/__init__.py"):
        file = folder / "own" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(noted)!r}, 'a').write({name!r} + chr(10))\n")
    return noted


@pytest.mark.parametrize("known", ["", "own"], ids=["in the folder", "on PYTHONPATH too"])
def test_a_command_imports_nothing_of_the_folder_it_is_run_in(known: str, tmp_path: Path) -> None:
    noted = write_own(tmp_path)
    code = (
        f"import sys; from commands.cli import main; [__import__(name) for name in {PACKAGES}];"
        " sys.exit(main(['train', '--cfg', 'job']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "own",
        env={**os.environ, "PYTHONPATH": str(tmp_path / known) if known else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not noted.exists(), done.stderr
