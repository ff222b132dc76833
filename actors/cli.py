"""The command line: ``wavgate train | study | compare | pairs | eval | say | report | export | doctor``,
``wavgate data check | convert`` and ``wavgate judge probe | score | calibrate``.

Nothing heavy is imported until a command needs it.
Exit codes: 0 done; 1 the run could not go on (one line says why); 2 the user's mistake (every problem on
its line, no traceback, nothing written); 130 interrupted.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from errno import EDQUOT, ENOSPC
from pathlib import Path

from actors.arguments import parse
from actors.terminal import lasting

OK, FAILED, USER, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    with lasting():
        return _run(list(sys.argv[1:] if arguments is None else arguments))


def _run(given: list[str]) -> int:
    try:
        if given[:1] == ["train"]:
            from actors.commands import train

            return train(given[1:])
        return _other(given)
    except KeyboardInterrupt as error:
        print("\n".join(filter(None, ["interrupted", str(error)])), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        code = _told(error)
        if code is None:
            raise
        return code


def _told(error: BaseException) -> int | None:
    """Print what the user can act on; None for a bug, which deserves its traceback."""
    from actors import dependencies

    lacking = dependencies.explain(error)
    if lacking is not None:
        print(f"wavgate: {lacking}", file=sys.stderr)
        return FAILED
    from actors.errors import RunError, UserError
    from conf.load import ConfigError
    from speech.manifest import ManifestError

    if isinstance(error, (UserError, ConfigError, ManifestError)):
        print(error, file=sys.stderr)
        return USER
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        where = error.filename or "a file"
        print(f"stopped: {where}: {error.strerror}: make room, then go on with the same run", file=sys.stderr)
        return FAILED
    if isinstance(error, RunError):
        print(f"stopped: {error}", file=sys.stderr)
        return FAILED
    if isinstance(error, BaseExceptionGroup):
        return _told(error.exceptions[0])
    return None


def _other(given: list[str]) -> int:
    chosen = parse(given)
    if chosen.command == "doctor":
        from actors.doctor import examine

        status = OK
        for finding in examine():
            print(finding, flush=True)  # as it comes: importing everything takes its time
            status = status if finding.ok or not finding.needed else FAILED
        return status
    from actors import alone, commands

    match chosen.command:
        case "report":
            return commands.report(chosen.run)
        case "export":
            return commands.export(chosen.run, chosen.to)
        case "judge":
            return _judge(chosen)
        case "study":
            from actors import study

            return study.study(chosen.file, chosen.to, chosen.overrides, page_only=chosen.page)
        case "compare":
            from actors import compare

            if chosen.votes:
                return compare.add_up(chosen.votes, chosen.runs)
            return compare.compare(chosen.runs, chosen.to, chosen.listen, chosen.pairs, chosen.seed)
        case "pairs":
            from actors import pairing

            return pairing.pairs(chosen.to, chosen.samples, chosen.manifest, chosen.limit, chosen.overrides)
        case "data":
            return _data(chosen)
        case "say":
            return alone.say(chosen.prompt, chosen.out, chosen.model, chosen.overrides)
        case "eval":
            manifest, settings = chosen.manifest, chosen.overrides
            if manifest is not None and _is_setting(manifest):
                manifest, settings = None, [manifest, *settings]
            place = None if manifest is None else Path(manifest)
            return alone.evaluate(place, chosen.model, chosen.json, chosen.limit, settings)
    raise AssertionError(chosen.command)


def _is_setting(manifest: str) -> bool:
    """Whether what stands where a manifest may is ``key=value``, the manifest left out."""
    return re.match(r"[a-z_]+(\.[a-z_]+)*=", manifest) is not None and not Path(manifest).exists()


def _data(chosen: argparse.Namespace) -> int:
    from actors import commands

    if chosen.what == "check":
        return commands.data_check(chosen.manifests, chosen.max_seconds)
    from actors.convert import data_convert

    return data_convert(chosen.sources, chosen.to, chosen.limit, chosen.audio, chosen.max_seconds)


def _judge(chosen: argparse.Namespace) -> int:
    from actors import judging

    match chosen.what:
        case "probe":
            return judging.probe(chosen.overrides)
        case "score":
            return judging.score(chosen.manifest, chosen.to, chosen.overrides)
        case "calibrate":
            return judging.calibrate(chosen.ratings, chosen.to, chosen.map, chosen.overrides)
    raise AssertionError(chosen.what)


if __name__ == "__main__":
    sys.exit(main())
