"""``wavgate pairs``: n judged replies per prompt, and the best and the worst as a manifest (docs/pairs.md).

Invariant: what is in the journal stays. A reply depends on the seed, its prompt and its index alone, so a
command that was stopped ends with the pairs of one that was not, as far as its judge says the same twice.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal

from actors.checkpoint import model_fingerprint
from actors.cluster import cores, plan
from actors.errors import RunError, UserError
from actors.judging import probe_run, resumable, users_mistakes
from actors.pair_files import PairFiles
from actors.pair_outcome import WHY, Outcome
from actors.pair_sampling import Sampler, Work
from actors.prepare import (
    check_engine,
    check_judge,
    check_memory,
    overrides_of,
    unusable,
    usable_model,
)
from actors.provenance import versions
from conf.endpoints import SecondConfig
from conf.load import load
from conf.places import in_ray_job
from conf.schema import Config
from judge.ledger import settings_hash
from judge.voice import norms_of
from speech.audio import inside
from speech.families.base import Family
from speech.journal import Journal, Line
from speech.layout import layout_of
from speech.manifest import Cursor, ManifestError, read
from speech.pairs import PairRow, Provenance

OK = 0
SAMPLES = 8  # the paper's
UTILITY = ("judge.semantic=0.5", "judge.acoustic=0.5")  # the paper's


class Header(Line):
    """First line of the journal. ``prompts``, ``settings``: hashes; ``mode``: how an endpoint answers."""

    format: Literal["wavgate-pairs-1"] = "wavgate-pairs-1"
    prompts: str
    settings: str
    mode: str | None


def pairs(to: Path, samples: int | None, manifest: Path | None, limit: int | None, overrides: Sequence[str]) -> int:
    """Sample, judge and write what is not there yet. UserError: nothing is written. RunError: go on later."""
    if in_ray_job() and not to.is_absolute():
        raise UserError(f"--to {to}: must be absolute in a Ray job, whose own folder is temporary")
    files = PairFiles(to)
    work = prepared(samples, manifest, limit, overrides)
    with users_mistakes():
        journal = Journal(files.journal, Header, Outcome, by="wavgate pairs")
    with journal as kept:
        _complete(work, files, kept)
        return _finished(work, files, kept)


def prepared(samples: int | None, manifest: Path | None, limit: int | None, overrides: Sequence[str]) -> Work:
    """Check all of it. ``limit``: so many prompts, those that a run of this seed draws first.

    ConfigError, UserError, ManifestError: the user's to fix.
    """
    config = settings(samples, overrides)
    layout = plan(config, cores(), learns=False)
    check_engine(config)
    family = usable_model(config)
    check_judge(config)
    check_memory(config, family, learns=False)
    path = (manifest or config.data.train).absolute()
    rows = read(path, config.data.max_seconds, deep=True)
    problems = list(unusable(rows, path, family, config))
    if problems:
        raise ManifestError(problems)
    if limit is not None and limit < 1:
        raise UserError(f"--limit: must be at least 1: got {limit}")
    drawn = Cursor(len(rows), config.run.seed).next(min(limit or len(rows), len(rows)))
    made, chosen = _provenance(config, family), tuple(rows[i] for i in sorted(drawn))
    return Work(config=config, layout=layout, manifest=path, rows=chosen, provenance=made)


def settings(samples: int | None, overrides: Sequence[str]) -> Config:
    """Those of a run, with the paper's samples and utility where nothing else is said."""
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "rollout.group_size" in given and samples is not None:
        raise UserError("--samples and rollout.group_size are the same: give one of them")
    if samples is not None and samples < 2:
        raise UserError(f"--samples: a pair needs at least 2 replies: got {samples}")
    if given & {"resume", "run.resume"}:
        raise UserError("resume: the same `wavgate pairs` command goes on by itself")
    ours = [] if "rollout.group_size" in given else [f"rollout.group_size={samples or SAMPLES}"]
    ours += [] if given & {f"judge.{axis}" for axis in ("semantic", "acoustic", "holistic")} else UTILITY
    config = load([*ours, *overrides_of(overrides)[0]])
    if config.rollout.group_size < 2:
        raise UserError(f"rollout.group_size: a pair needs at least 2 replies: got {config.rollout.group_size}")
    alone = config.judge.model_copy(update={"second": SecondConfig()})  # nobody would look at its opinion
    return config.model_copy(update={"judge": alone})


def _provenance(config: Config, family: Family) -> Provenance:
    made = versions()
    return Provenance(
        model=model_fingerprint(config.model.path),
        family=family.name,
        layout=layout_of(family),
        weights={axis: weight for axis, weight in config.judge.weights.items() if weight > 0},
        samples=config.rollout.group_size,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        grammar=config.rollout.grammar,
        seed=config.run.seed,
        commit=made["commit"],
        source=made["source"],
    )


