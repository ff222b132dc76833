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

from actors.ahead import Ahead, Draw
from actors.buffer import Admission
from actors.collect import Harvest, encode, encode_pairs, harvest_step, joined
from actors.data_pairs import pair_of
from actors.decide import Group, differs
from actors.errors import reason_of
from actors.fleet import Fleet
from actors.monitor import Monitor
from actors.prepare import Job, draw_distinct
from actors.record import RunDirectory, due
from learner.types import Anchor, Pair
from rollout.request import prompt_of
from rollout.types import Reply
from speech.dataset import Example
from speech.manifest import Cursor, Row
from speech.pairs import PairRow

Cursors = Mapping[str, Mapping[str, int]]  # state of each, by what it draws
ANCHORS, PAIRS = 1, 2  # series of a seed; the prompts are drawn from its first


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's prompts, their judged replies, and the reference replies that anchor it."""

    step: int
    rows: tuple[Row, ...]
    anchors: tuple[Anchor, ...]
    harvest: Harvest
    pairs: tuple[Pair, ...] = ()  # of data.pairs
    draw: Draw

    @property
    def ahead(self) -> Ahead:
        """What a checkpoint keeps of it."""
        harvest = self.harvest
        return Ahead(
            draw=self.draw,
            groups=tuple(group.replies for group in harvest.groups),
            generate_s=harvest.generate_s,
            judge_s=harvest.judge_s,
            overlap_s=harvest.overlap_s,
        )


