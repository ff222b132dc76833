"""The runs of a study: one per arm, method and seed, each checked before the first one starts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.load import load_config
from conf.messages import ConfigError, format_value
from conf.overrides import quote_override
from conf.schema import Config
from conf.study import MAIN_ARM, UNTRAINED, StudyConfig, StudyError

STUDY_DECIDED_KEYS = ("run.root", "run.name", "run.seed", "run.resume", "resume")  # by the study


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredFile:
    """A file that cells need, and the command that makes it."""

    name: str
    file: Path
    arguments: tuple[str, ...]  # of wavgate
    minutes: float | None  # longest time


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run. ``config``: its settings, checked."""

    name: str
    arm: str
    method: str
    seed: int
    overrides: tuple[str, ...]
    needs: tuple[RequiredFile, ...]
    config: Config


def plan_study_runs(study: StudyConfig, file: Path, to: Path) -> list[PlannedRun]:
    """Every cell in the order of running: seed by seed, so that a study that is cut short has whole seeds.

    StudyError: settings that a run would refuse, each with its place in the file.
    """
    problems: list[str] = []
    cells: list[PlannedRun] = []
    known: dict[tuple[str, ...], Config] = {}
    for seed, arm, method in _iterate_cells(study):
        place = f"methods.{method}" if arm == MAIN_ARM else f"arms.{arm}, {method}"
        try:
            cells.append(_plan_run(study, to, arm, method, seed, known))
        except ConfigError as error:
            problems += [f"{place}: {problem.removeprefix('conf: ')}" for problem in error.problems]
    names = [cell.name for cell in cells]
    problems += [f"methods: two cells would be called {name}" for name in names if names.count(name) > 1]
    prepared_names = {prepared.name for cell in cells for prepared in cell.needs}
    problems += [
        f"prepare: a cell is called {name} too: choose another name" for name in names if name in prepared_names
    ]
    if problems:
        raise StudyError(file, problems)
    return cells


def _iterate_cells(study: StudyConfig) -> Iterator[tuple[int, str, str]]:
    seeds = dict.fromkeys([*study.seeds, *(s for arm in study.arms.values() for s in arm.seeds or ())])
    for seed in seeds:
        if seed in study.seeds:
            yield from ((seed, MAIN_ARM, name) for name, own in study.methods.items() if own != UNTRAINED)
        for arm, settings in study.arms.items():
            if seed in (settings.seeds or study.seeds):
                yield from ((seed, arm, method) for method in settings.methods)


def _plan_run(
    study: StudyConfig, to: Path, arm: str, method: str, seed: int, known: dict[tuple[str, ...], Config]
) -> PlannedRun:
    """``known``: settings that were checked already. ConfigError: an override that no run takes."""
    own = study.methods[method]
    assert own != UNTRAINED
    changes = (*study.common, *own, *(study.arms[arm].overrides if arm != MAIN_ARM else ()))
    _check_overrides(study, changes)
    named = [(change, change.partition("=@")) for change in changes]
    needs = {name: _plan_required_file(study, to, name, seed) for _, (_, at, name) in named if at}
    settled = [f"{key}={quote_override(str(needs[name].file))}" if at else change for change, (key, at, name) in named]
    root, name = (
        quote_override(str(to / "runs")),
        f"{method}-seed{seed}" if arm == MAIN_ARM else f"{arm}-{method}-seed{seed}",
    )
    overrides = (*settled, f"run.root={root}", f"run.name={name}", f"run.seed={seed}")
    # Seeds differ in nothing else, and to compose the settings takes its time.
    alike = (*settled, str(seed)) if any("${" in change for change in settled) else tuple(settled)
    if alike not in known:
        known[alike] = load_config(list(overrides))
    config = known[alike]
    run = config.run.model_copy(update={"name": name, "seed": seed})
    return PlannedRun(
        name=name,
        arm=arm,
        method=method,
        seed=seed,
        overrides=overrides,
        needs=tuple(needs.values()),
        config=config.model_copy(update={"run": run}),
    )


def _check_overrides(study: StudyConfig, changes: Sequence[str]) -> None:
    problems = []
    for change in changes:
        key, at, name = change.partition("=@")
        if change.partition("=")[0].lstrip("+") in STUDY_DECIDED_KEYS:
            problems.append(f"{change.partition('=')[0]}: is decided by the study (got {format_value(change)})")
        elif at and name not in study.prepare:
            known = ", ".join(study.prepare) or "nothing"
            problems.append(f"{key}: @{name} must be one of prepare, which has {known}")
    if problems:
        raise ConfigError(problems)


def _plan_required_file(study: StudyConfig, to: Path, name: str, seed: int) -> RequiredFile:
    command, each = study.prepare[name], study.prepare[name].each
    file_name = name if each == "study" else f"{name}-seed{seed}"
    file = to / "prepared" / f"{file_name}.jsonl"
    chosen = f"run.seed={study.seeds[0] if each == 'study' else seed}"
    arguments = (command.verb, "--to", str(file), *study.common, *command.arguments, chosen)
    return RequiredFile(name=file_name, file=file, arguments=arguments, minutes=command.minutes)
