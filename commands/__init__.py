"""The verbs of ``wavgate``, one file or folder each. Read ``cli.py``, ``arguments.py``, then the verb.

May import everything; nothing imports this. The project's root comes first on the path, as in ``actors``.
"""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(folder for folder in sys.path if folder != _ROOT)]

import actors  # noqa: E402, F401 - sets the environment, before anything that reads it is imported
