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

from actors.checks.endpoints import probe_for_run
from actors.checks.prepare import (
    check_engine,
    check_judge,
    check_memory,
    complete_overrides,
    find_unusable_rows,
    load_usable_family,
)
from actors.cluster import count_usable_cores, plan_placement
from actors.errors import RunError, UserError
from actors.exits import OK
from actors.run.checkpoint import model_fingerprint
from actors.run.provenance import collect_versions
from commands.judge.ledger import hash_judge_settings
from commands.judge.verbs import convert_to_user_errors, explain_how_to_resume
from commands.pairs.files import PairFiles
from commands.pairs.outcome import DROP_DESCRIPTIONS, PairOutcome
from commands.pairs.sampling import PairJob, PairSampler
from conf.load import load_config
from conf.places import is_in_ray_job
from conf.schema import Config
from judge.rules.voice import find_voice_norms
from speech.checkpoints.layout import fingerprint_layout
from speech.data.manifest import ManifestError, RowCursor, read_manifest
from speech.data.pairs import PairProvenance, PairRow
from speech.families.base import Family
from speech.sound.audio import resolve_inside
from store.journal import Journal, JournalLine

DEFAULT_PAIR_SAMPLES = 8  # the paper's
DEFAULT_PAIR_UTILITY = ("judge.semantic=0.5", "judge.acoustic=0.5")  # the paper's


class PairJournalHeader(JournalLine):
    """First line of the journal. ``prompts``, ``load_pair_settings``: hashes; ``mode``: how an endpoint answers."""

    format: Literal["wavgate-pairs-1"] = "wavgate-pairs-1"
    prompts: str
    settings: str
    mode: str | None


def make_preference_pairs(
    to: Path, samples: int | None, manifest: Path | None, limit: int | None, overrides: Sequence[str]
) -> int:
    """Sample, judge and write what is not there yet. UserError: nothing is written. RunError: go on later."""
    if is_in_ray_job() and not to.is_absolute():
        raise UserError(f"--to {to}: must be absolute in a Ray job, whose own folder is temporary")
    files = PairFiles(to)
    job = prepare_pair_job(samples, manifest, limit, overrides)
    with convert_to_user_errors():
        journal = Journal(files.journal, PairJournalHeader, PairOutcome, by="wavgate pairs")
    with journal as records:
        _sample_open_prompts(job, files, records)
        return _write_results(job, files, records)


def prepare_pair_job(
    samples: int | None, manifest: Path | None, limit: int | None, overrides: Sequence[str]
) -> PairJob:
    """Check all of it. ``limit``: so many prompts, those that a run of this seed draws first.

    ConfigError, UserError, ManifestError: the user's to fix.
    """
    config = load_pair_settings(samples, overrides)
    layout = plan_placement(config, count_usable_cores(), learns=False)
    check_engine(config)
    family = load_usable_family(config)
    check_judge(config.judge)
    check_memory(config, family, learns=False)
    path = (manifest or config.data.train).absolute()
    rows = read_manifest(path, config.data.max_seconds, deep=True)
    problems = list(find_unusable_rows(rows, path, family, config))
    if problems:
        raise ManifestError(problems)
    if limit is not None and limit < 1:
        raise UserError(f"--limit: must be at least 1: got {limit}")
    drawn = RowCursor(len(rows), config.run.seed).draw_indices(min(limit or len(rows), len(rows)))
    provenance, chosen = _build_provenance(config, family), tuple(rows[i] for i in sorted(drawn))
    return PairJob(config=config, layout=layout, manifest=path, rows=chosen, provenance=provenance)


def load_pair_settings(samples: int | None, overrides: Sequence[str]) -> Config:
    """Those of a run, with the paper's samples and utility where nothing else is said."""
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    if "rollout.group_size" in given and samples is not None:
        raise UserError("--samples and rollout.group_size are the same: give one of them")
    if samples is not None and samples < 2:
        raise UserError(f"--samples: a pair needs at least 2 replies: got {samples}")
    if given & {"resume", "run.resume"}:
        raise UserError("resume: the same `wavgate pairs` command goes on by itself")
    defaults = [] if "rollout.group_size" in given else [f"rollout.group_size={samples or DEFAULT_PAIR_SAMPLES}"]
    defaults += (
        [] if given & {f"judge.{axis}" for axis in ("semantic", "acoustic", "holistic")} else DEFAULT_PAIR_UTILITY
    )
    config = load_config([*defaults, *complete_overrides(overrides)[0]])
    if config.rollout.group_size < 2:
        raise UserError(f"rollout.group_size: a pair needs at least 2 replies: got {config.rollout.group_size}")
    return config.without_second_opinion()


def _build_provenance(config: Config, family: Family) -> PairProvenance:
    versions = collect_versions()
    return PairProvenance(
        model=model_fingerprint(config.model.path),
        family=family.name,
        layout=fingerprint_layout(family),
        weights={axis: weight for axis, weight in config.judge.weights.items() if weight > 0},
        samples=config.rollout.group_size,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        grammar=config.rollout.grammar,
        seed=config.run.seed,
        commit=versions["commit"],
        source=versions["source"],
    )


