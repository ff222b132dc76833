"""``wavgate study``: every cell of a study as a run in a process of its own, then the page.

    DIR/runs/CELL/          the run of a cell: METHOD-seedN, in an arm ARM-METHOD-seedN
    DIR/logs/CELL.log .err  what it printed
    DIR/prepared/           files that cells need
    DIR/study.json          the code it was begun with: it goes on with no other
    DIR/cells.jsonl         what was started, how long it took, how it ended
    DIR/abandoned/          runs that ended before their first checkpoint and were begun again
    DIR/study.html ...      report/study.py; the study file, too

A cell that fails is listed and the others go on. The same command goes on where it stopped: finished cells
are skipped, half-done ones resume from their checkpoint, failed ones are tried again. A cell whose settings
are not those that its run began with is refused: nothing is mixed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import yaml

from actors.attempt import Ended, attempt
from actors.attempt_log import AttemptLog
from actors.checkpoint import snapshots
from actors.errors import UserError
from actors.freeze import freeze
from actors.interrupt import terminable
from actors.lock import alone
from actors.pair_files import PairFiles, sampled_tokens
from conf.cells import Planned, Prepared, plan
from conf.load import read
from conf.overrides import quoted
from conf.schema import Config
from conf.study import UNTRAINED, StudyConfig, StudyError, read_study
from report import study as page
from report.paired import Bootstrap
from report.study import Cell, PreparedFile, State
from report.study_tables import summary
from report.trials import finished, flat, plain

OK, FAILED = 0, 1
WHERE = ("run.root", "run.name", "run.resume")  # settings that say where a run is, not what it does
DRIVER = (sys.executable, "-P", "-m", "actors.driver")  # runs a cell; overrides follow
COMMAND = (sys.executable, "-P", "-m", "actors.cli")  # makes a file that cells need; its verb follows


def study(file: Path, to: Path | None, overrides: Sequence[str], *, page_only: bool = False) -> int:
    """Run what has not been run, then draw; with ``page_only`` only draw. 1 when a cell is not finished."""
    settings = read_study(file, overrides)
    folder = (to or Path("runs") / file.stem).absolute()
    runner = Runner(settings, plan(settings, file, folder), folder)
    if (folder / "config.yaml").exists():
        raise UserError(f"--to: must not be a run directory: got {folder}")
    runner.check(file)
    if not page_only:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, "a study, or a run that it started,") as lock, terminable():
            freeze(folder)
            (folder / "study.yaml").write_text(_effective(file, settings, overrides))
            runner.run(lock)
    return draw(settings, runner)


def draw(settings: StudyConfig, runner: "Runner") -> int:
    """Work the figures out and write them; 1 when a cell is not finished."""
    try:
        found = page.find(runner.study())
        written = page.write(found, runner.folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    print("\n".join(summary(found)))
    print(f"page: {written[0]}")
    return OK if len(found.trials) == len(runner.cells) else FAILED


class Runner:
    """Knows what became of every cell, from the disk alone, and runs the rest."""

    def __init__(self, settings: StudyConfig, cells: Sequence[Planned], folder: Path) -> None:
        self.cells, self.folder, self._settings = cells, folder, settings
        self._log = AttemptLog(folder / "cells.jsonl")
        self._broken: dict[str, str] = {}  # what could not be prepared, and why

    def path(self, cell: Planned) -> Path:
        """Its run directory."""
        return self.folder / "runs" / cell.name

    def check(self, file: Path) -> None:
        """StudyError: a cell or a prepared file that was begun with other settings."""
        problems = []
        for cell in self.cells:
            run = self.path(cell)
            changes = _changes(run, cell.config) if finished(run) or snapshots(run) else ""
            if changes:
                problems.append(f"{cell.name}: {changes}: choose another --to, or remove {run}")
        for one in self._files():
            if self._made(one) and (last := self._log.last(one.name)) and last.arguments != one.arguments:
                then = " ".join(last.arguments)
                problems.append(f"prepare.{one.name}: was `{then}`: choose another --to, or remove {one.file}")
        if problems:
            raise StudyError(file, problems)

    def run(self, lock: int) -> None:
        """All that is not finished, one after another. KeyboardInterrupt: after the running one has ended."""
        self._log.recover()
        todo = [cell for cell in self.cells if not finished(self.path(cell))]
        done, width = len(self.cells) - len(todo), len(str(len(self.cells)))
        if done:
            print(f"{done} of {len(self.cells)} cells are finished already")
        for place, cell in enumerate(todo, start=1):
            self._prepare(cell, lock)
            print(f"[{done + place:>{width}}/{len(self.cells)}] {cell.name:<24}", end=" ", flush=True)
            ended = self._cell(cell, lock)
            print(_told(ended) + self._left(len(todo) - place), flush=True)
            if ended.interrupted:
                raise KeyboardInterrupt

    def study(self) -> page.Study:
        """What is there, for the page."""
        told = self._settings
        return page.Study(
            name=told.name,
            cells=[self._shown(cell) for cell in self.cells],
            prepared=[self._shown_file(one) for one in self._files()],
            notes=told.notes,
            baseline=told.baseline,
            bootstrap=Bootstrap(**told.bootstrap.model_dump()),
            settings=_yaml(told),
            arms={name: " ".join(arm.overrides) for name, arm in told.arms.items()},
            methods={name: " ".join(own) for name, own in told.methods.items() if own != UNTRAINED},
        )

    def _shown(self, cell: Planned) -> Cell:
        state, detail = self.fate(cell)
        return Cell(
            name=cell.name,
            arm=cell.arm,
            method=cell.method,
            seed=cell.seed,
            run=self.path(cell),
            state=state,
            detail=detail,
            wall_s=self._log.wall_s(cell.name),
        )

    def _files(self) -> list[Prepared]:
        """What cells need, each once."""
        return list({one.name: one for cell in self.cells for one in cell.needs}.values())

    def _shown_file(self, one: Prepared) -> PreparedFile:
        last, made = self._log.last(one.name), self._made(one)
        state: State = "waiting" if last is None else "stopped" if last.interrupted else "failed"
        users = [cell for cell in self.cells if one in cell.needs]
        return PreparedFile(
            name=one.name,
            state="finished" if made else state,
            detail=None if made or last is None else last.error,
            wall_s=self._log.wall_s(one.name),
            sampled=sampled_tokens(one.file),
            methods=tuple(dict.fromkeys(cell.method for cell in users)),
            seeds=tuple(dict.fromkeys(cell.seed for cell in users)),
        )

    def fate(self, cell: Planned) -> tuple[State, str | None]:
        """What became of a cell and, where it is not finished, why."""
        if finished(self.path(cell)):
            return "finished", None
        last = self._log.last(cell.name)
        if last is None:
            return ("stopped" if self.path(cell).exists() else "waiting"), None
        return ("stopped" if last.interrupted else "failed"), last.error

    def _cell(self, cell: Planned, lock: int) -> Ended:
        run = self.path(cell)
        broken = [f"needs {one.name}: {self._broken[one.name]}" for one in cell.needs if one.name in self._broken]
        if broken:
            ended = Ended(code=1, seconds=0.0, error=broken[0])
            self._log.note(cell.name, ended, fresh=False, arguments=())
            return ended
        fresh = not snapshots(run)
        if fresh and run.exists():
            _abandon(run, self.folder / "abandoned")
        arguments = cell.overrides if fresh else (f"resume={quoted(str(run))}",)
        limit = 60.0 * self._settings.minutes if self._settings.minutes else None
        self._log.begin(cell.name, fresh=fresh, arguments=arguments)
        ended = attempt([*DRIVER, *arguments], self.folder / "logs" / cell.name, limit, [lock], self._log.beat)
        if ended.error is None and not finished(run):
            ended = Ended(code=1, seconds=ended.seconds, error="ended well, but without held-out replies")
        self._log.note(cell.name, ended, fresh=fresh, arguments=arguments)
        return ended

    def _made(self, prepared: Prepared) -> bool:
        last = self._log.last(prepared.name)
        return last is not None and last.error is None and prepared.file.is_file()

    def _prepare(self, cell: Planned, lock: int) -> None:
        """Make what the cell needs, once. KeyboardInterrupt: see ``run``."""
        for one in cell.needs:
            if one.name in self._broken or self._made(one):
                continue
            one.file.parent.mkdir(parents=True, exist_ok=True)
            print(f"{one.name:<24}", end=" ", flush=True)
            logs, limit = self.folder / "logs" / one.name, 60.0 * one.minutes if one.minutes else None
            fresh = not PairFiles(one.file).journal.exists()  # else it goes on
            self._log.begin(one.name, fresh=fresh, arguments=one.arguments)
            ended = attempt([*COMMAND, *one.arguments], logs, limit, [lock], self._log.beat)
            if ended.error is None and not one.file.is_file():
                ended = Ended(code=1, seconds=ended.seconds, error=f"ended well, but without {one.file}")
            self._log.note(one.name, ended, fresh=fresh, arguments=one.arguments)
            print(_told(ended), flush=True)
            if ended.interrupted:
                raise KeyboardInterrupt
            if ended.error is not None:
                self._broken[one.name] = ended.error

    def _left(self, cells: int) -> str:
        """How long that many more cells take, as the finished ones did."""
        times = [self._log.wall_s(cell.name) for cell in self.cells if finished(self.path(cell))]
        known = [seconds for seconds in times if seconds is not None]
        return f", left about {_clock(fmean(known) * cells)}" if known and cells else ""


def _changes(run: Path, config: Config) -> str:
    """Which settings a run was begun with that are not ``config``'s; "" when they agree."""
    then, now = (flat(one.model_dump(mode="json")) for one in (read(run / "config.yaml"), config))
    differ = [key for key in {**then, **now} if key not in WHERE and then.get(key) != now.get(key)]
    told = [f"{key} was {plain(then[key])}, is {plain(now[key])}" for key in differ]
    return "; ".join(told)


def _abandon(run: Path, folder: Path) -> None:
    """Out of the way: it has no checkpoint to go on from."""
    folder.mkdir(exist_ok=True)
    number, target = 2, folder / run.name
    while target.exists():
        number, target = number + 1, folder / f"{run.name}.{number}"
    run.rename(target)


def _effective(file: Path, settings: StudyConfig, overrides: Sequence[str]) -> str:
    """The study file as it is; with settings from the command line, as it was read."""
    return _yaml(settings) if overrides else file.read_text(encoding="utf-8")


def _yaml(settings: StudyConfig) -> str:
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=100)


def _told(ended: Ended) -> str:
    word = "finished" if ended.error is None else "interrupted" if ended.interrupted else "failed"
    why = "" if ended.error is None or ended.interrupted else f": {ended.error}"
    return f"{word:<11} {_clock(ended.seconds):>8}{why}"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
