"""A command goes on when nobody reads its output any more, and who wants to know is told once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import HANG_S

PRINTS = """
import sys
from pathlib import Path
from actors.run.terminal import call_when_output_lost, keep_output_open
told = []
with keep_output_open():
    call_when_output_lost(lambda: told.append(1))
    print("first", flush=True)
    sys.stdin.readline()
    for number in range(3):
        print("x" * 100_000)
        print("a word of it", file=sys.stderr, flush=True)
    call_when_output_lost(lambda: told.append(2))
Path(sys.argv[1]).write_text(repr(told))
"""


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINTS, str(tmp_path / "told")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout and process.stdin and process.stderr
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.close()
        assert process.stderr.read() == "a word of it\n" * 3
        assert process.wait(HANG_S) == 0
    assert (tmp_path / "told").read_text() == "[1, 2]"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_not_taken_by_other_files(closed: str, tmp_path: Path) -> None:
    file = tmp_path / "written"
    code = f"from actors.run.terminal import keep_output_open\nwith keep_output_open():\n  f = open({str(file)!r}, 'w')\n  print('noise', flush=True)\n  f.write('mine')"
    done = subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], check=False)
    assert done.returncode == 0 and file.read_text() == "mine"


def test_head_cuts_a_command_short_without_a_word() -> None:
    shell = f"set -o pipefail; {sys.executable} -m commands.cli train --cfg job | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run:\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_does_not_fit_on_the_disk_is_an_error_and_not_dropped() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "commands.cli", "train", "--cfg", "job"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "No space left" in done.stderr
