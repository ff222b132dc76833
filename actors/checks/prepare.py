"""What can be wrong with a job, found before anything starts: settings, place, data, model, checkpoint.

Invariant: nothing here writes. What it raises is the user's to fix: ConfigError, UserError or ManifestError.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from actors.checks import dependencies
from actors.checks.memory import estimate_memory, read_physical_memory
from actors.checks.model import check_attention_heads, check_ends, check_weights_finite
from actors.checks.overlap import check_held_out
from actors.checks.pairs import load_usable_pairs
from actors.cluster import PlacementPlan, count_usable_cores, plan_placement
from actors.collect import row_to_text_task
from actors.errors import RunError, UserError
from actors.run import checkpoint
from actors.run.checkpoint import DriverState
from conf.judging import AsrConfig, JudgeConfig
from conf.load import load_config
from conf.places import is_in_ray_job
from conf.schema import Config
from judge.panel import find_panel_files
from judge.recognisers.installed import WHISPER_INSTALL_HINT, locate_tiny_en
from judge.rules import verifiable
from judge.rules.voice import find_voice_norms
from judge.types import Scale
from learner.gate import build_lambda_source
from rollout.loading import UnfilledModel
from rollout.sampling import check_sampling
from speech.answers.words import split_words
from speech.checkpoints import folder as model_folder
from speech.checkpoints.copies import unread_weights
from speech.data.lazy_rows import LazyRows
from speech.data.manifest import ManifestError, ManifestRow, Problem, RowCursor, read_manifest
from speech.data.pairs import PairRow, count_below_margin
from speech.dataset import RowLengths
from speech.families import load_family
from speech.families.base import Family

RAY_JOB_RUNS_ROOT = Path("~/wavgate-runs")  # where runs go from a Ray job, whose own folder is temporary


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that can start. ``snapshot``: the checkpoint to go on from, with its driver state."""

    config: Config
    layout: PlacementPlan
    train: LazyRows[ManifestRow]
    validation: tuple[ManifestRow, ...]
    test: tuple[ManifestRow, ...]
    pairs: Sequence[PairRow]
    family: Family
    snapshot: tuple[Path, DriverState] | None
    notes: tuple[str, ...]  # worth telling, none of them an error


