"""What can be typed behind ``wavgate``: every command with its arguments and its help."""

import argparse
from math import inf
from pathlib import Path
from typing import TypeAlias

from actors.train import TRAIN_HELP

CommandParsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
MODEL_HELP = "a checkpoint or a run directory (default: the embedded base)"
OVERRIDES_HELP = "settings as for train: model=NAME model.path=FOLDER model.codec=FOLDER, ..."
SCORE_HELP = """Judge finished replies with the judge of these settings. Each verdict is added to
OUT.verdicts.jsonl as it comes; the same command goes on where it was stopped, and asks again where the judge
failed. At the end OUT.parquet has a row per reply. Fields of the manifest: commands/judge/replies.py."""
STUDY_HELP = """Run every method of a study with every seed, each a run of its own, and draw one page with
intervals and differences (DIR/study.html, .csv). The same command goes on where it was stopped. Fields
of the file: conf/study.py; examples/study.yaml is one."""
COMPARE_HELP = """The page of a study for finished runs, and DIR/listen.html: the same prompts from two sides,
blind, with keyboard votes. The first run's settings are what the others are held against. With --votes: what
several raters said, put together."""
PAIRS_HELP = """Sample n replies per prompt with the model of these settings, judge them, and write the best
and the worst of each prompt as a manifest of pairs. What became of a prompt is added to OUT.journal.jsonl as
soon as it is known; the same command goes on where it was stopped, and asks again where the judge failed.
Utility: half semantic, half acoustic, unless judge.semantic, judge.acoustic or judge.holistic is given."""
CONVERT_HELP = """Write FOLDER/manifest.jsonl with its audio beside it. What cannot be used is dropped,
counted and listed in FOLDER/problems.txt. The same command goes on where it was stopped. Formats, and what
they map to: docs/data.md."""
CALIBRATE_HELP = """Compare the judge with people: Pearson, Spearman within prompts, mean absolute error,
bias, share within one point; and with itself: an API judge scores everything twice, the second time past the
cache, so this costs two passes. Writes a map to people's ratings where that helps (use it with
judge.api.calibration=FILE). Columns of the CSV: commands/judge/ratings.py."""


class VersionAction(argparse.Action):
    """``--version``: worked out only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Say it and end."""
        from actors.run.provenance import format_version_line

        print(format_version_line())
        parser.exit()


def parse_arguments(given: list[str]) -> argparse.Namespace:
    """argparse leaves over a ``key=value`` behind a flag: it belongs to a command that takes overrides."""
    top = build_parser()
    chosen, rest = top.parse_known_args(given)
    if rest and (not hasattr(chosen, "overrides") or any(argument.startswith("-") for argument in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        chosen.overrides += rest
    return chosen


def build_parser() -> argparse.ArgumentParser:
    """All commands; ``train`` takes Hydra-style overrides and is parsed by ``conf.load``."""
    top = argparse.ArgumentParser(prog="wavgate", description="RL post-training for spoken dialogue models")
    top.add_argument("--version", action=VersionAction, nargs=0, help="version and hash of the source, and end")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="a run: key=value ..., resume=RUN, --dry-run", description=TRAIN_HELP)
    _add_study_parsers(commands)
    _add_pairs_parser(commands)
    _add_checkpoint_parsers(commands)
    _add_judge_parsers(commands.add_parser("judge", help="look at the judge: probe, score, calibrate"))
    report = commands.add_parser("report", help="draw RUN/report.html again")
    report.add_argument("run", type=Path)
    _add_data_parsers(commands.add_parser("data", help="manifests: check, convert"))
    commands.add_parser("doctor", help="is this machine ready?")
    return top


def _add_checkpoint_parsers(commands: CommandParsers) -> None:
    evaluate = commands.add_parser("eval", help="judge a checkpoint's greedy replies to a manifest")
    evaluate.add_argument("manifest", nargs="?", help="default: data.test, the embedded test set")
    evaluate.add_argument("--model", type=Path, metavar="FOLDER", help=MODEL_HELP)
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    evaluate.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    say = commands.add_parser("say", help="one prompt in, a spoken reply out")
    say.add_argument("prompt", help="words, or a wav/flac/ogg file")
    say.add_argument("out", type=Path, help="the reply's audio: .wav, .flac or .ogg")
    say.add_argument("--model", type=Path, metavar="FOLDER", help=MODEL_HELP)
    for subparser in (evaluate, say):
        subparser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES_HELP)
    export = commands.add_parser("export", help="write the newest checkpoint of RUN as a Hugging Face folder")
    export.add_argument("run", type=Path)
    export.add_argument("to", type=Path, nargs="?", help="default: RUN/export-stepN")


