"""The batches of a run: which rows a step gets, and when its replies may be sampled.

Invariants: the rows of step n depend on the seed and n alone, whatever the number of workers or the
staleness (``equal_groups=refill``: and on the verdicts); ``cursors`` always are those that would draw the
first batch not yet taken, so a checkpoint loses nothing that was sampled ahead. A step that learns nothing
from fresh replies samples none.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from actors.buffer import Admission
from actors.collect import Harvest, encode, encode_pairs, harvest_step, joined
from actors.data_pairs import pair_of
from actors.decide import differs
from actors.fleet import Fleet
from actors.monitor import Monitor
from actors.prepare import Job, draw_distinct
from actors.record import RunDirectory, due
from learner.types import Anchor, Pair
from rollout.types import Reply
from speech.dataset import Example
from speech.manifest import Cursor, Row
from speech.pairs import PairRow

Cursors = Mapping[str, Mapping[str, int]]  # state of each, by what it draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's prompts, their judged replies, and the reference replies that anchor it."""

    step: int
    rows: tuple[Row, ...]
    anchors: tuple[Anchor, ...]
    harvest: Harvest
    pairs: tuple[Pair, ...] = ()  # of data.pairs


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
        seed = job.config.run.seed
        self._prompts, self._anchors = Cursor(len(job.train), seed), Cursor(len(job.train), seed + 1)
        self._pairs = Cursor(len(job.pairs), seed + 2) if job.pairs else None
        self._admission = Admission(job.config.run.staleness, job.config.rollout.prompts_per_step)
        self._drawn = 0  # steps
        self._ahead: asyncio.Task[Batch] | None = None
        self._before = self._states()

    def cursors(self) -> Cursors:
        """States of the cursors that would draw the first batch not yet taken."""
        return self._states() if self._ahead is None else self._before

    def load(self, step: int, cursors: Cursors) -> None:
        """Go on after ``step``."""
        for name, cursor in self._named().items():
            cursor.load_state_dict(cursors[name])
        self._admission.resume_at(step)
        self._drawn = step

    def start(self, step: int) -> None:
        """Start the next batch if none is under way and it may be sampled while ``step`` is learnt."""
        if self._ahead is None and self._drawn < self._config.run.steps and self._admission.admits(step):
            self._before = self._states()
            rows = [
                self._job.train[i]
                for i in draw_distinct(self._prompts, self._config.rollout.prompts_per_step)
            ]
            own = rows[: self._config.learner.anchors_per_step]
            more = [
                self._job.train[i]
                for i in self._anchors.next(self._config.learner.anchors_per_step - len(own))
            ]
            pairs = self._draw_pairs()
            self._drawn += 1
            self._admission.start()
            self._ahead = asyncio.create_task(self._collect(self._drawn, rows, own, more, pairs))

    async def take(self) -> Batch:
        """The batch that was started, when it is complete."""
        assert self._ahead is not None, "start a batch first"
        batch = await self._ahead
        self._ahead = None
        self._admission.finish()
        return batch

    async def sampled(self) -> None:
        """Wait until no reply is being sampled, so that weights may change. Leaves errors to ``take``."""
        if self._ahead is not None:
            await asyncio.wait({self._ahead})  # bounded by the deadlines inside

    def cancel(self) -> None:
        """Stop what is under way; its rows will be drawn again."""
        if self._ahead is not None:
            self._ahead.cancel()

    def _draw_pairs(self) -> list[PairRow]:
        if self._pairs is None:
            return []
        return [self._job.pairs[i] for i in self._pairs.next(self._config.rollout.prompts_per_step)]

    async def _collect(
        self, step: int, rows: list[Row], own: list[Row], more: list[Row], pairs: list[PairRow]
    ) -> Batch:
        config = self._config
        drawn = len(rows)
        examples = await encode(self._fleet.rollout, config.data.train, rows + more)
        found = Harvest.nothing()
        if config.algo.samples_at(step):
            found = await self._sample(step, rows, examples[:drawn])
            rows, found = await self._refilled(step, rows, found)
        anchors = tuple(self._anchor(example) for example in examples[: len(own)] + examples[drawn:])
        return Batch(
            step=step, rows=tuple(rows), anchors=anchors, harvest=found, pairs=await self._encoded(pairs)
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

    async def _refilled(self, step: int, rows: list[Row], found: Harvest) -> tuple[list[Row], Harvest]:
        """With further prompts until as many groups differ as a step has prompts, or its rounds are over."""
        algo, wanted = self._config.algo, self._config.rollout.prompts_per_step
        for _ in range(algo.refill_rounds if algo.equal_groups == "refill" else 0):
            different = sum(differs(group, self._config) for group in found.groups)
            if different >= wanted or len(rows) == len(self._job.train):
                break
            lacking = ceil((wanted - different) * len(rows) / max(different, 1))
            more = self._draw_beside(rows, min(lacking, wanted, len(self._job.train) - len(rows)))
            examples = await encode(self._fleet.rollout, self._config.data.train, more)
            found = joined(found, await self._sample(step, more, examples))
            rows = rows + more
        return rows, found

    def _draw_beside(self, rows: Sequence[Row], count: int) -> list[Row]:
        """The next ``count`` rows that are not among ``rows``."""
        seen = {row.id: row for row in rows}
        while len(seen) < len(rows) + count:
            drawn = self._prompts.next(len(rows) + count - len(seen))
            seen |= {row.id: row for row in (self._job.train[i] for i in drawn)}
        return list(seen.values())[len(rows) :]

    def _audio(self, step: int) -> Callable[[Reply], Path | None]:
        kept = due(step, self._config.log.rollouts_every) and due(step, self._config.log.audio_every)
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
