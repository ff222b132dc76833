"""``wavgate judge probe | score | calibrate``: an endpoint, finished replies, people's ratings. Without Ray.

Invariant: everything that is wrong with settings and files is said before the first call is paid for.
"""

import asyncio
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actors.errors import RunError, UserError
from actors.judge_pass import judge_all
from actors.references import heard_by, own
from conf.endpoints import SecondConfig
from conf.judging import JudgeConfig
from conf.load import load
from conf.overrides import quoted
from conf.schema import Config
from judge import calibration, ledger, ratings, replies, trust
from judge.api import Probed, limits_of, probed
from judge.ledger import Header, Ledger
from judge.limits import Limiter
from judge.offline import (
    Judges,
    Stopped,
    WorkerDied,
    check_vetoes,
    norms_in,
)
from judge.panel import FLOOR, JUDGE
from judge.replies import Replies
from judge.types import Judged, Missing, Scale, Scored
from judge.voice import SpeechNorms, norms_of
from speech.manifest import ManifestError, Row, asks_aloud, read
from speech.rows import Rows

OK = 0
BY_RULE = {FLOOR, f"{JUDGE}({FLOOR})"}  # who gave a score that no judge was asked for
NO_API = "no axis is judged by api: add judge=openai judge.api.base_url=URL judge.api.model=NAME"


def probe(overrides: Sequence[str]) -> int:
    """What the API judge of these settings can do, on one line, and how two of the user's own references are
    heard.
    """
    config = load(list(overrides))
    train = config.data.train
    if not config.judge.api_axes and not own(train):
        raise UserError(f"judge probe: {NO_API}")
    rows = read(train, config.data.max_seconds)
    found = probe_run(config, _prompts(config, rows))
    print("\n".join(found.describe() if found is not None else [NO_API]))
    if own(train):
        print("\n".join(heard_by(config, train, rows)))
    return OK


def _prompts(config: Config, train: Rows[Row]) -> Iterator[Row]:
    """Those that a run of these settings has judged. A manifest is read once it is needed."""
    yield from train
    yield from read(config.data.validation, config.data.max_seconds)[: config.data.eval_prompts]
    yield from read(config.data.test, config.data.max_seconds)


def score(manifest: Path, to: Path, overrides: Sequence[str]) -> int:
    """Judge every reply of a manifest that has no lasting verdict yet, then write the table."""
    config = _alone(load(settings_for(manifest, overrides)))
    if to.suffix != ".parquet" or not to.absolute().parent.is_dir():
        raise UserError(f"--to {to}: must be a .parquet file in a folder that exists")
    if find_spec("pyarrow") is None:
        raise UserError("judge score writes parquet, which needs pyarrow: pip install pyarrow")
    with users_mistakes():
        given = replies.read(manifest, config.data.max_seconds)
        with Ledger(to.with_suffix(".verdicts.jsonl")) as kept:
            _complete(config, given, _voice(config, given, overrides), kept)
            ledger.write_table(to, ledger.rows(given.items, kept.entries))
            print("\n".join(_summary(to, given, kept)))
            _must_have_scored([kept.entries[item.id].reward for item in given.items])
    return OK


def settings_for(replies: Path, overrides: Sequence[str]) -> list[str]:
    """Finished replies are a user's own, unless ``data=tiny`` is said: another recogniser hears them."""
    if any(override.lstrip("+").partition("=")[0] == "data" for override in overrides):
        return list(overrides)
    told = [f"data.{split}={quoted(str(replies.absolute()))}" for split in ("train", "validation", "test")]
    return ["data=manifest", *told, *overrides]


def _voice(config: Config, given: Replies, overrides: Sequence[str]) -> SpeechNorms | None:
    """That of the model where one is named (``data=tiny`` names the embedded one), else of the replies."""
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    named = norms_of(config.model.path) if keys & {"model", "model.path", "data"} else None
    return named or norms_in(given.items, given.folder, given.max_seconds)


def _must_have_scored(verdicts: Sequence[Scored | Missing]) -> None:
    """RunError: the judge gave no score, and why the first has none. A floor by a local rule is no score."""
    missing = [verdict for verdict in verdicts if isinstance(verdict, Missing)]
    if missing and all(isinstance(verdict, Missing) or verdict.judge in BY_RULE for verdict in verdicts):
        why = f"{missing[0].kind}: {missing[0].reason}"
        raise RunError(f"the judge scored none of {len(verdicts)}; the first is missing for {why}")


def _complete(config: Config, given: Replies, voice: SpeechNorms | None, kept: Ledger) -> None:
    """Ask about what is open. UserError: the ledger is about something else. RunError: stopped half-way."""
    settings = ledger.settings_hash(config.judge, voice)
    if kept.header is not None:
        kept.belongs_to(Header(manifest=given.sha256, judge=settings, mode=kept.header.mode))
    items = kept.open_items(given.items)
    if not items:
        return
    found = probe_judge(config.judge, user_audio=any(item.user_audio for item in items))
    mode = found.mode if found is not None else None
    kept.belongs_to(Header(manifest=given.sha256, judge=settings, mode=mode))
    check_vetoes(config.judge, items)
    with resumable("judge score", kept.entries, len(given.items), "verdicts"):
        judges = _judges(config, given, voice)
        limiter = Limiter(limits_of(config.judge.api))
        asyncio.run(
            judge_all(judges, items, found, limiter, lambda item, judged: kept.add(ledger.entry(item, judged)))
        )


