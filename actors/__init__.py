"""Ray and the run: who exists, and who waits for whom. The only folder that imports ray.

Read ``loop.py`` (the loop), ``batches.py`` and ``collect.py`` (a step's replies), ``fleet.py``, ``handles.py`` and
``pool.py`` (the actors), ``judge_pool.py`` and ``api_judge.py``; ``checks/`` is before a run, ``run/`` its directory.
May import all but ``commands``.

Whoever imports this finds the project's other packages beside it, whatever lies in the folder that the command is run
in or on PYTHONPATH: a ``judge.py`` or a ``conf/`` of the user's own is never taken for ours. Then the environment is
set, before anything that reads it is imported.
"""

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(folder for folder in sys.path if folder != _ROOT)]

from rollout.environment import set_environment  # noqa: E402 - the project's own

set_environment()
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would log of a head out of reach, we say in a line