class Batches:
    """Draws, samples and judges batches, as far ahead as the staleness rule admits.

    Example:
        batches.start(step)              # this step's, if it is not running yet
        batch = await batches.take()
        batches.start(step)              # S=1: the next one, while this one is learnt
    """

    def __init__(self, job: Job, run: RunDirectory, fleet: Fleet, monitor: Monitor) -> None:
        self._job, self._run, self._fleet, self._monitor = job, run, fleet, monitor
        self._config = job.config
        seed, count = job.config.run.seed, len(job.train)
        self._prompts, self._anchors = Cursor(count, seed), Cursor(count, seed, ANCHORS)
        self._pairs = Cursor(len(job.pairs), seed, PAIRS) if job.pairs else None
        self._admission = Admission(job.config.run.staleness, job.config.rollout.prompts_per_step)
        self._drawn = 0  # steps
        self._ahead: asyncio.Task[Batch] | None = None
        self._taken: Batch | None = None  # the last one
        self._before: dict[int, Cursors] = {}  # that drew the batch of a step, of those not learnt yet

    def ahead_of(self, step: int) -> Batch | None:
        """The batch after ``step`` where it was sampled by weights older than those of ``step``."""
        if not self._config.run.staleness or step == 0:
            return None
        if self._taken is not None and self._taken.step == step + 1:
            return self._taken
        task = self._ahead
        whole = task is not None and task.done() and not task.cancelled() and task.exception() is None
        return task.result() if task is not None and whole and self._drawn == step + 1 else None

    def cursors(self, step: int) -> Cursors:
        """States that draw the first batch that neither ``step`` nor ``ahead_of(step)`` covers."""
        first = step + 1 if self.ahead_of(step) is None else step + 2
        return self._before.get(first) or self._states()

    def load(self, step: int, cursors: Cursors, ahead: Ahead | None = None) -> None:
        """Go on after ``step``; ``ahead``: the batch that was sampled for the step behind it."""
        for name, cursor in self._named().items():
            cursor.load_state_dict(cursors[name])
        self._admission.resume_at(step)
        self._drawn = step
        if ahead is not None:
            self._launch(self._restored(ahead))

    def start(self, step: int) -> None:
        """Start the next batch if none is under way and it may be sampled while ``step`` is learnt."""
        if self._ahead is None and self._drawn < self._config.run.steps and self._admission.admits(step):
            self._before = {at: states for at, states in self._before.items() if at >= step}
            self._before[self._drawn + 1] = self._states()
            self._launch(self._collect(self._next()))

    def _launch(self, batch: Coroutine[Any, Any, Batch]) -> None:
        self._drawn += 1
        self._admission.start()
        self._ahead = asyncio.create_task(batch)

    def _next(self) -> Draw:
        """The rows of the next step."""
        rollout, anchors = self._config.rollout, self._config.learner.anchors_per_step
        prompts = draw_distinct(self._prompts, rollout.prompts_per_step)
        own = min(anchors, len(prompts))
        return Draw(
            step=self._drawn + 1,
            prompts=tuple(prompts),
            own=own,
            further=tuple(self._anchors.next(anchors - own)),
            pairs=() if self._pairs is None else tuple(self._pairs.next(rollout.prompts_per_step)),
        )

    async def take(self) -> Batch:
        """The batch that was started, when it is complete. Who is cancelled here leaves it to ``end``."""
        assert self._ahead is not None, "start a batch first"
        self._taken = await asyncio.shield(self._ahead)
        self._ahead = None
        self._admission.finish()
        return self._taken

    async def sampled(self) -> None:
        """Wait until no reply is being sampled, so that weights may change. Leaves errors to ``take``."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})  # bounded by the deadlines inside

    async def end(self, step: int) -> None:
        """Stop what is under way after ``step``; a batch that could not be drawn again is let to end. That it
        fails is an event: there is a checkpoint to write.
        """
        if self._ahead is None:
            return
        self._ahead.add_done_callback(self._tell_failure)
        if self._config.run.staleness and 0 < step == self._drawn - 1:
            await self.sampled()
        else:
            self._ahead.cancel()

    def _tell_failure(self, batch: asyncio.Task[Batch]) -> None:
        error = None if batch.cancelled() else batch.exception()
        if error is not None:
            rule = "what was being sampled failed, a resumed run samples it again"
            self._run.event("interrupt", f"{rule}: {reason_of(error)}")

    async def _collect(self, draw: Draw) -> Batch:
        """Sampled, judged and encoded."""
        examples = await self._examples(draw)
        harvest = Harvest.nothing()
        if self._config.algo.samples_at(draw.step):
            rows = [self._job.train[i] for i in draw.prompts]
            harvest = await self._sample(draw.step, rows, examples[: len(draw.prompts)])
            more, harvest = await self._refilled(draw, harvest)
            return await self._batch(replace(draw, prompts=draw.prompts + more), examples, harvest)
        return await self._batch(draw, examples, harvest)

    async def _restored(self, ahead: Ahead) -> Batch:
        """The batch of a checkpoint."""
        draw = ahead.draw
        examples = await self._examples(draw)
        groups = tuple(
            Group(prompt=prompt_of(example), replies=replies)
            for example, replies in zip(examples, ahead.groups, strict=False)  # none: nothing was sampled
        )
        harvest = Harvest(
            groups=groups,
            generate_s=ahead.generate_s,
            judge_s=ahead.judge_s,
            overlap_s=ahead.overlap_s,
        )
        return await self._batch(draw, examples, harvest)

    async def _examples(self, draw: Draw) -> list[Example]:
        """Of the prompts and of the further anchors behind them."""
        rows = [self._job.train[i] for i in (*draw.prompts, *draw.further)]
        return await encode(self._fleet.rollout, self._config.data.train, rows)

    async def _batch(self, draw: Draw, examples: Sequence[Example], harvest: Harvest) -> Batch:
        further = examples[len(examples) - len(draw.further) :]
        return Batch(
            step=draw.step,
            rows=tuple(self._job.train[i] for i in draw.prompts),
            anchors=tuple(map(self._anchor, (*examples[: draw.own], *further))),
            harvest=harvest,
            pairs=await self._encoded([self._job.pairs[i] for i in draw.pairs]),
            draw=draw,
        )

    async def _encoded(self, pairs: list[PairRow]) -> tuple[Pair, ...]:
        manifest = self._config.data.pairs
        if not pairs or manifest is None:
            return ()
        return tuple(map(pair_of, await encode_pairs(self._fleet.rollout, manifest, pairs)))

    async def _sample(self, step: int, rows: Sequence[Row], examples: Sequence[Example]) -> Harvest:
        """Judged groups of these rows."""
        config = self._config
        self._monitor.phase("generate", total=len(rows) * config.rollout.group_size)
        return await harvest_step(
            self._fleet.rollout,
            self._fleet.judges,
            config,
            config.data.train,
            rows,
            examples,
            step,
            audio=self._audio(step),
            progress=self._monitor.tick,
        )

    async def _refilled(self, draw: Draw, harvest: Harvest) -> tuple[tuple[int, ...], Harvest]:
        """Further prompts, and all groups with theirs, until as many groups differ as a step has prompts, or
        its rounds are over.
        """
        algo, wanted = self._config.algo, self._config.rollout.prompts_per_step
        drawn = list(draw.prompts)
        for _ in range(algo.refill_rounds if algo.equal_groups == "refill" else 0):
            different = sum(differs(group, self._config) for group in harvest.groups)
            if different >= wanted or len(drawn) == len(self._job.train):
                break
            lacking = ceil((wanted - different) * len(drawn) / max(different, 1))
            more = self._draw_beside(drawn, min(lacking, wanted, len(self._job.train) - len(drawn)))
            rows = [self._job.train[i] for i in more]
            examples = await encode(self._fleet.rollout, self._config.data.train, rows)
            harvest = joined(harvest, await self._sample(draw.step, rows, examples))
            drawn += more
        return tuple(drawn[len(draw.prompts) :]), harvest

    def _draw_beside(self, drawn: Sequence[int], count: int) -> list[int]:
        """The next ``count`` rows that are not among those that were drawn."""
        seen = dict.fromkeys(drawn)
        while len(seen) < len(drawn) + count:
            seen |= dict.fromkeys(self._prompts.next(len(drawn) + count - len(seen)))
        return list(seen)[len(drawn) :]

    def _audio(self, step: int) -> Callable[[Reply], Path | None]:
        log, ends = self._config.log, step in (1, self._config.run.steps)
        kept = due(step, log.rollouts_every) and (ends or due(step, log.audio_every))
        return (lambda reply: self._run.audio(step, reply)) if kept else (lambda reply: None)

    def _anchor(self, example: Example) -> Anchor:
        letters = self._job.family.channels.letters(example.target)
        return Anchor(
            prompt_id=example.row_id,
            prompt_ids=example.prompt.ids,
            ids=example.target,
            channels=letters,
            features=example.prompt.features,
        )

    def _states(self) -> Cursors:
        return {name: cursor.state_dict() for name, cursor in self._named().items()}

    def _named(self) -> dict[str, Cursor]:
        found = {"prompts": self._prompts, "anchors": self._anchors, "pairs": self._pairs}
        return {name: cursor for name, cursor in found.items() if cursor is not None}
