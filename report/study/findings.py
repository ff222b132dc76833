"""Finished runs -> the findings of a study: which method is how good, and how sure that is.

Everything but the time on the clock and the fate of a cell comes from the run directories: the same runs give
the same figures. A cell that is not finished has no figures and is listed as what it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from conf.study import BASE_METHOD, MAIN_ARM, BootstrapConfig
from report.study.comparison import StudyRow, TrialEntry, collect_sides, compare_methods
from report.study.trials import CODE_VERSION_KEYS, Trial, read_trial

CellState = Literal["finished", "failed", "stopped", "waiting"]
MAX_NOTE_NAMES = 6  # in one note


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyCell:
    """One run of a study, whatever became of it."""

    name: str
    method: str
    seed: int
    run: Path
    arm: str = MAIN_ARM
    state: CellState = "finished"
    detail: str | None = None  # why it failed
    wall_s: float | None = None  # on the clock, all attempts from its beginning on; None: nobody looked


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedFile:
    """What cells needed before they could begin. ``methods``, ``seeds``: of the cells that use it."""

    name: str
    state: CellState
    detail: str | None
    wall_s: float | None
    sampled: float | None  # tokens; None: not told
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is compared. ``settings``: shown as it is; ``arms``: name -> what it changes."""

    name: str
    cells: Sequence[StudyCell]
    baseline: str
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    settings: str = ""
    file: str = "study.yaml"  # what ``settings`` is
    arms: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)  # name -> what it is made of
    notes: Sequence[str] = ()
    prepared: Sequence[PreparedFile] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFindings:
    """The figures of a study."""

    study: Study
    trials: Mapping[str, Trial]  # by name of the cell; finished ones alone
    rows: Sequence[StudyRow]
    notes: Sequence[str]

    def trials_of(self, arm: str, method: str) -> list[Trial]:
        """The finished runs of a method, by seed."""
        method_cells = [cell for cell in self.study.cells if (cell.arm, cell.method) == (arm, method)]
        ordered = sorted(method_cells, key=lambda cell: cell.seed)
        return [self.trials[cell.name] for cell in ordered if cell.name in self.trials]

    def list_arm_methods(self) -> list[tuple[str, str]]:
        """(arm, method) in order, the base of each arm first."""
        return list(dict.fromkeys((row.arm, row.method) for row in self.rows))


def compute_findings(study: Study) -> StudyFindings:
    """Read every finished run and work the figures out; one that cannot be read has failed, and says why.

    ValueError: runs of one arm with different test prompts.
    """
    study, trials = _read_trials(study)
    entries = [
        TrialEntry(arm=cell.arm, method=cell.method, trial=trials[cell.name])
        for cell in study.cells
        if cell.name in trials
    ]
    study_rows: list[StudyRow] = []
    notes = [
        *study.notes,
        *_note_unfinished_cells(study.cells),
        *_note_shared_files(study.prepared),
        *_note_mixed_versions(trials),
    ]
    for arm in dict.fromkeys(entry.arm for entry in entries):
        here = [entry for entry in entries if entry.arm == arm]
        _check_same_prompts(here)
        study_rows += compare_methods(
            arm, collect_sides(entries, arm, study.baseline), study.baseline, study.bootstrap
        )
        notes += [note if arm == MAIN_ARM else f"{arm}: {note}" for note in _note_doubts(here, study.baseline)]
    return StudyFindings(study=study, trials=trials, rows=study_rows, notes=notes)


def _read_trials(study: Study) -> tuple[Study, dict[str, Trial]]:
    """The finished runs by cell, and the study with the fate of those that cannot be read."""
    cells: list[StudyCell] = []
    trials: dict[str, Trial] = {}
    for cell in study.cells:
        if cell.state == "finished":
            try:
                trials[cell.name] = read_trial(cell.run)
            except (OSError, ValueError) as error:
                cell = replace(cell, state="failed", detail=f"cannot be read: {error}")
        cells.append(cell)
    return replace(study, cells=cells), trials


def _check_same_prompts(entries: Sequence[TrialEntry]) -> None:
    first = entries[0].trial
    for entry in entries[1:]:
        if entry.trial.asked != first.asked:
            rule = "runs that are compared must have the same test prompts in the same order"
            raise ValueError(f"{rule}: {entry.trial.run} differs from {first.run}")


def _note_unfinished_cells(cells: Sequence[StudyCell]) -> list[str]:
    notes = []
    state_verbs: tuple[tuple[CellState, str], ...] = (
        ("failed", "failed"),
        ("stopped", "were stopped"),
        ("waiting", "have not begun"),
    )
    for state, verb in state_verbs:
        names = [cell.name for cell in cells if cell.state == state]
        notes += [f"{len(names)} of {len(cells)} cells {verb}: {_join_names(names)}"] if names else []
    return notes


def _note_shared_files(files: Sequence[PreparedFile]) -> list[str]:
    """Seeds that share what they learn from differ by less."""
    return [
        f"{_join_names(prepared_file.methods)}: all seeds train on the one file {prepared_file.name}: that its"
        " pairs were sampled once is not in their spread"
        for prepared_file in files
        if len(prepared_file.seeds) > 1
    ]


def _note_mixed_versions(trials: Mapping[str, Trial]) -> list[str]:
    """Runs of different code or packages are not quite comparable."""
    notes = []
    names = sorted({name for trial in trials.values() for name in trial.versions})
    for name in names:
        counts = Counter(trial.versions.get(name, "not told") for trial in trials.values())
        if len(counts) > 1:
            version_counts = ", ".join(f"{value[:12]} ({count} runs)" for value, count in counts.most_common())
            what = "made with different code" if name in CODE_VERSION_KEYS else "made with different packages"
            notes.append(f"the runs were {what}: {name} is {version_counts}")
    return notes


def _note_doubts(entries: Sequence[TrialEntry], baseline: str) -> list[str]:
    """What a reader of the figures of one arm must know."""
    notes = []
    if baseline != BASE_METHOD and all(entry.method != baseline for entry in entries):
        notes.append(f"no finished run of {baseline}: there is nothing to hold the others against")
    first = entries[0].trial.before
    changed = [
        entry.trial.run.name
        for entry in entries
        if [(r.text, r.codes) for r in entry.trial.before] != [(r.text, r.codes) for r in first]
    ]
    if changed:
        notes.append(
            f"the replies before training are not the same in all runs: {_join_names(changed)} differ from "
            f"{entries[0].trial.run.name}"
        )
    seeds = {method: sorted(e.trial.seed for e in entries if e.method == method) for method in
             dict.fromkeys(entry.method for entry in entries)}  # fmt: skip
    everyone = sorted({seed for own in seeds.values() for seed in own})
    fewer = [f"{method} ({', '.join(map(str, own))})" for method, own in seeds.items() if own != everyone]
    if fewer:
        notes.append(f"not every method has the seeds {', '.join(map(str, everyone))}: {_join_names(fewer)}")
    silent = sum(reply.reward is None for entry in entries for reply in entry.trial.after)
    if silent:
        notes.append(f"{silent} replies after training have no reward: the judge gave none")
    return notes


def _join_names(names: Sequence[str]) -> str:
    omitted_note = f" and {len(names) - MAX_NOTE_NAMES} more" if len(names) > MAX_NOTE_NAMES else ""
    return ", ".join(names[:MAX_NOTE_NAMES]) + omitted_note