def complete_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command line -> overrides for ``conf.load`` (``run.resume``; in a Ray job ``run.root``), and notes."""
    overrides = [f"resume={a.removeprefix('run.resume=')}" if a.startswith("run.resume=") else a for a in arguments]
    settled = any(a.startswith(("run.root=", "resume=")) or a == "cluster=multi" for a in overrides)
    if is_in_ray_job() and not settled:
        root = RAY_JOB_RUNS_ROOT.expanduser()
        return [*overrides, f"run.root={root}"], [
            f"a Ray job's own folder is temporary: the run goes to {root} (set run.root to choose)"
        ]
    return overrides, []


def prepare_job(arguments: Sequence[str]) -> Job:
    """Check all of a job. Raises at the first stage that fails, with all problems of that stage."""
    overrides, notes = complete_overrides(arguments)
    config = load_config(overrides)
    check_run_root(config.run.root)
    layout = plan_placement(config, count_usable_cores())
    check_engine(config)
    family = load_usable_family(config)
    check_judge(config.judge)
    check_memory(config, family)
    snapshot = None
    if config.run.resume is not None:
        folder, state, problems = checkpoint.find_newest_snapshot(config.run.resume)
        snapshot = (folder, state)
        notes += [f"skipped a damaged checkpoint: {problem}" for problem in problems]
    train, validation, test = manifests = _read_manifests(config, family)
    pairs = load_usable_pairs(config, family)
    if snapshot is not None:
        _check_resume(config, snapshot[1], train, len(pairs))
    notes += check_held_out(config.data, manifests, pairs)
    if unread := unread_weights(config.model.path, (family.codec_path, family.audio_encoder_path)):
        notes.append(f"model.path: weights that are not read: {', '.join(unread)}")
    if config.data.pairs is not None and config.algo.loss != "dpo":
        notes.append(f"data.pairs: not read, algo.loss is {config.algo.loss}")
    close = count_below_margin(pairs, config.margin)
    notes += [f"data.pairs: {close} of {len(pairs)} are less than algo.margin apart, and used"] * bool(close)
    return Job(
        config=config,
        layout=layout,
        train=train,
        validation=tuple(validation[: config.data.eval_prompts]),
        test=tuple(test),
        pairs=pairs,
        family=family,
        snapshot=snapshot,
        notes=tuple(notes),
    )


def check_run_root(root: Path) -> None:
    """UserError: no run directory can be made there."""
    there = next(folder for folder in (root, *root.parents) if os.path.exists(folder))
    if not there.is_dir():
        raise UserError(f"run.root: {there} is not a folder")
    try:
        TemporaryDirectory(dir=there, prefix=".wavgate-").cleanup()  # permissions say nothing of /proc or to root
    except OSError as error:
        raise UserError(f"run.root: no folder can be made in {there}: {error.strerror}") from error


def load_usable_family(config: Config) -> Family:
    """The family of the checkpoint, whose config, weights, tokenizer, encoder, codec and voice norms fit.

    UserError: no whole local Hugging Face folder with safetensors weights, or not of this family.
    """
    path = config.model.path
    if not path.is_dir():
        raise UserError(f"model.path: no folder at {path}")
    try:
        family = load_family(config.model)
        limit, streams = config.model.max_length, family.streams
        model_folder.check_weights_fit_config(path, limit, family.backbone, family.tensor_names.module_names, streams)
        check_sampling(config.rollout, family)
        check_attention_heads(config, family)
        check_ends(family)
        UnfilledModel(family, attention="sdpa")
        family.codec()
        if family.audio_inputs:
            family.audio_encoder()
        find_voice_norms(path)
        check_weights_finite(family)
    except ValueError as error:
        raise UserError(f"model.path: {error}") from error
    return family


def check_engine(config: Config) -> None:
    """RunError: vLLM does not work on this machine, where the run would sample with it on the CPU."""
    if config.cluster.kind == "local" and config.rollout.engine == "vllm":
        lacking = dependencies.find_engine_problems()
        if lacking:
            raise RunError("\n".join(lacking))


def check_judge(config: JudgeConfig) -> None:
    """UserError: a package or a file that the judges need is not there."""
    if config.plugins and find_spec("onnxruntime") is None:
        raise UserError("judge.plugins: needs a package: pip install onnxruntime")
    if config.asr.by == "faster_whisper":
        if find_spec("faster_whisper") is None:
            raise UserError(f"judge.asr.by=faster_whisper needs the package faster-whisper: {WHISPER_INSTALL_HINT}")
        if config.asr.path is None:
            _require_file(locate_tiny_en)
    for name, path in find_panel_files(config).items():
        if not (path.is_dir() if name == "asr.path" else path.is_file()):
            what = "folder" if name == "asr.path" else "file"
            raise UserError(f"judge.{name}: no {what} at {path}")


def _require_file(find_file: Callable[[], object]) -> None:
    try:
        find_file()
    except ValueError as error:
        raise UserError(str(error)) from error


def check_memory(config: Config, family: Family, learns: bool = True) -> None:
    """UserError: a run on this machine needs more memory than it has. ``learns``: with a learner."""
    estimate, have = estimate_memory(config, family), read_physical_memory()
    estimate = {role: size for role, size in estimate.items() if learns or role != "learner"}
    if config.cluster.kind == "local" and sum(estimate.values()) > have:
        parts = " + ".join(f"{name} {size / 2**30:.1f}" for name, size in estimate.items())
        raise UserError(
            f"the run needs about {sum(estimate.values()) / 2**30:.1f} GiB ({parts}): "
            f"this machine has {have / 2**30:.1f} GiB; fewer workers or ranks, or cluster=gpu1"
        )


def _check_resume(config: Config, state: DriverState, train: LazyRows[ManifestRow], pairs: int) -> None:
    wanted = build_lambda_source(config.algo, Scale(config.judge.scale_lo, config.judge.scale_hi)).state_dict()
    if set(state.gate) != set(wanted):
        raise UserError(f"algo.mix: the run began with another, it cannot go on as {config.algo.mix}")
    for name, setting, path, have in (
        ("prompts", "data.train", config.data.train, len(train)),
        ("pairs", "data.pairs", config.data.pairs, pairs),
    ):
        drew = state.cursors.get(name, {"count": 0})["count"]
        if drew != have:
            raise UserError(f"{setting}: the run drew from {drew} rows, {path} has {have}")
    if state.data not in ("", train.digest):
        raise UserError(f"data.train: the run drew from other rows than {config.data.train} has now")
    if state.seed != config.run.seed:
        raise UserError(f"run.seed: the checkpoint was made with {state.seed}, this run asks for {config.run.seed}")
    if state.step > config.run.steps:
        raise UserError(
            f"run.steps: the checkpoint is at step {state.step} already, this run asks for {config.run.steps}"
        )

    if state.model != checkpoint.model_fingerprint(config.model.path):
        raise UserError(
            f"model.path: the weights in {config.model.path} are not those that the run started from: "
            "its KL terms refer to them"
        )


def _read_manifests(config: Config, family: Family) -> list[LazyRows[ManifestRow]]:
    """The three manifests; ManifestError lists the problems of all of them."""
    manifests, problems = [], []
    for path in (config.data.train, config.data.validation, config.data.test):
        try:
            rows = read_manifest(path, config.data.max_seconds, deep=True)
        except ManifestError as error:
            problems += error.problems
            continue
        problems += find_unusable_rows(rows, path, family, config)
        manifests.append(rows)
    if problems:
        raise ManifestError(problems)
    if len(manifests[0]) < config.rollout.prompts_per_step:
        raise UserError(
            f"rollout.prompts_per_step={config.rollout.prompts_per_step} needs as many rows: "
            f"{config.data.train} has {len(manifests[0])}"
        )
    return manifests


def find_unusable_rows(rows: Sequence[ManifestRow], path: Path, family: Family, config: Config) -> Iterator[Problem]:
    """What this model and these judges cannot do with the rows of a sound manifest."""
    lengths, vocabulary = RowLengths(family, path.parent), _read_vocabulary(config.judge.asr)
    for line, row in enumerate(rows, start=1):
        try:
            prompt, target = lengths.count_ids(row)
        except ValueError as error:
            yield Problem(path, line, "", str(error))
            continue
        budget = {
            "messages": ("prompt + rollout.max_new_tokens", prompt + config.rollout.max_new_tokens),
            "sft_target_audio": ("prompt + reference reply", prompt + target),
        }
        for field, (what, tokens) in budget.items():
            if tokens > config.model.max_length:
                rule = f"{what} must fit model.max_length={config.model.max_length}: got {tokens} tokens"
                yield Problem(path, line, field, rule)
        unheard = sorted({*split_words(row.sft_target_text)} - vocabulary) if vocabulary else []
        if unheard:
            rule = "must be of words in judge.asr.dictionary, no other is ever heard (data=manifest knows all)"
            yield Problem(path, line, "sft_target_text", f"{rule}: got {', '.join(unheard[:5])}")
        checks = config.judge.semantic > 0 and config.judge.semantic_by == "local"
        uncheckable = verifiable.explain_uncheckable(row_to_text_task(row)) if checks else None
        if uncheckable is not None:
            yield Problem(path, line, "answer", f"{uncheckable}, and judge.semantic needs one")


def _read_vocabulary(asr: AsrConfig) -> frozenset[str]:
    """All that the recogniser can hear; empty: it is not bound to a list."""
    if asr.by != "pocketsphinx" or asr.dictionary is None:
        return frozenset()
    lines = asr.dictionary.read_text(encoding="utf-8", errors="replace").splitlines()
    entries = [line.split()[0].partition("(")[0] for line in lines if line.strip()]
    return frozenset(word for entry in entries for word in split_words(entry))


def draw_distinct_rows(cursor: RowCursor, count: int) -> list[int]:
    """The next ``count`` different rows: one that a draw over the end of an epoch names twice is skipped."""
    drawn: dict[int, None] = {}
    while len(drawn) < count:
        drawn.update(dict.fromkeys(cursor.draw_indices(count - len(drawn))))
    return list(drawn)
