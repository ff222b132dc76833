"""The runs of a study: one per arm, method and seed, each checked before the first one starts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conf.load import load
from conf.messages import ConfigError, shown
from conf.overrides import quoted
from conf.schema import Config
from conf.study import MAIN, UNTRAINED, StudyConfig, StudyError

DECIDED = ("run.root", "run.name", "run.seed", "run.resume", "resume")  # by the study


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A file that cells need, and the command that makes it."""

    name: str
    file: Path
    arguments: tuple[str, ...]  # of wavgate
    minutes: float | None  # longest time


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One run. ``config``: its settings, checked."""

    name: str
    arm: str
    method: str
    seed: int
    overrides: tuple[str, ...]
    needs: tuple[Prepared, ...]
    config: Config


def plan(study: StudyConfig, file: Path, to: Path) -> list[Planned]:
    """Every cell in the order of running: seed by seed, so that a study that is cut short has whole seeds.

    StudyError: settings that a run would refuse, each with its place in the file.
    """
    problems: list[str] = []
    cells: list[Planned] = []
    known: dict[tuple[str, ...], Config] = {}
    for seed, arm, method in _grid(study):
        where = f"methods.{method}" if arm == MAIN else f"arms.{arm}, {method}"
        try:
            cells.append(_planned(study, to, arm, method, seed, known))
        except ConfigError as error:
            problems += [f"{where}: {problem.removeprefix('conf: ')}" for problem in error.problems]
    names = [cell.name for cell in cells]
    problems += [f"methods: two cells would be called {name}" for name in names if names.count(name) > 1]
    made = {one.name for cell in cells for one in cell.needs}
    problems += [f"prepare: a cell is called {name} too: choose another name" for name in names if name in made]
    if problems:
        raise StudyError(file, problems)
    return cells


def _grid(study: StudyConfig) -> Iterator[tuple[int, str, str]]:
    seeds = dict.fromkeys([*study.seeds, *(s for arm in study.arms.values() for s in arm.seeds or ())])
    for seed in seeds:
        if seed in study.seeds:
            yield from ((seed, MAIN, name) for name, own in study.methods.items() if own != UNTRAINED)
        for arm, settings in study.arms.items():
            if seed in (settings.seeds or study.seeds):
                yield from ((seed, arm, method) for method in settings.methods)


def _planned(
    study: StudyConfig, to: Path, arm: str, method: str, seed: int, known: dict[tuple[str, ...], Config]
) -> Planned:
    """``known``: settings that were checked already. ConfigError: an override that no run takes."""
    own = study.methods[method]
    assert own != UNTRAINED
    changes = (*study.common, *own, *(study.arms[arm].overrides if arm != MAIN else ()))
    _check_own(study, changes)
    named = [(change, change.partition("=@")) for change in changes]
    needs = {name: _prepared(study, to, name, seed) for _, (_, at, name) in named if at}
    settled = [f"{key}={quoted(str(needs[name].file))}" if at else change for change, (key, at, name) in named]
    root, name = (
        quoted(str(to / "runs")),
        f"{method}-seed{seed}" if arm == MAIN else f"{arm}-{method}-seed{seed}",
    )
    overrides = (*settled, f"run.root={root}", f"run.name={name}", f"run.seed={seed}")
    # Seeds differ in nothing else, and to compose the settings takes its time.
    alike = (*settled, str(seed)) if any("${" in change for change in settled) else tuple(settled)
    if alike not in known:
        known[alike] = load(list(overrides))
    config = known[alike]
    run = config.run.model_copy(update={"name": name, "seed": seed})
    return Planned(
        name=name,
        arm=arm,
        method=method,
        seed=seed,
        overrides=overrides,
        needs=tuple(needs.values()),
        config=config.model_copy(update={"run": run}),
    )


def _check_own(study: StudyConfig, changes: Sequence[str]) -> None:
    problems = []
    for change in changes:
        key, at, name = change.partition("=@")
        if change.partition("=")[0].lstrip("+") in DECIDED:
            problems.append(f"{change.partition('=')[0]}: is decided by the study (got {shown(change)})")
        elif at and name not in study.prepare:
            known = ", ".join(study.prepare) or "nothing"
            problems.append(f"{key}: @{name} must be one of prepare, which has {known}")
    if problems:
        raise ConfigError(problems)


def _prepared(study: StudyConfig, to: Path, name: str, seed: int) -> Prepared:
    command, each = study.prepare[name], study.prepare[name].each
    made = name if each == "study" else f"{name}-seed{seed}"
    file = to / "prepared" / f"{made}.jsonl"
    chosen = f"run.seed={study.seeds[0] if each == 'study' else seed}"
    arguments = (command.verb, "--to", str(file), *study.common, *command.arguments, chosen)
    return Prepared(name=made, file=file, arguments=arguments, minutes=command.minutes)
