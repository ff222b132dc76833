"""Exit codes, and how a command ends: in one line that says what to do, or with a bug's traceback.

0 done; 1 the run could not go on (one line says why); 2 the user's mistake (every problem on its line, no traceback,
nothing written); 130 interrupted. Nothing heavy is imported here.
"""

import sys
from collections.abc import Callable
from errno import EDQUOT, ENOSPC

from actors.run.terminal import keep_output_open

OK, FAILED, USER, INTERRUPTED = 0, 1, 2, 130


def exit_with_line(run: Callable[[], int]) -> int:
    """Run a command; its exit code. What a user can act on is a line on standard error."""
    with keep_output_open():
        try:
            return run()
        except KeyboardInterrupt as error:
            print("\n".join(filter(None, ["interrupted", str(error)])), file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            code = _report_error(error)
            if code is None:
                raise
            return code


def _report_error(error: BaseException) -> int | None:
    """Print what the user can act on; None for a bug, which deserves its traceback."""
    from actors.checks import dependencies

    lacking = dependencies.explain_import_error(error)
    if lacking is not None:
        print(f"wavgate: {lacking}", file=sys.stderr)
        return FAILED
    from actors.errors import RunError, UserError
    from conf.load import ConfigError
    from speech.data.manifest import ManifestError

    if isinstance(error, (UserError, ConfigError, ManifestError)):
        print(error, file=sys.stderr)
        return USER
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        file = error.filename or "a file"
        print(f"stopped: {file}: {error.strerror}: make room", file=sys.stderr)
        return FAILED
    if isinstance(error, RunError):
        print(f"stopped: {error}", file=sys.stderr)
        return FAILED
    if isinstance(error, BaseExceptionGroup):
        return _report_error(error.exceptions[0])
    return None