def _sample_open_prompts(job: PairJob, files: PairFiles, journal: Journal[PairJournalHeader, PairOutcome]) -> None:
    """Sample what is open. UserError: the journal is about something else. RunError: stopped half-way."""
    header = _build_header(job)
    if journal.header is not None:
        _begin_or_check_journal(journal, header.model_copy(update={"mode": journal.header.mode}))
    todo = [row for row in job.rows if row.id not in journal.entries or journal.entries[row.id].again]
    if not todo:
        return
    probe_result = probe_for_run(job.config.judge, job.config.rollout.group_size, job.rows)
    _begin_or_check_journal(
        journal, header.model_copy(update={"mode": probe_result.mode if probe_result is not None else None})
    )
    with explain_how_to_resume("pairs", journal.entries, len(job.rows), "prompts"):
        files.start()
        PairSampler(job, files, journal.append_entry).run(todo, probe_result)


def _build_header(job: PairJob) -> PairJournalHeader:
    """Everything that a pair depends on."""
    config, digest = job.config, sha256(job.manifest.read_bytes())
    for clip in sorted({clip for row in job.rows for clips in row.audios for clip in clips}):
        with resolve_inside(job.manifest.parent, clip).open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    provenance = job.provenance.model_dump(exclude={"commit", "source"})
    run_settings = [config.rollout.engine, config.model.dtype, config.model.max_length, config.judge.api.compare]
    judged = hash_judge_settings(config.judge, find_voice_norms(config.model.path))
    settings_json = json.dumps([provenance, run_settings, judged, config.margin], sort_keys=True)
    return PairJournalHeader(
        prompts=digest.hexdigest(), settings=sha256(settings_json.encode()).hexdigest(), mode=None
    )


def _begin_or_check_journal(journal: Journal[PairJournalHeader, PairOutcome], header: PairJournalHeader) -> None:
    """Start the journal, or see that it is about this. UserError: it is not."""
    existing = journal.ensure_header(header)
    for name, what in (("prompts", "other prompts"), ("settings", "other settings")):
        if getattr(existing, name) != getattr(header, name):
            raise UserError(f"{journal.path}: was begun with {what}: remove it, or choose another --to")
    if existing.mode != header.mode:
        rule = f"holds verdicts of a judge that answered by {existing.mode}, this one by {header.mode}"
        raise UserError(f"{journal.path}: {rule}: remove it, or choose another --to")


def _write_results(job: PairJob, files: PairFiles, journal: Journal[PairJournalHeader, PairOutcome]) -> int:
    """Write the pairs and what became of the others. RunError: there is no pair."""
    outcomes = [journal.entries[row.id] for row in job.rows]
    rows = [outcome.pair for outcome in outcomes if outcome.pair is not None]
    totals = summarise_pair_outcomes(job, outcomes, rows)
    with convert_to_user_errors():
        files.summary(totals)
        if rows:
            files.write(rows)
    print("\n".join(_format_pair_totals(files.to, totals)))
    if not rows:
        raise RunError(f"no prompt gave a pair: nothing is written to {files.to}")
    return OK


def summarise_pair_outcomes(job: PairJob, outcomes: Sequence[PairOutcome], rows: Sequence[PairRow]) -> dict[str, Any]:
    """What became of the prompts, in numbers; a figure that nothing has is null."""
    margins = [row.margin for row in rows if row.margin is not None]
    return {
        "prompts": len(outcomes),
        "samples": job.provenance.samples,
        "pairs": len(rows),
        "sampled_tokens": None
        if None in (counts := [outcome.tokens for outcome in outcomes])
        else sum(filter(None, counts)),
        "weights": job.provenance.weights,
        "least_margin": job.config.margin,
        "margin_min": min(margins, default=None),
        "margin_mean": sum(margins) / len(margins) if margins else None,
        "margin_max": max(margins, default=None),
        "dropped": dict(Counter(outcome.dropped for outcome in outcomes if outcome.dropped is not None)),
        "missing_verdicts": dict(sum((Counter(outcome.missing) for outcome in outcomes), Counter[str]())),
        "again": sum(outcome.again for outcome in outcomes),
    }


def _format_pair_totals(to: Path, totals: dict[str, Any]) -> Iterator[str]:
    utility = " + ".join(f"{weight:g} {axis}" for axis, weight in totals["weights"].items())
    each = f"{totals['prompts']} prompts, {totals['samples']} replies each"
    yield f"{to}: {totals['pairs']} pairs of {each}, by {utility}"
    if totals["pairs"]:
        yield (
            f"best above worst by {totals['margin_mean']:.2f} on average, "
            f"{totals['margin_min']:.2f} to {totals['margin_max']:.2f}"
        )
    if totals["dropped"]:
        yield "no pair: " + ", ".join(f"{count} {DROP_DESCRIPTIONS[why]}" for why, count in totals["dropped"].items())
    if totals["missing_verdicts"]:
        kinds = sorted(totals["missing_verdicts"].items())
        yield "verdicts missing: " + ", ".join(f"{kind} {count}" for kind, count in kinds)
    if totals["again"]:
        yield f"{totals['again']} prompts are open because the judge failed: the same command asks again"
