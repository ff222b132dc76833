"""Entry point of a cluster job: ``python -m actors.driver [key=value ...]``, the same as ``wavgate train``.

The loop itself is ``actors/loop.py``.
"""

import sys
from collections.abc import Sequence

from actors.exits import exit_with_line
from actors.train import run_train_command


def main(arguments: Sequence[str]) -> int:
    """Train with these overrides and flags; the exit code."""
    return exit_with_line(lambda: run_train_command(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
