"""Any finished runs as a study: runs that differ in their seed alone are one method.

Invariant: only what can be compared is. Runs with other test prompts or another judge are refused, with the
setting that differs; settings of the place (cluster, logs, workers) do not count.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from conf.study import BASE_METHOD
from report.study.findings import Study, StudyCell
from report.study.trials import RunSettings, is_finished, read_settings, unquote_setting

SETTINGS_WITHIN_METHOD = (
    "run.name",
    "run.root",
    "run.seed",
    "run.resume",
)  # settings that tell runs of one method apart
PLACE_SETTINGS = ("cluster.", "log.", "judge.workers", "rollout.workers", "learner.ranks", "run.checkpoint_every",
         "run.keep_checkpoints", "run.eval_every")  # fmt: skip
TRAINING_JUDGE_SETTINGS = ("judge.noise", "judge.readings")  # of the judge, but not in held-out evaluation
MAX_NAMED_SETTINGS = 3  # settings in a name


def build_study_from_runs(runs: Sequence[Path]) -> Study:
    """The runs in groups; the first run's group is what the others are held against, a single one the base.

    ValueError: not a finished run, runs that cannot be compared, or the same settings and seed twice.
    """
    settings = {run: read_settings(run) for run in dict.fromkeys(run.absolute() for run in runs)}
    for run in settings:
        if not is_finished(run):
            ends = "heldout/test_before.jsonl, heldout/test_after.jsonl, final and report.html"
            raise ValueError(f"{run}: must have come to its end ({ends})")
    _check_same_question(settings)
    groups: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    for run, run_settings in settings.items():
        groups.setdefault(_select_learning_settings(run_settings), []).append(run)
    names = _name_methods([dict(settings[members[0]]) for members in groups.values()])
    called = [run.name for run in settings]
    cells = [
        StudyCell(
            name=run.name if called.count(run.name) == 1 else str(run),
            method=name,
            seed=int(settings[run]["run.seed"]),
            run=run,
        )
        for name, members in zip(names, groups.values(), strict=True)
        for run in members
    ]
    _check_distinct_cells(cells)
    return Study(
        name=" and ".join(names) if len(names) < 4 else f"{len(names)} methods",
        cells=cells,
        baseline=names[0] if len(names) > 1 else BASE_METHOD,
        settings="\n".join(str(run) for run in runs),
        file="runs",
    )


def _select_learning_settings(settings: RunSettings) -> tuple[tuple[str, str], ...]:
    """The settings that decide what is learnt."""
    return tuple(
        sorted(
            (key, value)
            for key, value in settings.items()
            if key not in SETTINGS_WITHIN_METHOD and not key.startswith(PLACE_SETTINGS)
        )
    )


def _check_same_question(settings: Mapping[Path, RunSettings]) -> None:
    """ValueError: another test manifest or judge than the first run's."""
    (first, known), *others = settings.items()
    for run, run_settings in others:
        judged = {
            key
            for key in {*run_settings, *known}
            if key.startswith("judge.") and not key.startswith((*PLACE_SETTINGS, *TRAINING_JUDGE_SETTINGS))
        }
        differ = sorted(key for key in judged if run_settings.get(key) != known.get(key))
        if run_settings.get("data.test") != known.get("data.test") and not _is_same_file(run_settings, known):
            differ = ["data.test", *differ]
        if differ:
            key = differ[0]
            there, here = (side_settings.get(key, "not set") for side_settings in (known, run_settings))
            raise ValueError(f"{run}: {key} must be the same in all runs: {here}, but {there} in {first}")


def _is_same_file(first: RunSettings, second: RunSettings) -> bool:
    """Whether two manifests, in different places, hold the same."""
    paths = [
        Path(unquote_setting(side_settings["data.test"]))
        for side_settings in (first, second)
        if "data.test" in side_settings
    ]
    return all(path.is_file() for path in paths) and len({path.read_bytes() for path in paths}) == 1


def _name_methods(groups: Sequence[RunSettings]) -> list[str]:
    """algo.name, and what is different where several groups have it."""
    names = []
    for own in groups:
        name = unquote_setting(own.get("algo.name", '"run"'))
        alike = [other for other in groups if other.get("algo.name") == own.get("algo.name")]
        keys = sorted(
            {
                key
                for other in alike
                for key, _ in {*_select_learning_settings(other)} ^ {*_select_learning_settings(own)}
            }
        )
        differing_settings = [
            f"{key}={unquote_setting(own[key]) if key in own else 'not set'}" for key in keys[:MAX_NAMED_SETTINGS]
        ]
        omitted_note = [f"and {len(keys) - MAX_NAMED_SETTINGS} more"] if len(keys) > MAX_NAMED_SETTINGS else []
        names.append(
            " ".join([f"{name} (of that name)" if name == BASE_METHOD else name, *differing_settings, *omitted_note])
        )
    return [name if names.count(name) == 1 else f"{name} #{n}" for n, name in enumerate(names, start=1)]


def _check_distinct_cells(cells: Sequence[StudyCell]) -> None:
    """ValueError: two runs of one method and seed."""
    known: dict[tuple[str, int], StudyCell] = {}
    for cell in cells:
        other = known.setdefault((cell.method, cell.seed), cell)
        if other is not cell:
            rule = f"must differ in its settings or in run.seed={cell.seed} from {other.run}"
            raise ValueError(f"{cell.run}: {rule}")