def _summary(to: Path, given: Replies, kept: Ledger) -> Iterator[str]:
    entries = [kept.entries[item.id] for item in given.items]
    rewards = [entry.reward.value for entry in entries if isinstance(entry.reward, Scored)]
    mean = f", mean reward {sum(rewards) / len(rewards):.2f}" if rewards else ""
    yield f"{to}: {len(entries)} replies, {len(rewards)} with a reward{mean}"
    kinds = ledger.missing_kinds(entries)
    if kinds:
        yield "without: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    again = len(kept.open_items(given.items))
    if again:
        yield f"{again} of them because the judge failed: the same command asks about them again"


def calibrate(path: Path, to: Path, kind: calibration.Kind | None, overrides: Sequence[str]) -> int:
    """Hold the judge against people and itself, axis by axis, and write the maps that help."""
    config = _alone(load(settings_for(path, overrides)), calibration=None)  # a map is never fitted on mapped scores
    judge = config.judge
    if not to.absolute().parent.is_dir():
        raise UserError(f"--to {to}: its folder must exist")
    scale = Scale(judge.scale_lo, judge.scale_hi)
    with users_mistakes():
        if to.exists():
            calibration.load(to)  # nothing else is written over
        judged = [axis for axis, weight in judge.weights.items() if weight > 0]
        given = ratings.read(path, scale, judged, config.data.max_seconds)
        check_vetoes(judge, given.replies.items)
        voice = _voice(config, given.replies, overrides)
        spoken = any(item.user_audio for item in given.replies.items)
        probed_judge = probe_judge(judge, user_audio=spoken)
        try:
            first, second = asyncio.run(_twice(config, given.replies, voice, probed_judge))
        except Stopped as error:
            raise RunError(f"{error}; with judge.api.cache the next try pays for nothing twice") from error
        except WorkerDied as error:
            raise RunError(str(error)) from error
        found = [
            trust.trust(
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
        print("\n\n".join("\n".join(trust.lines(one)) for one in found))
        for axis, count in given.left_out.items():
            print(f"\n{axis}: {count} ratings left out: these settings give the axis no weight")
        maps = {one.axis: one.curve for one in found if one.curve is not None}
        if maps:
            calibration.save(to, maps, given.replies.sha256)
    told = f"{to} (use it with judge.api.calibration={to})" if maps else "nothing, no map helps"
    print(f"\nwritten: {told}" + (f"; {to} stays as it was" if not maps and to.exists() else ""))
    if all(one.judge is None for one in found):
        _must_have_scored([first[name].axes[axis] for axis, rated in given.of.items() for name in rated])
    return OK


def _alone(config: Config, **api: Any) -> Config:
    """The settings of one judge outside a run: no second opinion, and what changes of ``judge.api``."""
    more = {"second": SecondConfig(), "api": config.judge.api.model_copy(update=api)}
    return config.model_copy(update={"judge": config.judge.model_copy(update=more)})


async def _twice(
    config: Config, given: Replies, voice: SpeechNorms | None, found: Probed | None
) -> tuple[dict[str, Judged], dict[str, Judged]]:
    """Two passes by id; the second of an API judge alone: on the same transcripts and past the cache."""
    first: dict[str, Judged] = {}
    second: dict[str, Judged] = {}
    limiter = Limiter(limits_of(config.judge.api))  # one cap for both
    await judge_all(_judges(config, given, voice), given.items, found, limiter, lambda i, j: first.update({i.id: j}))
    if found is None:
        return first, second
    fresh = _alone(config, cache=None)
    heard = [
        item.model_copy(update={"transcript": first[item.id].transcript})
        for item in given.items
        if any(isinstance(first[item.id].axes.get(axis), Scored) for axis in config.judge.api_axes)
    ]
    await judge_all(_judges(fresh, given, voice), heard, found, limiter, lambda i, j: second.update({i.id: j}))
    return first, second


def _judges(config: Config, given: Replies, voice: SpeechNorms | None) -> Judges:
    return Judges(
        config=config.judge,
        root=Path.cwd(),
        norms=voice,
        folder=given.folder,
        max_seconds=given.max_seconds,
    )


def probe_run(config: Config, rows: Iterable[Row]) -> Probed | None:
    """What the endpoints can do of what a run on these rows will ask; else as ``probe_judge``."""
    spoken = config.judge.holistic > 0 and asks_aloud(rows)
    return probe_judge(config.judge, config.rollout.group_size, user_audio=spoken)


def probe_judge(config: JudgeConfig, group_size: int = 1, *, user_audio: bool = True) -> Probed | None:
    """What the endpoints can do, asked before anything starts; None: no axis is judged by api.

    ``group_size``, ``user_audio``: as in ``judge.api.probed``. UserError: one does not answer, or cannot do
    what the axes need, or the calibration is not for it.
    """
    if not config.api_axes:
        return None
    try:
        return asyncio.run(probed(config, group_size, user_audio=user_audio))
    except ValueError as error:
        raise UserError(f"judge.api: {error}") from error


@contextmanager
def users_mistakes() -> Iterator[None]:
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
def resumable(command: str, kept: Sized, count: int, what: str) -> Iterator[None]:
    """However it ends, the user learns how many ``what`` are kept and how to go on."""

    def left() -> str:
        return f"{len(kept)} of {count} {what} are kept; the same command goes on"

    try:
        yield
    except KeyboardInterrupt:
        print(f"{command}: {left()}", file=sys.stderr)
        raise
    except (Stopped, WorkerDied, RunError, OSError) as error:
        raise RunError(f"{error}: {left()}") from error
