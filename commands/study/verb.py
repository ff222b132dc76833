"""``wavgate study``: every cell of a study as a run in a process of its own, then the page.

    DIR/runs/CELL/          the run of a cell: METHOD-seedN, in an arm ARM-METHOD-seedN
    DIR/logs/CELL.log .err  what it printed
    DIR/prepared/           files that cells need
    DIR/study.json          the code it was begun with: it goes on with no other
    DIR/cells.jsonl         what was started, how long it took, how it ended
    DIR/abandoned/          runs that ended before their first checkpoint and were begun again
    DIR/study.html ...      report/study/write.py; the study file, too

A cell that fails is listed and the others go on. The same command goes on where it stopped: finished cells
are skipped, half-done ones resume from their checkpoint, failed ones are tried again. A cell whose settings
are not those that its run began with is refused: nothing is mixed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import yaml

from actors.errors import UserError
from actors.exits import FAILED, OK
from actors.run.checkpoint import list_snapshots
from actors.run.interrupt import interrupt_on_termination
from actors.run.lock import lock_folder
from commands.pairs.files import PairFiles, read_sampled_tokens
from commands.study.attempt import AttemptResult, run_command
from commands.study.attempt_log import AttemptLog
from commands.study.cells import PlannedRun, RequiredFile, plan_study_runs
from commands.study.freeze import pin_study_source
from conf.load import read_config
from conf.overrides import quote_override
from conf.schema import Config
from conf.study import UNTRAINED, StudyConfig, StudyError, read_study
from report.study import findings as page
from report.study.findings import CellState, PreparedFile, StudyCell
from report.study.tables import summarise_study
from report.study.trials import flatten_settings, is_finished, unquote_setting
from report.study.write import write_study_files

RUN_LOCATION_SETTINGS = ("run.root", "run.name", "run.resume")  # settings that say where a run is, not what it does
DRIVER_COMMAND = (sys.executable, "-P", "-m", "actors.driver")  # runs a cell; overrides follow
CLI_COMMAND = (sys.executable, "-P", "-m", "commands.cli")  # makes a file that cells need; its verb follows


def run_study(file: Path, to: Path | None, overrides: Sequence[str], *, page_only: bool = False) -> int:
    """Run what has not been run, then draw; with ``page_only`` only draw. 1 when a cell is not finished."""
    settings = read_study(file, overrides)
    folder = (to or Path("runs") / file.stem).absolute()
    runner = StudyRunner(settings, plan_study_runs(settings, file, folder), folder)
    if (folder / "config.yaml").exists():
        raise UserError(f"--to: must not be a run directory: got {folder}")
    runner.check(file)
    if not page_only:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, "a study, or a run that it started,") as lock, interrupt_on_termination():
            pin_study_source(folder)
            (folder / "study.yaml").write_text(_render_effective_study(file, settings, overrides))
            runner.run(lock)
    return draw_study_page(settings, runner)


def draw_study_page(settings: StudyConfig, runner: "StudyRunner") -> int:
    """Work the figures out and write them; 1 when a cell is not finished."""
    try:
        study_figures = page.compute_findings(runner.study())
        written = write_study_files(study_figures, runner.folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    print("\n".join(summarise_study(study_figures)))
    print(f"page: {written[0]}")
    return OK if len(study_figures.trials) == len(runner.cells) else FAILED


class StudyRunner:
    """Knows what became of every cell, from the disk alone, and runs the rest."""

    def __init__(self, settings: StudyConfig, cells: Sequence[PlannedRun], folder: Path) -> None:
        self.cells, self.folder, self._settings = cells, folder, settings
        self._log = AttemptLog(folder / "cells.jsonl")
        self._broken: dict[str, str] = {}  # what could not be prepared, and why

    def path(self, cell: PlannedRun) -> Path:
        """Its run directory."""
        return self.folder / "runs" / cell.name

    def check(self, file: Path) -> None:
        """StudyError: a cell or a prepared file that was begun with other settings."""
        problems = []
        for cell in self.cells:
            run = self.path(cell)
            changes = _describe_changes(run, cell.config) if is_finished(run) or list_snapshots(run) else ""
            if changes:
                problems.append(f"{cell.name}: {changes}: choose another --to, or remove {run}")
        for prepared_file in self._files():
            if (
                self._is_made(prepared_file)
                and (last := self._log.last(prepared_file.name))
                and last.arguments != prepared_file.arguments
            ):
                then = " ".join(last.arguments)
                problems.append(
                    f"prepare.{prepared_file.name}: was `{then}`: choose another --to, or remove {prepared_file.file}"
                )
        if problems:
            raise StudyError(file, problems)

    def run(self, lock: int) -> None:
        """All that is not finished, one after another. KeyboardInterrupt: after the running one has ended."""
        self._log.recover()
        todo = [cell for cell in self.cells if not is_finished(self.path(cell))]
        finished, width = len(self.cells) - len(todo), len(str(len(self.cells)))
        if finished:
            print(f"{finished} of {len(self.cells)} cells are finished already")
        for place, cell in enumerate(todo, start=1):
            self._prepare(cell, lock)
            print(f"[{finished + place:>{width}}/{len(self.cells)}] {cell.name:<24}", end=" ", flush=True)
            ended = self._run_cell(cell, lock)
            print(_format_result(ended) + self._format_time_left(len(todo) - place), flush=True)
            if ended.interrupted:
                raise KeyboardInterrupt

    def study(self) -> page.Study:
        """What is there, for the page."""
        settings = self._settings
        return page.Study(
            name=settings.name,
            cells=[self._build_cell(cell) for cell in self.cells],
            prepared=[self._build_prepared_file(prepared_file) for prepared_file in self._files()],
            notes=settings.notes,
            baseline=settings.baseline,
            bootstrap=settings.bootstrap,
            settings=_dump_yaml(settings),
            arms={name: " ".join(arm.overrides) for name, arm in settings.arms.items()},
            methods={name: " ".join(own) for name, own in settings.methods.items() if own != UNTRAINED},
        )

    def _build_cell(self, cell: PlannedRun) -> StudyCell:
        state, detail = self.cell_state(cell)
        return StudyCell(
            name=cell.name,
            arm=cell.arm,
            method=cell.method,
            seed=cell.seed,
            run=self.path(cell),
            state=state,
            detail=detail,
            wall_s=self._log.wall_s(cell.name),
        )

    def _files(self) -> list[RequiredFile]:
        """What cells need, each once."""
        return list(
            {prepared_file.name: prepared_file for cell in self.cells for prepared_file in cell.needs}.values()
        )

    def _build_prepared_file(self, prepared_file: RequiredFile) -> PreparedFile:
        last, is_made = self._log.last(prepared_file.name), self._is_made(prepared_file)
        state: CellState = "waiting" if last is None else "stopped" if last.interrupted else "failed"
        users = [cell for cell in self.cells if prepared_file in cell.needs]
        return PreparedFile(
            name=prepared_file.name,
            state="finished" if is_made else state,
            detail=None if is_made or last is None else last.error,
            wall_s=self._log.wall_s(prepared_file.name),
            sampled=read_sampled_tokens(prepared_file.file),
            methods=tuple(dict.fromkeys(cell.method for cell in users)),
            seeds=tuple(dict.fromkeys(cell.seed for cell in users)),
        )

    def cell_state(self, cell: PlannedRun) -> tuple[CellState, str | None]:
        """What became of a cell and, where it is not finished, why."""
        if is_finished(self.path(cell)):
            return "finished", None
        last = self._log.last(cell.name)
        if last is None:
            return ("stopped" if self.path(cell).exists() else "waiting"), None
        return ("stopped" if last.interrupted else "failed"), last.error

    def _run_cell(self, cell: PlannedRun, lock: int) -> AttemptResult:
        run = self.path(cell)
        broken = [
            f"needs {needed_file.name}: {self._broken[needed_file.name]}"
            for needed_file in cell.needs
            if needed_file.name in self._broken
        ]
        if broken:
            ended = AttemptResult(code=1, seconds=0.0, error=broken[0])
            self._log.record_end(cell.name, ended, fresh=False, arguments=())
            return ended
        fresh = not list_snapshots(run)
        if fresh and run.exists():
            _move_to_abandoned(run, self.folder / "abandoned")
        arguments = cell.overrides if fresh else (f"resume={quote_override(str(run))}",)
        limit = 60.0 * self._settings.minutes if self._settings.minutes else None
        self._log.begin(cell.name, fresh=fresh, arguments=arguments)
        ended = run_command(
            [*DRIVER_COMMAND, *arguments], self.folder / "logs" / cell.name, limit, [lock], self._log.touch_running
        )
        if ended.error is None and not is_finished(run):
            ended = AttemptResult(code=1, seconds=ended.seconds, error="ended well, but without held-out replies")
        self._log.record_end(cell.name, ended, fresh=fresh, arguments=arguments)
        return ended

    def _is_made(self, prepared: RequiredFile) -> bool:
        last = self._log.last(prepared.name)
        return last is not None and last.error is None and prepared.file.is_file()

    def _prepare(self, cell: PlannedRun, lock: int) -> None:
        """Make what the cell needs, once. KeyboardInterrupt: see ``run``."""
        for needed_file in cell.needs:
            if needed_file.name in self._broken or self._is_made(needed_file):
                continue
            needed_file.file.parent.mkdir(parents=True, exist_ok=True)
            print(f"{needed_file.name:<24}", end=" ", flush=True)
            logs, limit = (
                self.folder / "logs" / needed_file.name,
                60.0 * needed_file.minutes if needed_file.minutes else None,
            )
            fresh = not PairFiles(needed_file.file).journal.exists()  # else it goes on
            self._log.begin(needed_file.name, fresh=fresh, arguments=needed_file.arguments)
            ended = run_command([*CLI_COMMAND, *needed_file.arguments], logs, limit, [lock], self._log.touch_running)
            if ended.error is None and not needed_file.file.is_file():
                ended = AttemptResult(
                    code=1, seconds=ended.seconds, error=f"ended well, but without {needed_file.file}"
                )
            self._log.record_end(needed_file.name, ended, fresh=fresh, arguments=needed_file.arguments)
            print(_format_result(ended), flush=True)
            if ended.interrupted:
                raise KeyboardInterrupt
            if ended.error is not None:
                self._broken[needed_file.name] = ended.error

    def _format_time_left(self, cells: int) -> str:
        """How long that many more cells take, as the finished ones did."""
        times = [self._log.wall_s(cell.name) for cell in self.cells if is_finished(self.path(cell))]
        known = [seconds for seconds in times if seconds is not None]
        return f", left about {_format_clock(fmean(known) * cells)}" if known and cells else ""


def _describe_changes(run: Path, config: Config) -> str:
    """Which settings a run was begun with that are not ``config``'s; "" when they agree."""
    then, now = (
        flatten_settings(run_config.model_dump(mode="json"))
        for run_config in (read_config(run / "config.yaml"), config)
    )
    differ = [key for key in {**then, **now} if key not in RUN_LOCATION_SETTINGS and then.get(key) != now.get(key)]
    differences = [f"{key} was {unquote_setting(then[key])}, is {unquote_setting(now[key])}" for key in differ]
    return "; ".join(differences)


def _move_to_abandoned(run: Path, folder: Path) -> None:
    """Out of the way: it has no checkpoint to go on from."""
    folder.mkdir(exist_ok=True)
    number, target = 2, folder / run.name
    while target.exists():
        number, target = number + 1, folder / f"{run.name}.{number}"
    run.rename(target)


def _render_effective_study(file: Path, settings: StudyConfig, overrides: Sequence[str]) -> str:
    """The study file as it is; with settings from the command line, as it was read."""
    return _dump_yaml(settings) if overrides else file.read_text(encoding="utf-8")


def _dump_yaml(settings: StudyConfig) -> str:
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=100)


def _format_result(ended: AttemptResult) -> str:
    word = "finished" if ended.error is None else "interrupted" if ended.interrupted else "failed"
    why = "" if ended.error is None or ended.interrupted else f": {ended.error}"
    return f"{word:<11} {_format_clock(ended.seconds):>8}{why}"


def _format_clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