def _add_pairs_parser(commands: CommandParsers) -> None:
    pairs = commands.add_parser("pairs", help="write a manifest of pairs for DPO", description=PAIRS_HELP)
    pairs.add_argument("--to", type=Path, required=True, metavar="OUT.jsonl", help="the manifest")
    pairs.add_argument("--samples", type=int, metavar="N", help="replies per prompt (default: 8)")
    pairs.add_argument("--manifest", type=Path, metavar="FILE", help="prompts (default: data.train)")
    pairs.add_argument(
        "--limit", type=int, metavar="N", help="only N prompts: those that a run of this seed draws first"
    )
    pairs.add_argument("overrides", nargs="*", metavar="key=value", help="settings as for train")


def _add_study_parsers(commands: CommandParsers) -> None:
    study = commands.add_parser("study", help="methods x seeds from one YAML file", description=STUDY_HELP)
    study.add_argument("file", type=Path, metavar="STUDY.yaml")
    study.add_argument("--to", type=Path, metavar="DIR", help="default: runs/STUDY")
    study.add_argument("--page", action="store_true", help="start nothing: only draw what is there")
    study.add_argument("overrides", nargs="*", metavar="key=value", help="more settings of every run")
    compare = commands.add_parser(
        "compare", help="a study's page for any runs, and blind listening", description=COMPARE_HELP
    )
    compare.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="finished runs")
    compare.add_argument("--to", type=Path, default=Path("compare"), metavar="DIR", help="default: compare")
    compare.add_argument(
        "--listen", nargs=2, metavar=("SIDE", "SIDE"), help="base or a RUN; default: the first two sides"
    )
    compare.add_argument(
        "--pairs", type=int, default=24, metavar="N", help="most pairs to listen to (default: %(default)s)"
    )
    compare.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of pairs and sides")
    compare.add_argument(
        "--votes", type=Path, nargs="+", metavar="FILE", help="instead of runs: votes that the page saved"
    )


def _add_data_parsers(data: argparse.ArgumentParser) -> None:
    commands = data.add_subparsers(dest="what", required=True, metavar="check|convert")
    check = commands.add_parser("check", help="all problems of a manifest as file:line:field")
    check.add_argument(
        "manifests",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="of prompts or of pairs; of several, what they share is told too",
    )
    convert = commands.add_parser("convert", help="a data set of others as a manifest", description=CONVERT_HELP)
    convert.add_argument(
        "sources",
        type=Path,
        nargs="+",
        metavar="SOURCE",
        help=".jsonl, .parquet or .tar files of one kind, or one folder that save_to_disk wrote",
    )
    convert.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="new, or begun before")
    convert.add_argument("--limit", type=int, metavar="N", help="only the first N rows of the source")
    convert.add_argument(
        "--audio",
        type=Path,
        metavar="FOLDER",
        help="where names of clips start (default: the source's folder)",
    )
    for subparser in (check, convert):
        subparser.add_argument(
            "--max-seconds", type=_parse_seconds, default=60.0, help="longest audio of a row (default: %(default)g)"
        )


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0: got {text}")
    return seconds


def _add_judge_parsers(judge: argparse.ArgumentParser) -> None:
    commands = judge.add_subparsers(dest="what", required=True, metavar="probe|score|calibrate")
    probe = commands.add_parser("probe", help="ask the endpoint what it can do; starts nothing else")
    score = commands.add_parser("score", help="judge finished replies", description=SCORE_HELP)
    score.add_argument("manifest", type=Path, help="JSONL: id, question, audio of each reply")
    score.add_argument("--to", type=Path, required=True, metavar="OUT.parquet", help="a row per reply")
    calibrate = commands.add_parser(
        "calibrate", help="hold the judge against people's ratings", description=CALIBRATE_HELP
    )
    calibrate.add_argument("ratings", type=Path, help="CSV: id, prompt_id, question, audio, human[, axis]")
    calibrate.add_argument("--to", type=Path, default=Path("calibration.json"), help="the map (default: %(default)s)")
    calibrate.add_argument(
        "--map", choices=("affine", "isotonic"), help="default: affine below 30 replies, else isotonic"
    )
    for subparser in (probe, score, calibrate):
        subparser.add_argument("overrides", nargs="*", metavar="key=value", help="settings as for train")
