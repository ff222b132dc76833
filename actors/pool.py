"""N replicas of a worker: deadlines, replacement within a budget, and the unfinished work done again.

Invariants: no wait without a timeout; every replacement is an event with its reason; a fresh rollout replica
has the newest weights, checked, before it samples.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from actors import weight_sync
from actors.errors import RestartBudgetSpent, RunError, UserError, WeightSyncFailed, describe_error
from actors.weight_sync import PublishedWeights
from rollout.types import Prompt, Reply, Sampling

WORKER_START_TIMEOUT_S = 300.0  # longest start of a worker: imports and model load on a busy machine
WORKER_CALL_TIMEOUT_S = 120.0  # longest answer to a small question


class EventSink(Protocol):
    """Where events go."""

    def event(self, kind: str, detail: str, **extra_fields: Any) -> None:
        """Write one event, with its reason."""
        ...


class ActorPool:
    """Replicas of one role.

    Example:
        pool = ActorPool("judge", 2, create=create, source=digest, restarts=3, journal=journal)
        await pool.start()
        await pool.replace_worker(0, "died")
    """

    def __init__(
        self,
        role: str,
        count: int,
        *,
        create: Callable[[int], Any],
        source: str,
        restarts: int,
        journal: EventSink,
    ) -> None:
        self.role = role
        self._create = create
        self._source = source
        self._restarts = restarts
        self._journal = journal
        self._used = [0] * count
        self.handles: list[Any] = [None] * count

    async def start(self) -> None:
        """Start all replicas together. RunError: one does not come up, or runs another source tree."""
        self.handles = [self._create(index) for index in range(len(self.handles))]
        await asyncio.gather(*(self.wait_until_ready(handle) for handle in self.handles))

    async def wait_until_ready(self, handle: Any) -> None:
        """Wait until a fresh replica may be given work."""
        try:
            hello = await asyncio.wait_for(handle.hello.remote(), WORKER_START_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            raise RunError(f"{self.role} worker did not start: {describe_error(error)}") from error
        if hello["source"] != self._source:
            raise RunError(
                f"{self.role} worker on {hello['node']} runs source {hello['source']}, "
                f"the driver {self._source}: one run, one source tree"
            )

    async def replace_worker(self, index: int, reason: str) -> None:
        """Kill replica ``index`` and start a fresh one. RestartBudgetSpent: too often."""
        ray.kill(self.handles[index])
        if self._used[index] >= self._restarts:
            raise RestartBudgetSpent(
                f"{self.role} worker {index} failed after {self._used[index]} restarts (cluster.restarts): {reason}"
            )
        self._used[index] += 1
        self._journal.event("restart", f"{self.role} worker {index} replaced: {reason}", role=self.role, worker=index)
        self.handles[index] = self._create(index)
        await self.wait_until_ready(self.handles[index])

    @property
    def restarts(self) -> int:
        """Replacements so far."""
        return sum(self._used)

    def close(self) -> None:
        """Kill all replicas."""
        for handle in self.handles:
            if handle is not None:
                ray.kill(handle)


class RolloutPool(ActorPool):
    """Engines.

    Prompts are dealt round robin; replies depend on seeds only, so the number of engines does not matter.
    """

    weights: PublishedWeights | None = None
    resend: Callable[[], Awaitable[None]] | None = None  # GPU transports: send to all engines again
    _turn = 0

    async def replace_worker(self, index: int, reason: str) -> None:
        """A fresh engine, with the newest weights."""
        await super().replace_worker(index, reason)
        if self.resend is not None:
            await self.resend()

    async def verify(self, version: int) -> None:
        """WeightSyncFailed: an engine reads back another version."""
        versions = asyncio.gather(*(handle.version.remote() for handle in self.handles))
        try:
            engine_versions = await asyncio.wait_for(versions, WORKER_CALL_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            raise WeightSyncFailed(f"an engine does not tell its version: {describe_error(error)}") from error
        if set(engine_versions) != {version}:
            raise WeightSyncFailed(
                f"weight sync: learner published version {version}, the engines read back {engine_versions}"
            )

    async def wait_until_ready(self, handle: Any) -> None:
        """A fresh engine holds the start weights: give it the newest before use."""
        await super().wait_until_ready(handle)
        if self.weights is not None:
            await weight_sync.update_engine_weights(handle, self.weights, WORKER_CALL_TIMEOUT_S)

    async def load(self, weights: PublishedWeights) -> None:
        """Give every engine these weights; an engine that cannot take them is replaced."""
        self.weights = weights

        async def update_engine(index: int) -> None:
            try:
                await weight_sync.update_engine_weights(self.handles[index], weights, WORKER_CALL_TIMEOUT_S)
            except (RayError, TimeoutError) as error:
                await self.replace_worker(
                    index, f"weight update to version {weights.version}: {describe_error(error)}"
                )

        await asyncio.gather(*(update_engine(index) for index in range(len(self.handles))))

    async def ask_engine(self, method: str, *arguments: Any) -> Any:
        """One idempotent question to some engine, asked again of a fresh one when it dies."""
        index = self._turn = (self._turn + 1) % len(self.handles)
        while True:
            try:
                answer = getattr(self.handles[index], method).remote(*arguments)
                return await asyncio.wait_for(answer, WORKER_START_TIMEOUT_S)
            except (RayError, TimeoutError) as error:
                if isinstance(error, ValueError):  # the user's data, not the worker: it would fail again
                    raise
                await self.replace_worker(index, f"{method}: {describe_error(error)}")

    async def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, deadline: float
    ) -> AsyncIterator[tuple[Reply, list[Any]]]:
        """Every (prompt, index) once, as it finishes, with a reference to its speech in a list."""
        arrived: asyncio.Queue[tuple[Reply, list[Any]] | None] = asyncio.Queue()
        count = len(self.handles)

        async def share(index: int) -> None:
            await self._generate_share(index, list(prompts[index::count]), sampling, deadline, arrived)

        async def all_shares() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for index in range(count):
                        group.create_task(share(index))
            finally:
                arrived.put_nowait(None)

        task = asyncio.create_task(all_shares())
        try:
            while (item := await arrived.get()) is not None:  # bounded: every share has its deadline
                yield item
            await _await_unwrapped(task)
        finally:
            task.cancel()

    async def _generate_share(
        self,
        index: int,
        prompts: list[Prompt],
        sampling: Sampling,
        deadline: float,
        arrived: "asyncio.Queue[Any]",
    ) -> None:
        wanted = {(prompt.id, i) for prompt in prompts for i in range(sampling.group_size)}
        while wanted:
            open_prompts = [
                prompt for prompt in prompts if any((prompt.id, i) in wanted for i in range(sampling.group_size))
            ]
            stream = self.handles[index].generate.options(num_returns="streaming").remote(open_prompts, sampling)
            try:
                async with asyncio.timeout(deadline):
                    async for reference in stream:
                        reply, speech = await reference
                        if reply.key in wanted:
                            wanted.discard(reply.key)
                            arrived.put_nowait((reply, speech))
                assert not wanted, f"engine ended without {len(wanted)} replies"
            except (RayError, TimeoutError) as error:
                if isinstance(error, ValueError):  # as in ``ask_engine``
                    raise UserError(describe_error(error)) from error
                await self.replace_worker(index, f"{len(wanted)} replies open: {describe_error(error, deadline)}")


async def _await_unwrapped(task: "asyncio.Task[None]") -> None:
    """Await a task group's task; a single error comes out as itself."""
    try:
        await task
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
