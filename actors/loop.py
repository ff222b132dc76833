"""The loop: a prepared job, learnt step by step on a fleet of actors.

    prompts -> rollout workers -> replies, streamed -> judge workers -> verdicts
                 ^                                                        |  statistics -> gate -> lambda
                 |  new weights                                           v
               learner ranks <-------------------- batch ------------- driver -> metrics, records, checkpoints

Who waits for whom: the learner for the last verdict of its step; with staleness S=1 the next batch is sampled
while this one is learnt; the weight sync waits for both, so no reply is ever sampled across an update.
The driver holds ids, numbers and references, never audio or weights.
"""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

from actors.batches import BatchScheduler, CollectedBatch
from actors.canaries import CanaryChecks
from actors.collect import check_outage
from actors.context import RunContext
from actors.diagnose import DiagnosticsRecorder
from actors.evaluate import HeldOutEvaluator
from actors.run import checkpoint
from actors.run.checkpoint import DriverState
from actors.run.diversity import compute_diversity_metrics
from actors.run.metrics import compute_reply_metrics
from actors.run.record import is_due, record_step
from actors.voices import measure_voice
from conf.schema import Config
from judge.types import Scale
from learner.decide import StepDecision, decide_step, select_rewarded_rollouts
from learner.gate import build_lambda_source
from learner.types import StepResult
from report.run import page


