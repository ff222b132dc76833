"""``wavgate judge probe | score | calibrate``: an endpoint, finished replies, people's ratings. Without Ray.

Invariant: everything that is wrong with settings and files is said before the first call is paid for.
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from actors.checks.endpoints import probe_for_run, probe_judge
from actors.checks.references import describe_reference_transcripts, is_user_manifest
from actors.errors import RunError, UserError
from actors.exits import OK
from commands.judge import ledger, ratings, replies, trust
from commands.judge.judge_pass import judge_all_items
from commands.judge.ledger import LedgerHeader, VerdictLedger
from commands.judge.offline import (
    EndpointStopped,
    JudgeWorkerDied,
    OfflineJudges,
    check_vetoes,
    measure_norms,
)
from commands.judge.replies import ReplyManifest
from conf.judging import JudgeConfig
from conf.load import load_config
from conf.overrides import quote_override
from conf.schema import Config, DataConfig
from judge.endpoint.limits import Limiter
from judge.llm import calibration
from judge.llm.build import ProbedEndpoints, limits_from_config
from judge.panel import FLOOR_JUDGE, PANEL_JUDGE
from judge.rules.voice import SpeechNorms, find_voice_norms
from judge.types import MissingVerdict, ReplyJudgement, Scale, ScoredVerdict
from speech.data.lazy_rows import LazyRows
from speech.data.manifest import ManifestError, ManifestRow, read_manifest

LOCAL_RULE_JUDGES = {FLOOR_JUDGE, f"{PANEL_JUDGE}({FLOOR_JUDGE})"}  # who gave a score that no judge was asked for
NO_API_AXIS_MESSAGE = "no axis is judged by api: add judge=openai judge.api.base_url=URL judge.api.model=NAME"


def probe_endpoint(overrides: Sequence[str]) -> int:
    """What the API judge of these settings can do, on one line, and how two of the user's own references are
    heard.
    """
    config = load_config(list(overrides))
    train = config.data.train
    if not config.judge.api_axes and not is_user_manifest(train):
        raise UserError(f"judge probe: {NO_API_AXIS_MESSAGE}")
    rows = read_manifest(train, config.data.max_seconds)
    judged = _iterate_judged_rows(config.data, rows)
    probe_result = probe_for_run(config.judge, config.rollout.group_size, judged)
    print("\n".join(probe_result.describe() if probe_result is not None else [NO_API_AXIS_MESSAGE]))
    if is_user_manifest(train):
        print("\n".join(describe_reference_transcripts(config.judge.asr, train, rows, config.data.max_seconds)))
    return OK


def _iterate_judged_rows(data: DataConfig, train: LazyRows[ManifestRow]) -> Iterator[ManifestRow]:
    """Those that a run of these settings has judged. A manifest is read once it is needed."""
    yield from train
    yield from read_manifest(data.validation, data.max_seconds)[: data.eval_prompts]
    yield from read_manifest(data.test, data.max_seconds)


def score_manifest_replies(manifest: Path, to: Path, overrides: Sequence[str]) -> int:
    """Judge every reply of a manifest that has no lasting verdict yet, then write the table."""
    config = load_config(add_reply_overrides(manifest, overrides)).without_second_opinion()
    if to.suffix != ".parquet" or not to.absolute().parent.is_dir():
        raise UserError(f"--to {to}: must be a .parquet file in a folder that exists")
    if find_spec("pyarrow") is None:
        raise UserError("judge score writes parquet, which needs pyarrow: pip install pyarrow")
    with convert_to_user_errors():
        given = replies.read_reply_manifest(manifest, config.data.max_seconds)
        with VerdictLedger(to.with_suffix(".verdicts.jsonl")) as verdict_ledger:
            voice = _find_voice_norms(config.model.path, given, overrides)
            _judge_open_replies(config.judge, given, voice, verdict_ledger)
            ledger.write_verdict_table(to, ledger.build_table_rows(given.items, verdict_ledger.entries))
            print("\n".join(_format_score_summary(to, given, verdict_ledger)))
            _check_some_scored([verdict_ledger.entries[item.id].reward for item in given.items])
    return OK


def add_reply_overrides(replies: Path, overrides: Sequence[str]) -> list[str]:
    """Finished replies are a user's own, unless ``data=tiny`` is said: another recogniser hears them."""
    if any(override.lstrip("+").partition("=")[0] == "data" for override in overrides):
        return list(overrides)
    data_overrides = [
        f"data.{split}={quote_override(str(replies.absolute()))}" for split in ("train", "validation", "test")
    ]
    return ["data=manifest", *data_overrides, *overrides]