def _complete(work: Work, files: PairFiles, kept: Journal[Header, Outcome]) -> None:
    """Sample what is open. UserError: the journal is about something else. RunError: stopped half-way."""
    header = _header(work)
    if kept.header is not None:
        _belongs(kept, header.model_copy(update={"mode": kept.header.mode}))
    todo = [row for row in work.rows if row.id not in kept.entries or kept.entries[row.id].again]
    if not todo:
        return
    found = probe_run(work.config, work.rows)
    _belongs(kept, header.model_copy(update={"mode": found.mode if found is not None else None}))
    with resumable("pairs", kept.entries, len(work.rows), "prompts"):
        files.start()
        Sampler(work, files, kept.add).run(todo, found)


def _header(work: Work) -> Header:
    """Everything that a pair depends on."""
    config, digest = work.config, sha256(work.manifest.read_bytes())
    for clip in sorted({clip for row in work.rows for clips in row.audios for clip in clips}):
        with inside(work.manifest.parent, clip).open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    made = work.provenance.model_dump(exclude={"commit", "source"})
    more = [config.rollout.engine, config.model.dtype, config.model.max_length, config.judge.api.compare]
    judged = settings_hash(config.judge, norms_of(config.model.path))
    told = json.dumps([made, more, judged, config.margin], sort_keys=True)
    return Header(prompts=digest.hexdigest(), settings=sha256(told.encode()).hexdigest(), mode=None)


def _belongs(kept: Journal[Header, Outcome], header: Header) -> None:
    """Start the journal, or see that it is about this. UserError: it is not."""
    held = kept.begin(header)
    for name, what in (("prompts", "other prompts"), ("settings", "other settings")):
        if getattr(held, name) != getattr(header, name):
            raise UserError(f"{kept.path}: was begun with {what}: remove it, or choose another --to")
    if held.mode != header.mode:
        rule = f"holds verdicts of a judge that answered by {held.mode}, this one by {header.mode}"
        raise UserError(f"{kept.path}: {rule}: remove it, or choose another --to")


def _finished(work: Work, files: PairFiles, kept: Journal[Header, Outcome]) -> int:
    """Write the pairs and what became of the others. RunError: there is no pair."""
    found = [kept.entries[row.id] for row in work.rows]
    rows = [one.pair for one in found if one.pair is not None]
    told = summary(work, found, rows)
    with users_mistakes():
        files.summary(told)
        if rows:
            files.write(rows)
    print("\n".join(_lines(files.to, told)))
    if not rows:
        raise RunError(f"no prompt gave a pair: nothing is written to {files.to}")
    return OK


def summary(work: Work, found: Sequence[Outcome], rows: Sequence[PairRow]) -> dict[str, Any]:
    """What became of the prompts, in numbers; a figure that nothing has is null."""
    margins = [row.margin for row in rows if row.margin is not None]
    return {
        "prompts": len(found),
        "samples": work.provenance.samples,
        "pairs": len(rows),
        "sampled_tokens": None if None in (counts := [one.tokens for one in found]) else sum(filter(None, counts)),
        "weights": work.provenance.weights,
        "least_margin": work.config.margin,
        "margin_min": min(margins, default=None),
        "margin_mean": sum(margins) / len(margins) if margins else None,
        "margin_max": max(margins, default=None),
        "dropped": dict(Counter(one.dropped for one in found if one.dropped is not None)),
        "missing_verdicts": dict(sum((Counter(one.missing) for one in found), Counter[str]())),
        "again": sum(one.again for one in found),
    }


def _lines(to: Path, told: dict[str, Any]) -> Iterator[str]:
    utility = " + ".join(f"{weight:g} {axis}" for axis, weight in told["weights"].items())
    each = f"{told['prompts']} prompts, {told['samples']} replies each"
    yield f"{to}: {told['pairs']} pairs of {each}, by {utility}"
    if told["pairs"]:
        yield (
            f"best above worst by {told['margin_mean']:.2f} on average, "
            f"{told['margin_min']:.2f} to {told['margin_max']:.2f}"
        )
    if told["dropped"]:
        yield "no pair: " + ", ".join(f"{count} {WHY[why]}" for why, count in told["dropped"].items())
    if told["missing_verdicts"]:
        kinds = sorted(told["missing_verdicts"].items())
        yield "verdicts missing: " + ", ".join(f"{kind} {count}" for kind, count in kinds)
    if told["again"]:
        yield f"{told['again']} prompts are open because the judge failed: the same command asks again"
