"""The replies that ``wavgate pairs`` chooses from: sampled and judged on a run's actors, without its learner.

    prompts -> rollout workers -> replies, streamed -> judge workers -> verdicts -> outcome, prompt by prompt

As many prompts are in hand as in a step of a run: ``rollout.deadline_s`` is for them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from actors.cluster import Cluster, Plan
from actors.collect import Harvest, check_outage, encode, harvest_step
from actors.figures import figures
from actors.fleet import Fleet
from actors.interrupt import until_terminated
from actors.monitor import Monitor
from actors.pair_files import PairFiles
from actors.pair_outcome import Outcome, outcome_of
from actors.record import RunDirectory
from actors.voices import measure_voice
from conf.schema import Config
from judge.api import Probed
from rollout.sampling import NO_STEP
from speech.manifest import Row
from speech.pairs import Provenance

Collect = Callable[[Sequence[Row]], Awaitable[Harvest]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A command that can start."""

    config: Config
    layout: Plan
    manifest: Path
    rows: tuple[Row, ...]
    provenance: Provenance


class Sampler:
    """Goes through the prompts that are open.

    Example:
        Sampler(work, files, journal.add).run(todo, probed)
    """

    def __init__(self, work: Work, files: PairFiles, keep: Callable[[Outcome], None]) -> None:
        self._work, self._files, self._keep = work, files, keep
        self._config = work.config

    def run(self, todo: Sequence[Row], probed: Probed | None) -> None:
        """All of them, on Ray. KeyboardInterrupt, also for SIGTERM. RunError: it cannot go on."""
        run, batches = RunDirectory(self._files.folder), ceil(len(todo) / self._size)
        cluster = Cluster(self._config, self._work.layout)
        try:
            with Monitor(batches) as monitor:
                run.on_event = monitor.event
                replies = len(todo) * self._config.rollout.group_size
                monitor.say(f"{len(todo)} prompts are open: {replies} replies to sample and judge")
                for line in probed.describe() if probed is not None else ():
                    run.event("judge", line)
                fleet = Fleet(self._config, cluster, run, probed)
                try:
                    asyncio.run(until_terminated(self._on_fleet(todo, fleet, monitor)))
                except asyncio.CancelledError:
                    raise KeyboardInterrupt from None
                finally:
                    fleet.close()
        finally:
            cluster.close(self._files.folder / "infra")

    async def _on_fleet(self, todo: Sequence[Row], fleet: Fleet, monitor: Monitor) -> None:
        await fleet.start(learns=False)
        manifest, folder = self._work.manifest, self._files.folder
        note = await measure_voice(fleet, self._config, manifest, self._work.rows, folder)
        if note is not None:
            monitor.say(note)

        async def collect(rows: Sequence[Row]) -> Harvest:
            examples = await encode(fleet.rollout, manifest, rows)
            monitor.phase("sample", total=len(rows) * self._config.rollout.group_size)
            return await harvest_step(
                fleet.rollout,
                fleet.judges,
                self._config,
                manifest,
                rows,
                examples,
                NO_STEP,
                audio=self._files.sampling,
                progress=monitor.tick,
            )

        await self.go_through(todo, collect, monitor.step)

    async def go_through(
        self, todo: Sequence[Row], collect: Collect, tell: Callable[[int, dict[str, float]], None]
    ) -> None:
        """Prompt by prompt, ``tell`` after each batch. JudgeOutage: too many verdicts are missing."""
        for number, start in enumerate(range(0, len(todo), self._size), start=1):
            clock, rows = time.perf_counter(), todo[start : start + self._size]
            batch = await collect(rows)
            for row, group in zip(rows, batch.groups, strict=True):
                found = outcome_of(
                    row,
                    group,
                    self._config,
                    self._work.provenance,
                    clips=lambda row: self._files.clips(row, self._work.manifest.parent),
                    sound=self._files.keep,
                )
                self._keep(found)
            self._files.forget()
            check_outage([judged for _, judged in batch.replies], self._config.judge.max_missing)
            tell(number, {**figures(batch, step=1), "time/step": time.perf_counter() - clock})

    @property
    def _size(self) -> int:
        return self._config.rollout.prompts_per_step
