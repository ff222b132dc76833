"""The batches of a run: which rows a step gets, and when its replies may be sampled.

Invariants: the rows of step n depend on the seed and n alone, whatever the number of workers or the
staleness (``equal_groups=refill``: and on the verdicts). What a checkpoint of step n is given, the cursors
and the batch that was sampled ahead, makes step n + 1 what it would have been. A step that learns nothing
from fresh replies samples none.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from actors.buffer import AdmissionControl
from actors.checks.pairs import example_to_pair
from actors.checks.prepare import draw_distinct_rows
from actors.collect import JudgedBatch, encode_pairs, encode_rows, join_judged_batches, sample_and_judge_step
from actors.context import RunContext
from actors.errors import describe_error
from actors.run.batch_ahead import DrawnRows, PrefetchedBatch
from actors.run.record import is_due
from learner.decide import ReplyGroup, has_nonzero_advantage
from learner.types import PreferencePair, TrainingReply, example_to_anchor
from rollout.request import example_to_prompt
from rollout.types import Reply
from speech.data.manifest import ManifestRow, RowCursor
from speech.data.pairs import PairRow
from speech.dataset import Example

CursorStates = Mapping[str, Mapping[str, int]]  # state of each, by what it draws
ANCHOR_SERIES, PAIR_SERIES = 1, 2  # series of a seed; the prompts are drawn from its first


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedBatch:
    """One step's prompts, their judged replies, and the reference replies that anchor it."""

    step: int
    rows: tuple[ManifestRow, ...]
    anchors: tuple[TrainingReply, ...]
    judged: JudgedBatch
    pairs: tuple[PreferencePair, ...] = ()  # of data.pairs
    draw: DrawnRows

    @property
    def prefetched(self) -> PrefetchedBatch:
        """What a checkpoint keeps of it."""
        judged = self.judged
        return PrefetchedBatch(
            draw=self.draw,
            groups=tuple(group.replies for group in judged.groups),
            generate_s=judged.generate_s,
            judge_s=judged.judge_s,
            overlap_s=judged.overlap_s,
        )


