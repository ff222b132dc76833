"""``wavgate train``: settings in, one run or several, or only a look at what they would take."""

from collections.abc import Sequence
from pathlib import Path

from actors.errors import UserError
from actors.exits import OK

TRAIN_HELP = """key=value overrides (wavgate train algo=sft rollout.group_size=4), resume=RUN, and the flags
--cfg job (print the resolved settings), --dry-run (placement, memory, judge calls),
--multirun (run.seed=0,1,2 or run.seed=range(0,3) or algo=glob(grpo*)),
--config-dir DIR (config groups of your own: DIR/experiment/mine.yaml is experiment=mine)"""


def run_train_command(arguments: Sequence[str]) -> int:
    """A run, several (--multirun), or only a look at one (--cfg job, --dry-run)."""
    from conf.load import dump_config, expand_sweep, load_config

    flags, overrides = _split_flags(arguments)
    if "--help" in flags:
        print("wavgate train: " + TRAIN_HELP)
        return OK
    if not flags & {"--cfg", "--dry-run"}:
        print("checking settings, model and data", flush=True)  # their packages alone take seconds to import
    from actors.checks.dry_run import describe_job
    from actors.checks.prepare import complete_overrides, prepare_job

    if "--cfg" in flags:
        print(dump_config(load_config(complete_overrides(overrides)[0])), end="")
        return OK
    jobs = (
        [prepare_job(job_overrides) for job_overrides in expand_sweep(overrides)]
        if "--multirun" in flags
        else [prepare_job(overrides)]
    )
    if "--dry-run" in flags:
        for job in jobs:
            print(dump_config(job.config) + "\n".join(describe_job(job)))
        return OK
    from actors.launch import run_job

    for job in jobs:
        _print_run_summary(run_job(job).path)
    return OK


def _split_flags(arguments: Sequence[str]) -> tuple[set[str], list[str]]:
    """Split ``--flags`` from overrides. UserError: a flag that does not exist."""
    from conf.overrides import SEARCHPATH_KEY, quote_override

    known = {
        "--dry-run": "--dry-run",
        "--multirun": "--multirun",
        "-m": "--multirun",
        "--help": "--help",
        "-h": "--help",
        "--cfg": "--cfg",
        "-c": "--cfg",
        "--config-dir": "--config-dir",
        "-cd": "--config-dir",
    }
    flags, overrides, remaining = set(), [], list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, _, value = argument.partition("=")
        if name not in known:
            raise UserError(
                f"{argument}: no such flag; train knows --cfg job, --config-dir DIR, --dry-run, --multirun "
                "(settings are key=value)"
            )
        if known[name] in ("--cfg", "--config-dir"):
            value = value or (remaining.pop(0) if remaining else "")
        if known[name] == "--cfg" and value != "job":
            raise UserError("--cfg: must be followed by job")
        if known[name] == "--config-dir":
            if not value:
                raise UserError("--config-dir: must be followed by a folder")
            overrides.append(f"{SEARCHPATH_KEY}=[{quote_override(value)}]")
        flags.add(known[name])
    return flags, overrides


def _print_run_summary(run: Path) -> None:
    from pydantic import TypeAdapter

    from report.records import Evaluation
    from report.run import table
    from store.lines import read_json_lines

    evaluations = read_json_lines(run / "evaluations.jsonl", TypeAdapter(Evaluation)).rows
    print("\n".join(table.format_table(evaluations)))
    print(f"run directory: {run}\nreport:        {run / 'report.html'}")
