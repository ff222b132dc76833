"""Everyone who works for the driver: engines, judges, learner ranks; started together, ended together."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from actors.api_judge import build_endpoint_pools
from actors.cluster import Cluster
from actors.errors import LearnerFailed, WeightSyncFailed, describe_error
from actors.handles import JudgeActor, LearnerActor, RolloutActor
from actors.judge_pool import build_judge_pool
from actors.pool import WORKER_CALL_TIMEOUT_S, WORKER_START_TIMEOUT_S, ActorPool, RolloutPool
from actors.run.provenance import hash_source
from actors.run.record import RunDirectory
from actors.weight_sync import PublishedWeights
from conf.schema import Config
from judge.llm.build import ProbedEndpoints
from learner.diagnosis import PolicyDiagnosis
from learner.types import Rollout, StepBatch, StepResult

STEP_TIMEOUT_FACTOR = 10  # a whole call of all ranks has this many times learner.timeout_s, which bounds each exchange


class LearnerGroup(ActorPool):
    """All ranks as one.

    A dead rank ends the run: its shard of the optimiser is gone, the checkpoint has it.
    """

    def __init__(self, *, timeout: float, **pool_arguments: Any) -> None:
        super().__init__("learner", **pool_arguments)
        self._timeout = timeout * STEP_TIMEOUT_FACTOR
        self.version: int | None = None  # that the ranks hold, or are learning; None before the first step

    async def start(self) -> None:
        """Start the ranks and let them find each other."""
        await super().start()
        host, port = await asyncio.wait_for(self.handles[0].address.remote(), WORKER_CALL_TIMEOUT_S)
        await self._call_all_ranks("start", host, port, timeout=WORKER_START_TIMEOUT_S)

    async def step(self, batch: StepBatch) -> StepResult:
        """One optimiser step on all ranks."""
        self.version = batch.step  # from here on no older one can be sent
        results: list[StepResult] = await self._call_all_ranks("step", ray.put(batch))
        versions = [result.version for result in results]
        assert len(set(versions)) == 1, f"ranks disagree on the policy version: {versions}"
        return results[0]

    async def diagnose(self, batch: StepBatch) -> PolicyDiagnosis:
        """A look at the policy before it learns from this batch."""
        diagnosis_by_rank: list[PolicyDiagnosis] = await self._call_all_ranks("diagnose", ray.put(batch))
        return diagnosis_by_rank[0]

    async def compute_kl_penalties(self, rollouts: Sequence[Rollout]) -> dict[tuple[str, int], float]:
        """What each reply's reward loses to the KL penalty."""
        penalties_by_rank: list[dict[str, float]] = await self._call_all_ranks("penalties", ray.put(rollouts))
        return {(rollout.prompt_id, rollout.index): penalties_by_rank[0][rollout.key] for rollout in rollouts}

    async def publish(self, version: int) -> PublishedWeights:
        """The weights of this version, in the object store."""
        published: list[PublishedWeights | None] = await self._call_all_ranks("publish", version)
        assert published[0] is not None, "rank 0 must publish"
        return published[0]

    async def send(self, engines: list[Any], version: int) -> None:
        """The weights of this version, from GPU to GPU."""
        await self._call_all_ranks("send", engines, version)

    async def save(self, folder: Path) -> None:
        """All shards into a folder."""
        await self._call_all_ranks("save", folder)

    async def load(self, folder: Path) -> None:
        """Continue from shards."""
        await self._call_all_ranks("load", folder)

    async def export(self, folder: Path) -> None:
        """The policy as a Hugging Face folder."""
        await self._call_all_ranks("export", folder)

    async def _call_all_ranks(self, method: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        calls = [getattr(handle, method).remote(*arguments) for handle in self.handles]
        try:
            return list(await asyncio.wait_for(asyncio.gather(*calls), timeout or self._timeout))
        except (RayError, TimeoutError) as error:
            raise LearnerFailed(f"learner {method}: {describe_error(error)}") from error


class Fleet:
    """Starts a run's actors on its cluster.

    Example:
        fleet = Fleet(config, Cluster(config.cluster, layout), run)
        await fleet.start()
        ...
        fleet.close()
    """

    def __init__(
        self, config: Config, cluster: Cluster, run: RunDirectory, probed: ProbedEndpoints | None = None
    ) -> None:
        """``probed``: the API judge's abilities, where an axis is judged by one."""
        source = hash_source()
        common: dict[str, Any] = {"source": source, "restarts": config.cluster.restarts, "journal": run}
        shipped = ray.put(config)

        def actor(kind: Any, role: str, *given: Any) -> Any:
            return lambda index, *extra_arguments: (
                ray.remote(kind).options(**cluster.options(role, index)).remote(shipped, *given, *extra_arguments)
            )

        rollout, learner = actor(RolloutActor, "rollout"), actor(LearnerActor, "learner")
        self._run, self._down_s = run, 0.0
        self._transport = config.cluster.weight_transfer
        self._judged = 0.0  # seconds that the busiest judges were busy, at the last step
        self.rollout = RolloutPool("rollout", config.rollout.workers, create=rollout, **common)
        self.endpoints = build_endpoint_pools(config, probed, run.path, **common) if probed is not None else []
        self.judges = build_judge_pool(config, actor(JudgeActor, "judge"), self.endpoints, **common)
        self.learner = LearnerGroup(
            count=config.learner.ranks,
            create=lambda rank: learner(rank, rank),
            timeout=config.learner.timeout_s,
            **common,
        )

    async def start(self, learns: bool = True) -> None:
        """Bring everybody up together. RunError: somebody does not come up.

        ``learns``: False where replies are sampled and judged only.
        """
        learner = (self.learner.start(),) if learns else ()
        judges = (pool.start() for pool in (self.judges, *self.endpoints))
        await asyncio.gather(self.rollout.start(), *judges, *learner)

    async def sync(self, version: int) -> None:
        """Every engine gets the learner's weights of this version, checked on both sides."""
        if self._transport == "object_store":
            await self.rollout.load(await self.learner.publish(version))
            return
        self.rollout.resend = lambda: self._send(version)
        await self._send(version)

    async def _send(self, version: int) -> None:
        if self.learner.version not in (None, version):
            raise WeightSyncFailed(f"an engine needs version {version} again, and the learner is past it")
        await self.learner.send(self.rollout.handles, version)
        await self.rollout.verify(version)

    async def collect_judge_metrics(self) -> dict[str, float]:
        """What the API judges were asked so far, as metrics; nothing where there are none."""
        named: dict[str, float] = {}
        for endpoint, prefix in zip(self.endpoints, ("judge/", "judge/second_"), strict=False):
            figures = await endpoint.state()
            named |= {
                f"{prefix}requests": figures.requests,
                f"{prefix}spent": figures.spent,
                f"{prefix}breaker_open_s": figures.seconds_open,
                f"{prefix}in_flight": figures.in_flight,
                f"{prefix}waiting": figures.waiting,
            }
        open_s = named.get("judge/breaker_open_s", 0.0)
        down = open_s - (self._down_s if open_s >= self._down_s else 0.0)  # less than before: its actor is a new one
        self._down_s = open_s
        if down > 0:
            self._run.event("judge", f"the endpoint was down for {down:.0f} s of this step, and the run waited")
        return named

    def compute_idle_shares(self, times: Mapping[str, float]) -> dict[str, float]:
        """Share of the last step in which each role had nothing to do."""
        before = self._judged
        self._judged = max(pool.busy_s for pool in (self.judges, *self.endpoints))
        busy = {
            "rollout": times["time/generate"],
            "judge": self._judged - before,
            "learner": times.get("time/learn", 0.0) + times.get("time/diagnose", 0.0),
        }
        return {f"idle/{role}": 1 - min(1.0, seconds / times["time/step"]) for role, seconds in busy.items()}

    def close(self) -> None:
        """End all actors. Idempotent."""
        for pool in (self.rollout, self.judges, *self.endpoints, self.learner):
            pool.close()