def _find_voice_norms(model: Path, given: ReplyManifest, overrides: Sequence[str]) -> SpeechNorms | None:
    """That of the model where one is named (``data=tiny`` names the embedded one), else of the replies."""
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    named = find_voice_norms(model) if keys & {"model", "model.path", "data"} else None
    return named or measure_norms(given.items, given.folder, given.max_seconds)


def _check_some_scored(verdicts: Sequence[ScoredVerdict | MissingVerdict]) -> None:
    """RunError: the judge gave no score, and why the first has none. A floor by a local rule is no score."""
    missing = [verdict for verdict in verdicts if isinstance(verdict, MissingVerdict)]
    if missing and all(
        isinstance(verdict, MissingVerdict) or verdict.judge in LOCAL_RULE_JUDGES for verdict in verdicts
    ):
        why = f"{missing[0].kind}: {missing[0].reason}"
        raise RunError(f"the judge scored none of {len(verdicts)}; the first is missing for {why}")


def _judge_open_replies(
    config: JudgeConfig, given: ReplyManifest, voice: SpeechNorms | None, verdict_ledger: VerdictLedger
) -> None:
    """Ask about what is open. UserError: the ledger is about something else. RunError: stopped half-way."""
    settings = ledger.hash_judge_settings(config, voice)
    if verdict_ledger.header is not None:
        verdict_ledger.start_or_resume(
            LedgerHeader(manifest=given.sha256, judge=settings, mode=verdict_ledger.header.mode)
        )
    items = verdict_ledger.open_items(given.items)
    if not items:
        return
    probe_result = probe_judge(config, user_audio=any(item.user_audio for item in items))
    mode = probe_result.mode if probe_result is not None else None
    verdict_ledger.start_or_resume(LedgerHeader(manifest=given.sha256, judge=settings, mode=mode))
    check_vetoes(config, items)
    with explain_how_to_resume("judge score", verdict_ledger.entries, len(given.items), "verdicts"):
        judges = _build_judges(config, given, voice)
        limiter = Limiter(limits_from_config(config.api))
        asyncio.run(
            judge_all_items(
                judges,
                items,
                probe_result,
                limiter,
                lambda item, judged: verdict_ledger.append_entry(ledger.make_ledger_entry(item, judged)),
            )
        )


def _format_score_summary(to: Path, given: ReplyManifest, verdict_ledger: VerdictLedger) -> Iterator[str]:
    entries = [verdict_ledger.entries[item.id] for item in given.items]
    rewards = [entry.reward.value for entry in entries if isinstance(entry.reward, ScoredVerdict)]
    mean = f", mean reward {sum(rewards) / len(rewards):.2f}" if rewards else ""
    yield f"{to}: {len(entries)} replies, {len(rewards)} with a reward{mean}"
    kinds = ledger.count_missing_kinds(entries)
    if kinds:
        yield "without: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    again = len(verdict_ledger.open_items(given.items))
    if again:
        yield f"{again} of them because the judge failed: the same command asks about them again"


