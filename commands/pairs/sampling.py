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

from actors.cluster import Cluster, PlacementPlan
from actors.collect import JudgedBatch, check_outage, encode_rows, sample_and_judge_step
from actors.fleet import Fleet
from actors.run.interrupt import run_until_terminated
from actors.run.metrics import compute_reply_metrics
from actors.run.monitor import Monitor
from actors.run.record import RunDirectory
from actors.voices import measure_voice
from commands.pairs.files import PairFiles
from commands.pairs.outcome import PairOutcome, decide_pair_outcome
from conf.schema import Config
from judge.llm.build import ProbedEndpoints
from rollout.sampling import STEP_OUTSIDE_TRAINING
from speech.data.manifest import ManifestRow
from speech.data.pairs import PairProvenance

CollectJudgedBatch = Callable[[Sequence[ManifestRow]], Awaitable[JudgedBatch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairJob:
    """A command that can start."""

    config: Config
    layout: PlacementPlan
    manifest: Path
    rows: tuple[ManifestRow, ...]
    provenance: PairProvenance


class PairSampler:
    """Goes through the prompts that are open.

    Example:
        PairSampler(work, files, journal.add).run(todo, probed)
    """

    def __init__(self, job: PairJob, files: PairFiles, keep: Callable[[PairOutcome], None]) -> None:
        self._work, self._files, self._keep = job, files, keep
        self._config = job.config

    def run(self, todo: Sequence[ManifestRow], probed: ProbedEndpoints | None) -> None:
        """All of them, on Ray. KeyboardInterrupt, also for SIGTERM. RunError: it cannot go on."""
        run, batches = RunDirectory(self._files.folder), ceil(len(todo) / self._size)
        cluster = Cluster(self._config.cluster, self._work.layout)
        try:
            with Monitor(batches) as monitor:
                run.on_event = monitor.event
                replies = len(todo) * self._config.rollout.group_size
                monitor.say(f"{len(todo)} prompts are open: {replies} replies to sample and judge")
                for line in probed.describe() if probed is not None else ():
                    run.event("judge", line)
                fleet = Fleet(self._config, cluster, run, probed)
                try:
                    asyncio.run(run_until_terminated(self._on_fleet(todo, fleet, monitor)))
                except asyncio.CancelledError:
                    raise KeyboardInterrupt from None
                finally:
                    fleet.close()
        finally:
            cluster.close(self._files.folder / "infra")

    async def _on_fleet(self, todo: Sequence[ManifestRow], fleet: Fleet, monitor: Monitor) -> None:
        await fleet.start(learns=False)
        manifest, folder = self._work.manifest, self._files.folder
        note = await measure_voice(fleet, self._config, manifest, self._work.rows, folder)
        if note is not None:
            monitor.say(note)

        async def collect(rows: Sequence[ManifestRow]) -> JudgedBatch:
            examples = await encode_rows(fleet.rollout, manifest, rows)
            monitor.begin_phase("sample", total=len(rows) * self._config.rollout.group_size)
            return await sample_and_judge_step(
                fleet.rollout,
                fleet.judges,
                self._config,
                manifest,
                rows,
                examples,
                STEP_OUTSIDE_TRAINING,
                audio=self._files.sampling_path,
                progress=monitor.tick,
            )

        await self.sample_prompts(todo, collect, monitor.step)

    async def sample_prompts(
        self, todo: Sequence[ManifestRow], collect: CollectJudgedBatch, tell: Callable[[int, dict[str, float]], None]
    ) -> None:
        """Prompt by prompt, ``tell`` after each batch. JudgeOutage: too many verdicts are missing."""
        for number, start in enumerate(range(0, len(todo), self._size), start=1):
            clock, rows = time.perf_counter(), todo[start : start + self._size]
            batch = await collect(rows)
            for row, group in zip(rows, batch.groups, strict=True):
                outcome = decide_pair_outcome(
                    row,
                    group,
                    self._config.margin,
                    self._work.provenance,
                    clips=lambda row: self._files.keep_prompt_clips(row, self._work.manifest.parent),
                    sound=self._files.keep,
                )
                self._keep(outcome)
            self._files.remove_unkept_audio()
            check_outage([judged for _, judged in batch.replies], self._config.judge.max_missing)
            tell(number, {**compute_reply_metrics(batch, step=1), "time/step": time.perf_counter() - clock})

    @property
    def _size(self) -> int:
        return self._config.rollout.prompts_per_step
