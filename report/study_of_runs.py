"""Any finished runs as a study: runs that differ in their seed alone are one method.

Invariant: only what can be compared is. Runs with other test prompts or another judge are refused, with the
setting that differs; settings of the place (cluster, logs, workers) do not count.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.study import BASE
from report.study import Cell, Study
from report.trials import Settings, finished, plain, settings_of

APART = ("run.name", "run.root", "run.seed", "run.resume")  # settings that tell runs of one method apart
PLACE = ("cluster.", "log.", "judge.workers", "rollout.workers", "learner.ranks", "run.checkpoint_every",
         "run.keep_checkpoints", "run.eval_every")  # fmt: skip
TRAINING = ("judge.noise", "judge.readings")  # of the judge, but not in held-out evaluation
MOST_TOLD = 3  # settings in a name


def study_of(runs: Sequence[Path]) -> Study:
    """The runs in groups; the first run's group is what the others are held against, a single one the base.

    ValueError: not a finished run, runs that cannot be compared, or the same settings and seed twice.
    """
    settings = {run: settings_of(run) for run in dict.fromkeys(run.absolute() for run in runs)}
    for run in settings:
        if not finished(run):
            ends = "heldout/test_before.jsonl, heldout/test_after.jsonl, final and report.html"
            raise ValueError(f"{run}: must have come to its end ({ends})")
    _same_question(settings)
    groups: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for run, told in settings.items():
        groups.setdefault(_what(told), []).append(run)
    names = _names([dict(settings[members[0]]) for members in groups.values()])
    called = [run.name for run in settings]
    cells = [
        Cell(
            name=run.name if called.count(run.name) == 1 else str(run),
            method=name,
            seed=int(settings[run]["run.seed"]),
            run=run,
        )
        for name, members in zip(names, groups.values(), strict=True)
        for run in members
    ]
    _distinct(cells)
    return Study(
        name=" and ".join(names) if len(names) < 4 else f"{len(names)} methods",
        cells=cells,
        baseline=names[0] if len(names) > 1 else BASE,
        settings="\n".join(str(run) for run in runs),
        file="runs",
    )


def _what(settings: Settings) -> tuple[tuple[str, str], ...]:
    """The settings that decide what is learnt."""
    return tuple(
        sorted((key, value) for key, value in settings.items() if key not in APART and not key.startswith(PLACE))
    )


def _same_question(settings: Mapping[Path, Settings]) -> None:
    """ValueError: another test manifest or judge than the first run's."""
    (first, known), *others = settings.items()
    for run, told in others:
        judged = {
            key for key in {*told, *known} if key.startswith("judge.") and not key.startswith((*PLACE, *TRAINING))
        }
        differ = sorted(key for key in judged if told.get(key) != known.get(key))
        if told.get("data.test") != known.get("data.test") and not _same_file(told, known):
            differ = ["data.test", *differ]
        if differ:
            key = differ[0]
            there, here = (one.get(key, "not set") for one in (known, told))
            raise ValueError(f"{run}: {key} must be the same in all runs: {here}, but {there} in {first}")


def _same_file(one: Settings, other: Settings) -> bool:
    """Whether two manifests, in different places, hold the same."""
    paths = [Path(plain(told["data.test"])) for told in (one, other) if "data.test" in told]
    return all(path.is_file() for path in paths) and len({path.read_bytes() for path in paths}) == 1


def _names(groups: Sequence[Settings]) -> list[str]:
    """algo.name, and what is different where several groups have it."""
    names = []
    for own in groups:
        name = plain(own.get("algo.name", '"run"'))
        alike = [other for other in groups if other.get("algo.name") == own.get("algo.name")]
        keys = sorted({key for other in alike for key, _ in {*_what(other)} ^ {*_what(own)}})
        told = [f"{key}={plain(own[key]) if key in own else 'not set'}" for key in keys[:MOST_TOLD]]
        more = [f"and {len(keys) - MOST_TOLD} more"] if len(keys) > MOST_TOLD else []
        names.append(" ".join([f"{name} (of that name)" if name == BASE else name, *told, *more]))
    return [name if names.count(name) == 1 else f"{name} #{n}" for n, name in enumerate(names, start=1)]


def _distinct(cells: Sequence[Cell]) -> None:
    """ValueError: two runs of one method and seed."""
    known: dict[tuple[str, int], Cell] = {}
    for cell in cells:
        other = known.setdefault((cell.method, cell.seed), cell)
        if other is not cell:
            rule = f"must differ in its settings or in run.seed={cell.seed} from {other.run}"
            raise ValueError(f"{cell.run}: {rule}")
