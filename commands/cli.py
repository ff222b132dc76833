"""The command line: ``wavgate train | study | compare | pairs | eval | say | report | export | doctor``,
``wavgate data check | convert`` and ``wavgate judge probe | score | calibrate``.

Nothing heavy is imported until a command needs it. Exit codes: ``actors/exits.py``.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from actors.exits import FAILED, OK, exit_with_line
from commands.arguments import parse_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_with_line(lambda: _run_command(given))


def _run_command(given: list[str]) -> int:
    if given[:1] == ["train"]:
        from actors.train import run_train_command

        return run_train_command(given[1:])
    return _dispatch_command(given)


def _dispatch_command(given: list[str]) -> int:
    chosen = parse_arguments(given)
    if chosen.command == "doctor":
        from commands.doctor import examine_machine

        status = OK
        for finding in examine_machine():
            print(finding, flush=True)  # as it comes: importing everything takes its time
            status = status if finding.ok or not finding.needed else FAILED
        return status
    from commands import run_verbs as commands
    from commands import say_and_eval as alone

    match chosen.command:
        case "report":
            return commands.redraw_report(chosen.run)
        case "export":
            return commands.export_checkpoint(chosen.run, chosen.to)
        case "judge":
            return _run_judge_command(chosen)
        case "study":
            from commands.study import verb as study

            return study.run_study(chosen.file, chosen.to, chosen.overrides, page_only=chosen.page)
        case "compare":
            from commands import compare

            if chosen.votes:
                return compare.print_vote_summary(chosen.votes, chosen.runs)
            return compare.compare_runs(chosen.runs, chosen.to, chosen.listen, chosen.pairs, chosen.seed)
        case "pairs":
            from commands.pairs import verb as pairing

            return pairing.make_preference_pairs(
                chosen.to, chosen.samples, chosen.manifest, chosen.limit, chosen.overrides
            )
        case "data":
            return _run_data_command(chosen)
        case "say":
            return alone.write_spoken_reply(chosen.prompt, chosen.out, chosen.model, chosen.overrides)
        case "eval":
            manifest, settings = chosen.manifest, chosen.overrides
            if manifest is not None and _is_setting(manifest):
                manifest, settings = None, [manifest, *settings]
            place = None if manifest is None else Path(manifest)
            return alone.evaluate_checkpoint(place, chosen.model, chosen.json, chosen.limit, settings)
    raise AssertionError(chosen.command)


def _is_setting(manifest: str) -> bool:
    """Whether what stands where a manifest may is ``key=value``, the manifest left out."""
    return re.match(r"[a-z_]+(\.[a-z_]+)*=", manifest) is not None and not Path(manifest).exists()


def _run_data_command(chosen: argparse.Namespace) -> int:
    from commands import run_verbs as commands

    if chosen.what == "check":
        return commands.check_manifests(chosen.manifests, chosen.max_seconds)
    from commands.convert_data import convert_data_set

    return convert_data_set(chosen.sources, chosen.to, chosen.limit, chosen.audio, chosen.max_seconds)


def _run_judge_command(chosen: argparse.Namespace) -> int:
    from commands.judge import verbs as judging

    match chosen.what:
        case "probe":
            return judging.probe_endpoint(chosen.overrides)
        case "score":
            return judging.score_manifest_replies(chosen.manifest, chosen.to, chosen.overrides)
        case "calibrate":
            return judging.calibrate_judge(chosen.ratings, chosen.to, chosen.map, chosen.overrides)
    raise AssertionError(chosen.what)


if __name__ == "__main__":
    sys.exit(main())