def calibrate_judge(path: Path, to: Path, kind: calibration.CurveKind | None, overrides: Sequence[str]) -> int:
    """Hold the judge against people and itself, axis by axis, and write the maps that help."""
    loaded = load_config(add_reply_overrides(path, overrides))
    config = loaded.without_second_opinion(calibration=None)  # a map is never fitted on mapped scores
    judge = config.judge
    if not to.absolute().parent.is_dir():
        raise UserError(f"--to {to}: its folder must exist")
    scale = Scale(judge.scale_lo, judge.scale_hi)
    with convert_to_user_errors():
        if to.exists():
            calibration.load_calibrations(to)  # nothing else is written over
        judged = [axis for axis, weight in judge.weights.items() if weight > 0]
        given = ratings.read_ratings(path, scale, judged, config.data.max_seconds)
        check_vetoes(judge, given.replies.items)
        voice = _find_voice_norms(config.model.path, given.replies, overrides)
        spoken = any(item.user_audio for item in given.replies.items)
        probed_judge = probe_judge(judge, user_audio=spoken)
        try:
            first, second = asyncio.run(_judge_twice(config, given.replies, voice, probed_judge))
        except EndpointStopped as error:
            raise RunError(f"{error}; with judge.api.cache the next try pays for nothing twice") from error
        except JudgeWorkerDied as error:
            raise RunError(str(error)) from error
        axis_reports = [
            trust.assess_reliability(
                axis,
                given.of[axis],
                first,
                second if axis in judge.api_axes else None,
                scale=scale,
                repeats=judge.api.repeats if axis in judge.api_axes else 1,
                kind=kind,
                maps=axis in judge.api_axes,
            )
            for axis in given.of
        ]
        print("\n\n".join("\n".join(trust.format_reliability(axis_report)) for axis_report in axis_reports))
        for axis, count in given.left_out.items():
            print(f"\n{axis}: {count} ratings left out: these settings give the axis no weight")
        maps = {axis_report.axis: axis_report.curve for axis_report in axis_reports if axis_report.curve is not None}
        if maps:
            calibration.save_calibrations(to, maps, given.replies.sha256)
    written = f"{to} (use it with judge.api.calibration={to})" if maps else "nothing, no map helps"
    print(f"\nwritten: {written}" + (f"; {to} stays as it was" if not maps and to.exists() else ""))
    if all(axis_report.judge is None for axis_report in axis_reports):
        _check_some_scored([first[name].axes[axis] for axis, rated in given.of.items() for name in rated])
    return OK


async def _judge_twice(
    config: Config, given: ReplyManifest, voice: SpeechNorms | None, probe_result: ProbedEndpoints | None
) -> tuple[dict[str, ReplyJudgement], dict[str, ReplyJudgement]]:
    """Two passes by id; the second of an API judge alone: on the same transcripts and past the cache."""
    first: dict[str, ReplyJudgement] = {}
    second: dict[str, ReplyJudgement] = {}
    limiter = Limiter(limits_from_config(config.judge.api))  # one cap for both
    judges = _build_judges(config.judge, given, voice)
    await judge_all_items(judges, given.items, probe_result, limiter, lambda i, j: first.update({i.id: j}))
    if probe_result is None:
        return first, second
    fresh = config.without_second_opinion(cache=None)
    replies = [
        item.model_copy(update={"transcript": first[item.id].transcript})
        for item in given.items
        if any(isinstance(first[item.id].axes.get(axis), ScoredVerdict) for axis in config.judge.api_axes)
    ]
    judges = _build_judges(fresh.judge, given, voice)
    await judge_all_items(judges, replies, probe_result, limiter, lambda i, j: second.update({i.id: j}))
    return first, second


def _build_judges(config: JudgeConfig, given: ReplyManifest, voice: SpeechNorms | None) -> OfflineJudges:
    return OfflineJudges(
        config=config,
        root=Path.cwd(),
        norms=voice,
        folder=given.folder,
        max_seconds=given.max_seconds,
    )


@contextmanager
def convert_to_user_errors() -> Iterator[None]:
    """What judge/ refuses is the user's to mend; a full disk stops the command."""
    try:
        yield
    except ManifestError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise RunError(str(error)) from error


@contextmanager
def explain_how_to_resume(command: str, ledger: Sized, count: int, what: str) -> Iterator[None]:
    """However it ends, the user learns how many ``what`` are kept and how to go on."""

    def left() -> str:
        return f"{len(ledger)} of {count} {what} are kept; the same command goes on"

    try:
        yield
    except KeyboardInterrupt:
        print(f"{command}: {left()}", file=sys.stderr)
        raise
    except (EndpointStopped, JudgeWorkerDied, RunError, OSError) as error:
        raise RunError(f"{error}: {left()}") from error
