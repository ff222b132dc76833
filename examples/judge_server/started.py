"""The example server as a process of its own, for as long as a block lasts."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_S, END_S = 180.0, 20.0  # longest wait for the process


@contextmanager
def started(*options: str, **environment: str) -> Iterator[str]:
    """The base URL of a server on a free port. ``environment``: variables that only the server gets.

    RuntimeError: it does not come up, or does not end well when told to.

    Example:
        with started("--fail", "0.1") as url:
            ...
    """
    command = [sys.executable, "-m", "examples.judge_server", "--port", "0", *options]
    variables = {**os.environ, **environment}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _address(process)
            _end(process)
        finally:
            process.kill()  # nothing where it has ended


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_S)
    if not ready:
        raise RuntimeError(f"no judge server within {START_S:g} s")
    line = process.stdout.readline()
    address_line = re.fullmatch(r"judge: (http://\S+/v1) model \S+\n", line)
    if address_line is None:
        raise RuntimeError(f"no judge server: it said {line!r}")
    return address_line[1]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        code = process.wait(END_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the judge server did not end within {END_S:g} s") from None
    if code:
        raise RuntimeError(f"the judge server ended with {code}")