class BatchScheduler:
    """Draws, samples and judges batches, as far ahead as the staleness rule admits.

    Example:
        batches.start(step)              # this step's, if it is not running yet
        batch = await batches.wait_for_batch()
        batches.start(step)              # S=1: the next one, while this one is learnt
    """

    def __init__(self, context: RunContext) -> None:
        self._job, self._run, self._fleet, self._monitor = context
        self._config = config = context.job.config
        seed, count = config.run.seed, len(self._job.train)
        self._prompts, self._anchors = RowCursor(count, seed), RowCursor(count, seed, ANCHOR_SERIES)
        self._pairs = RowCursor(len(self._job.pairs), seed, PAIR_SERIES) if self._job.pairs else None
        self._admission = AdmissionControl(config.run.staleness, config.rollout.prompts_per_step)
        self._drawn = 0  # steps
        self._ahead: asyncio.Task[CollectedBatch] | None = None
        self._taken: CollectedBatch | None = None  # the last one
        self._before: dict[int, CursorStates] = {}  # that drew the batch of a step, of those not learnt yet

    def prefetched_after(self, step: int) -> CollectedBatch | None:
        """The batch after ``step`` where it was sampled by weights older than those of ``step``."""
        if not self._config.run.staleness or step == 0:
            return None
        if self._taken is not None and self._taken.step == step + 1:
            return self._taken
        task = self._ahead
        whole = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return task.result() if task is not None and whole and self._drawn == step + 1 else None

    def cursors(self, step: int) -> CursorStates:
        """The data cursors that a checkpoint of ``step`` keeps: they draw the first batch that is not sampled yet."""
        first = step + 1 if self.prefetched_after(step) is None else step + 2
        return self._before.get(first) or self._cursor_states()

    def resume_after(self, step: int, cursors: CursorStates, ahead: PrefetchedBatch | None = None) -> None:
        """Go on after ``step``; ``ahead``: the batch that was sampled for the step behind it."""
        for name, cursor in self._cursors_by_name().items():
            cursor.load_state_dict(cursors[name])
        self._admission.resume_at(step)
        self._drawn = step
        if ahead is not None:
            self._launch(self._restore_batch(ahead))

    def start(self, step: int) -> None:
        """Start the next batch if none is under way and it may be sampled while ``step`` is learnt."""
        if self._ahead is None and self._drawn < self._config.run.steps and self._admission.admits(step):
            self._before = {at: states for at, states in self._before.items() if at >= step}
            self._before[self._drawn + 1] = self._cursor_states()
            self._launch(self._collect_batch(self._draw_rows()))

    def _launch(self, batch: Coroutine[Any, Any, CollectedBatch]) -> None:
        self._drawn += 1
        self._admission.start()
        self._ahead = asyncio.create_task(batch)

    def _draw_rows(self) -> DrawnRows:
        """The rows of the next step."""
        rollout, anchors = self._config.rollout, self._config.learner.anchors_per_step
        prompts = draw_distinct_rows(self._prompts, rollout.prompts_per_step)
        own = min(anchors, len(prompts))
        return DrawnRows(
            step=self._drawn + 1,
            prompts=tuple(prompts),
            own=own,
            further=tuple(self._anchors.draw_indices(anchors - own)),
            pairs=() if self._pairs is None else tuple(self._pairs.draw_indices(rollout.prompts_per_step)),
        )

    async def wait_for_batch(self) -> CollectedBatch:
        """The batch that was started, when it is complete. Cancelled: the batch goes on until ``stop_sampling``."""
        assert self._ahead is not None, "start a batch first"
        self._taken = await asyncio.shield(self._ahead)
        self._ahead = None
        self._admission.finish()
        return self._taken

    async def wait_until_sampled(self) -> None:
        """Wait until no reply is being sampled, so that weights may change. ``wait_for_batch`` raises its errors."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})  # bounded by the deadlines inside

    async def stop_sampling(self, step: int) -> None:
        """Stop what is under way after ``step``; a batch that could not be drawn again is let to end. That it
        fails is an event: there is a checkpoint to write.
        """
        if self._ahead is None:
            return
        self._ahead.add_done_callback(self._tell_failure)
        if self._config.run.staleness and 0 < step == self._drawn - 1:
            await self.wait_until_sampled()
        else:
            self._ahead.cancel()

    def _tell_failure(self, batch: asyncio.Task[CollectedBatch]) -> None:
        error = None if batch.cancelled() else batch.exception()
        if error is not None:
            rule = "what was being sampled failed, a resumed run samples it again"
            self._run.event("interrupt", f"{rule}: {describe_error(error)}")

    async def _collect_batch(self, draw: DrawnRows) -> CollectedBatch:
        """Sampled, judged and encoded."""
        examples = await self._examples(draw)
        judged = JudgedBatch.without_replies()
        if self._config.algo.samples_at(draw.step):
            rows = [self._job.train[i] for i in draw.prompts]
            judged = await self._sample(draw.step, rows, examples[: len(draw.prompts)])
            refill_prompts, judged = await self._refill_groups(draw, judged)
            return await self._assemble_batch(replace(draw, prompts=draw.prompts + refill_prompts), examples, judged)
        return await self._assemble_batch(draw, examples, judged)

    async def _restore_batch(self, ahead: PrefetchedBatch) -> CollectedBatch:
        """The batch of a checkpoint."""
        draw = ahead.draw
        examples = await self._examples(draw)
        groups = tuple(
            ReplyGroup(prompt=example_to_prompt(example), replies=replies)
            for example, replies in zip(examples, ahead.groups, strict=False)  # none: nothing was sampled
        )
        judged = JudgedBatch(
            groups=groups,
            generate_s=ahead.generate_s,
            judge_s=ahead.judge_s,
            overlap_s=ahead.overlap_s,
        )
        return await self._assemble_batch(draw, examples, judged)

    async def _examples(self, draw: DrawnRows) -> list[Example]:
        """Of the prompts and of the further anchors behind them."""
        rows = [self._job.train[i] for i in (*draw.prompts, *draw.further)]
        return await encode_rows(self._fleet.rollout, self._config.data.train, rows)

    async def _assemble_batch(
        self, draw: DrawnRows, examples: Sequence[Example], judged: JudgedBatch
    ) -> CollectedBatch:
        further = examples[len(examples) - len(draw.further) :]
        return CollectedBatch(
            step=draw.step,
            rows=tuple(self._job.train[i] for i in draw.prompts),
            anchors=tuple(map(example_to_anchor, (*examples[: draw.own], *further))),
            judged=judged,
            pairs=await self._encode_pairs([self._job.pairs[i] for i in draw.pairs]),
            draw=draw,
        )

    async def _encode_pairs(self, pairs: list[PairRow]) -> tuple[PreferencePair, ...]:
        manifest = self._config.data.pairs
        if not pairs or manifest is None:
            return ()
        return tuple(map(example_to_pair, await encode_pairs(self._fleet.rollout, manifest, pairs)))

    async def _sample(self, step: int, rows: Sequence[ManifestRow], examples: Sequence[Example]) -> JudgedBatch:
        """Judged groups of these rows."""
        config = self._config
        self._monitor.begin_phase("generate", total=len(rows) * config.rollout.group_size)
        return await sample_and_judge_step(
            self._fleet.rollout,
            self._fleet.judges,
            config,
            config.data.train,
            rows,
            examples,
            step,
            audio=self._choose_audio_paths(step),
            progress=self._monitor.tick,
        )

    async def _refill_groups(self, draw: DrawnRows, judged: JudgedBatch) -> tuple[tuple[int, ...], JudgedBatch]:
        """Further prompts, and all groups with theirs, until as many groups differ as a step has prompts, or
        its rounds are over.
        """
        algo, wanted = self._config.algo, self._config.rollout.prompts_per_step
        drawn = list(draw.prompts)
        for _ in range(algo.refill_rounds if algo.equal_groups == "refill" else 0):
            different = sum(has_nonzero_advantage(group, self._config) for group in judged.groups)
            if different >= wanted or len(drawn) == len(self._job.train):
                break
            lacking = ceil((wanted - different) * len(drawn) / max(different, 1))
            refill_prompts = self._draw_beside(drawn, min(lacking, wanted, len(self._job.train) - len(drawn)))
            rows = [self._job.train[i] for i in refill_prompts]
            examples = await encode_rows(self._fleet.rollout, self._config.data.train, rows)
            judged = join_judged_batches(judged, await self._sample(draw.step, rows, examples))
            drawn += refill_prompts
        return tuple(drawn[len(draw.prompts) :]), judged

    def _draw_beside(self, drawn: Sequence[int], count: int) -> list[int]:
        """The next ``count`` rows that are not among those that were drawn."""
        seen = dict.fromkeys(drawn)
        while len(seen) < len(drawn) + count:
            seen |= dict.fromkeys(self._prompts.draw_indices(len(drawn) + count - len(seen)))
        return list(seen)[len(drawn) :]

    def _choose_audio_paths(self, step: int) -> Callable[[Reply], Path | None]:
        log, ends = self._config.log, step in (1, self._config.run.steps)
        keeps_audio = is_due(step, log.rollouts_every) and (ends or is_due(step, log.audio_every))
        return (lambda reply: self._run.reply_audio_path(step, reply)) if keeps_audio else (lambda reply: None)

    def _cursor_states(self) -> CursorStates:
        return {name: cursor.state_dict() for name, cursor in self._cursors_by_name().items()}

    def _cursors_by_name(self) -> dict[str, RowCursor]:
        optional_cursors = {"prompts": self._prompts, "anchors": self._anchors, "pairs": self._pairs}
        return {name: cursor for name, cursor in optional_cursors.items() if cursor is not None}