class Driver:
    """Runs one prepared job to its end on a fleet of actors."""

    def __init__(self, context: RunContext) -> None:
        self._job, self._run, self._fleet, self._monitor = context
        self._config = config = context.job.config
        self._gate = build_lambda_source(config.algo, Scale(config.judge.scale_lo, config.judge.scale_hi))
        self._batches = BatchScheduler(context)
        self._held_out = HeldOutEvaluator(context)
        self._canaries = CanaryChecks(context)
        self._diagnoses = DiagnosticsRecorder(context)
        self._model = checkpoint.model_fingerprint(config.model.path)
        self._learning: asyncio.Task[StepResult] | None = None
        self._saving: asyncio.Task[None] | None = None
        snapshot = self._job.snapshot
        self._state = self._state_after(0) if snapshot is None else snapshot[1]  # of the last whole step

    async def train(self) -> None:
        """From the start, or a checkpoint, to final/ and the report.

        Cancelled: a checkpoint of the last whole step first.
        """
        self._monitor.begin_phase("start")
        self._monitor.say(_describe_start(self._config))
        await self._fleet.start()
        try:
            await self._measure_voice()
            await self._start_or_resume()
            for step in range(self._state.step + 1, self._config.run.steps + 1):
                await self._step(step)
                if self._canaries.is_due_at(step):
                    await self._canaries.check(step)
                if step == self._config.run.steps or is_due(step, self._config.run.checkpoint_every):
                    await self._checkpoint()
                await self._evaluate_if_due(step)
            await self._finish()
        except asyncio.CancelledError:
            await self._save_after_interrupt()
            raise

    async def _measure_voice(self) -> None:
        """Engines hold the start policy's weights until the first sync, also in a resumed run."""
        config = self._config
        note = await measure_voice(self._fleet, config, config.data.train, self._job.train, self._run.path)
        if note is not None:
            self._run.event("voice", note)

    async def _start_or_resume(self) -> None:
        """Evaluate the start policy, or load the checkpoint and give its weights to the engines."""
        if self._job.snapshot is None:
            await self._canaries.check(0)
            await self._evaluate_initial_policy()
            return
        folder, state = self._job.snapshot
        await self._fleet.learner.load(folder / "learner")
        self._gate.load_state_dict(state.gate)
        await self._fleet.sync(state.step)
        ahead = checkpoint.read_prefetched_batch(folder)
        self._batches.resume_after(state.step, state.cursors, ahead)
        last_step_with_audio = state.step if ahead is None else ahead.draw.step
        # Only here: nothing can keep the run from going on now.
        self._run.discard_after(state.step, self._config, last_step_with_audio)
        self._monitor.resume(state.step)
        self._run.event("resume", f"continued from {folder.name}")
        await self._canaries.check(state.step)
        if state.step == 0:
            await self._evaluate_initial_policy()
        else:
            await self._evaluate_if_due(state.step)

    async def _evaluate_initial_policy(self) -> None:
        """Evaluate the start policy where that was not done before an interruption."""
        for split in ("test", "validation"):
            if not self._held_out.is_done(split, "before", 0):
                await self._held_out.evaluate(split, "before", 0)

    async def _evaluate_if_due(self, step: int) -> None:
        """Evaluate the policy of a step where that is due and was not done before an interruption."""
        due = step < self._config.run.steps and is_due(step, self._config.run.eval_every)
        if due and not self._held_out.is_done("validation", "during", step):
            await self._held_out.evaluate("validation", "during", step)

    async def _step(self, step: int) -> None:
        """Sample, judge, decide, learn, sync, record."""
        start = time.perf_counter()
        self._run.step = step
        self._batches.start(step)
        batch = await self._batches.wait_for_batch()
        check_outage([judged for _, judged in batch.judged.replies], self._config.judge.max_missing)
        self._batches.start(step)  # S=1: the next batch, while this one is learnt
        learn_start = time.perf_counter()
        self._monitor.begin_phase("learn")
        decision = await self._decide(batch)
        times = {"time/diagnose": await self._diagnoses.diagnose_if_due(decision.batch)}
        self._learning = asyncio.create_task(self._learn(decision))
        try:
            result = await asyncio.shield(self._learning)  # an interrupt lets it end: gate and weights agree
            times["time/learn"] = time.perf_counter() - learn_start - times["time/diagnose"]
            await self._batches.wait_until_sampled()
            sync_start = time.perf_counter()
            self._monitor.begin_phase("sync")
            await self._fleet.sync(result.version)
            times["time/sync"] = time.perf_counter() - sync_start
            times |= await self._fleet.collect_judge_metrics()
        except asyncio.CancelledError:
            self._record(batch, decision, await self._learning, {**times, "time/step": time.perf_counter() - start})
            raise
        self._record(batch, decision, result, {**times, "time/step": time.perf_counter() - start})

    async def _decide(self, batch: CollectedBatch) -> StepDecision:
        groups, algo = batch.judged.groups, self._config.algo
        penalties = None
        if algo.kl_in == "reward" and algo.kl.any and groups:
            penalties = await self._fleet.learner.compute_kl_penalties(select_rewarded_rollouts(groups))
        return decide_step(
            batch.step,
            groups,
            batch.anchors,
            self._gate,
            self._config,
            pairs=batch.pairs,
            penalties=penalties,
        )

    async def _learn(self, decision: StepDecision) -> StepResult:
        result = await self._fleet.learner.step(decision.batch)
        self._state = self._state_after(decision.batch.step)
        return result

    def _record(
        self, batch: CollectedBatch, decision: StepDecision, result: StepResult, times: dict[str, float]
    ) -> None:
        idle = self._fleet.compute_idle_shares({**times, "time/generate": batch.judged.generate_s})
        metrics: dict[str, float] = {"step": batch.step, "policy_version": result.version}
        metrics |= {
            **compute_reply_metrics(batch.judged, batch.step),
            **compute_diversity_metrics(batch.judged.groups),
            **decision.metrics,
            **result.metrics,
            **self._diagnoses.record(batch.step),
            **times,
            **idle,
        }
        record_step(self._run, batch.step, batch.rows, batch.judged.groups, decision, result, self._config, metrics)
        self._monitor.step(batch.step, metrics)

    def _state_after(self, step: int) -> DriverState:
        return DriverState(
            step=step,
            seed=self._config.run.seed,
            gate=self._gate.state_dict(),
            model=self._model,
            data=self._job.train.digest,
        )

    async def _checkpoint(self) -> None:
        """A snapshot of the last whole step; an interrupt lets it end."""
        self._saving = asyncio.create_task(self._save())
        await asyncio.shield(self._saving)

    async def _save(self) -> None:
        self._monitor.begin_phase("checkpoint")
        loop = asyncio.get_running_loop()

        def save_learner(folder: Path) -> None:
            asyncio.run_coroutine_threadsafe(self._fleet.learner.save(folder), loop).result()

        batch = self._batches.prefetched_after(self._state.step)
        ahead = None if batch is None else batch.prefetched
        state = replace(self._state, cursors=self._batches.cursors(self._state.step))
        keep = self._config.run.keep_checkpoints
        path = await asyncio.to_thread(checkpoint.save_snapshot, self._run.path, state, save_learner, keep, ahead)
        self._run.event("checkpoint", f"wrote {path.name}")

    async def _save_after_interrupt(self) -> None:
        """Ctrl-C or SIGTERM: let a running optimiser step end, then save."""
        self._run.event("interrupt", "asked to end: writing a checkpoint (Ctrl-C again to stop at once)")
        await self._batches.stop_sampling(self._state.step)
        if self._saving is not None:
            await self._saving
        if not checkpoint.snapshot_folder(self._run.path, self._state.step).exists():
            await self._checkpoint()

    async def _finish(self) -> None:
        """Evaluate the learnt policy, export it, draw the report."""
        for split in ("test", "validation"):
            await self._held_out.evaluate(split, "after", self._config.run.steps)
        self._monitor.begin_phase("export")
        await self._fleet.learner.export(self._run.path / "final")
        page.write_run_page(self._run.path)


def _describe_start(config: Config) -> str:
    counts = (
        ("engine", config.rollout.workers),
        ("judge", config.judge.workers),
        ("learner rank", config.learner.ranks),
    )
    return "starting " + ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts)
