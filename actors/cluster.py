"""Where the actors live: Ray by explicit address, a plan counted before anything starts, one source tree.

Local: a private Ray in its own short folder; roles take turns, so actors claim no logical CPU, but a
role may not have more processes than the machine has cores. GPU: one placement group; learner ranks and
engines get bundles of their own (apart) or share them (colocated). Nothing attaches to a Ray by accident.
"""

import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.checks.cuda import bare_nodes, count_cuda_devices
from actors.errors import RunError, UserError
from actors.reach import (
    WORKER_IMPORT_ROOT,
    initialise_ray,
    join_ray,
    kill_session_processes,
    protect_token,
    quote_interpreter,
)
from conf.schema import ClusterConfig, Config
from rollout.environment import CPU_ENV, ENV
from store.files import copy_contents

OBJECT_STORE_BYTES = 512 << 20
PLACEMENT_TIMEOUT_S = 300.0  # longest wait for placement
PRIVATE_RAY_TOKEN = secrets.token_hex(32)  # of the private Rays of this process
PRIVATE_RAY_SETTINGS = {  # a busy machine may take longer than Ray expects; workers are as important as the driver
    "RAY_agent_register_timeout_ms": "120000",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_worker_niceness": "0",
}
LOCAL_ACTOR_ENVIRONMENT = {  # set before an actor imports anything; a local run is CPU processes even beside a GPU
    **ENV, **CPU_ENV, "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorRole:
    """Actors of one kind and what one of them claims."""

    name: str
    count: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """Who exists and on what.

    ``bundles`` is empty on one machine without GPUs: everything stays on the driver's node.
    """

    roles: tuple[ActorRole, ...]
    bundles: tuple[dict[str, float], ...]
    colocated: bool

    def role(self, name: str) -> ActorRole:
        """The role of that name."""
        return next(role for role in self.roles if role.name == name)

    def bundle_of(self, name: str, index: int) -> int:
        """Which bundle: learner ranks, then engines (colocated: engine i with rank i), then judges."""
        learner, rollout = self.role("learner").count, self.role("rollout").count
        shared = max(learner, rollout) if self.colocated else learner + rollout
        start = {"learner": 0, "rollout": 0 if self.colocated else learner, "judge": shared}
        return start[name] + index


def plan_placement(config: Config, cores: int, learns: bool = True) -> PlacementPlan:
    """Count the actors against the machine. UserError, with the arithmetic, when they do not fit.

    ``learns``: False where replies are sampled and judged only.
    """
    ranks, workers = config.learner.ranks if learns else 0, config.rollout.workers
    if config.cluster.kind == "local":
        counted = (
            ("learner.ranks", ranks),
            ("rollout.workers", workers),
            ("judge.workers", config.judge.workers),
        )
        for name, count in counted:
            if count > cores:
                raise UserError(
                    f"{name}={count} needs {count} cores: this machine has {cores}; set {name}={cores} or less"
                )
        return PlacementPlan(
            roles=(
                ActorRole(name="learner", count=ranks, cpus=0, gpus=0),
                ActorRole(name="rollout", count=workers, cpus=0, gpus=0),
                ActorRole(name="judge", count=config.judge.workers, cpus=0, gpus=0),
            ),
            bundles=(),
            colocated=False,
        )
    return _plan_gpu_placement(config, ranks)


def _plan_gpu_placement(config: Config, ranks: int) -> PlacementPlan:
    workers, parallel = config.rollout.workers, config.cluster.tensor_parallel
    together = config.cluster.colocate
    if together and parallel > 1:
        raise UserError(
            f"cluster.colocate needs cluster.tensor_parallel=1 (an engine shares one GPU with one rank): "
            f"got {parallel}"
        )
    if parallel > config.cluster.gpus_per_node:
        raise UserError(
            f"cluster.tensor_parallel={parallel} needs as many GPUs in one machine: "
            f"cluster.gpus_per_node={config.cluster.gpus_per_node}"
        )
    have = config.cluster.nodes * config.cluster.gpus_per_node
    need = max(ranks, workers) if together else ranks + workers * parallel
    sum_of = (
        f"max(learner.ranks={ranks}, rollout.workers={workers})"
        if together
        else f"learner.ranks={ranks} + rollout.workers={workers} x tensor_parallel={parallel}"
    )
    if need > have:
        raise UserError(
            f"{sum_of} = {need} GPUs: cluster.nodes={config.cluster.nodes} x "
            f"gpus_per_node={config.cluster.gpus_per_node} = {have}"
        )
    if together:
        bundles = [{"GPU": 1.0, "CPU": 3.0}] * need
    else:
        bundles = [{"GPU": 1.0, "CPU": 2.0}] * ranks + [{"GPU": float(parallel), "CPU": 1.0 + parallel}] * workers
    bundles = bundles + [{"CPU": 1.0}] * config.judge.workers
    return PlacementPlan(
        roles=(
            ActorRole(name="learner", count=ranks, cpus=2, gpus=0.5 if together else 1),
            ActorRole(
                name="rollout",
                count=workers,
                cpus=1 if together else 1 + parallel,
                gpus=0.5 if together else parallel,
            ),
            ActorRole(name="judge", count=config.judge.workers, cpus=1, gpus=0),
        ),
        bundles=tuple(bundles),
        colocated=together,
    )


def count_usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


SKIPPED_RAY_LOGS = ("old", "events", "export_events")


class Cluster:
    """A Ray that this run started or joined, and the placement of its actors.

    Example:
        cluster = Cluster(config.cluster, plan_placement(config, count_usable_cores()))
        handle = ray.remote(JudgeActor).options(**cluster.options("judge", 0)).remote(...)
        cluster.close(logs=run / "infra")
    """

    def __init__(self, config: ClusterConfig, layout: PlacementPlan) -> None:
        self.plan = layout
        self._private = config.address == "local"
        self._folder: Path | None = None
        self._group: PlacementGroup | None = None
        wanted = LOCAL_ACTOR_ENVIRONMENT if config.kind == "local" else ENV
        if self._private and config.kind == "gpu" and not count_cuda_devices():
            raise UserError("cluster.kind=gpu: this machine has no CUDA device; cluster=local needs none")
        try:
            self._enter(config, wanted)
            self._reserve_placement_group()
            self._node = ray.get_runtime_context().get_node_id()
        except BaseException:
            self.close(logs=None)
            raise

    def _enter(self, config: ClusterConfig, wanted: Mapping[str, str]) -> None:
        """A Ray of our own, or the running one. ``wanted``: environment of the actors."""
        if self._private:
            total = sum(role.count for role in self.plan.roles)
            claims = {} if config.kind == "gpu" else {"num_cpus": max(1, total), "num_gpus": 0}
            path = os.pathsep.join([str(WORKER_IMPORT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._start({"env_vars": {**wanted, "PYTHONPATH": path}, **quote_interpreter()}, claims)
            return
        free = {name: value for name, value in wanted.items() if _is_ours_to_set(name, value)}
        join_ray(config.address, {"env_vars": free})
        protect_token()

    def _start(self, runtime_env: dict[str, Any], claims: dict[str, int]) -> None:
        """A Ray of our own, with a token that never touches the disk.

        RunError: it does not come up, three times.
        """
        os.environ.update(
            {"RAY_AUTH_TOKEN": PRIVATE_RAY_TOKEN, **PRIVATE_RAY_SETTINGS}
        )  # ray.init switches token mode on by itself
        for attempt in (1, 2, 3):
            self._folder = Path(tempfile.mkdtemp(prefix="wg", dir="/tmp"))
            try:
                initialise_ray(
                    "local",
                    runtime_env=runtime_env,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=str(self._folder),
                    **claims,
                )
                return
            except BaseException as error:  # of Ray, when a busy machine makes it miss a deadline; or Ctrl-C
                ray.shutdown()
                kill_session_processes(self._folder)
                shutil.rmtree(self._folder, ignore_errors=True)
                if not isinstance(error, Exception):
                    raise
                if attempt == 3:
                    raise RunError(f"Ray does not start on this machine: {error} (see `wavgate doctor`)") from error

    def _reserve_placement_group(self) -> None:
        """Reserve what the plan's bundles hold. UserError: it is not there. RunError: others have it."""
        if not self.plan.bundles:
            return
        have = ray.cluster_resources()
        need = {name: sum(bundle.get(name, 0.0) for bundle in self.plan.bundles) for name in ("GPU", "CPU")}
        for resource, count in need.items():
            if count > have.get(resource, 0.0):
                raise UserError(
                    f"the plan needs {count:g} {resource}s: this Ray cluster has {have.get(resource, 0.0):g}"
                )
        avoided = [] if self._private else bare_nodes(need["GPU"])
        self._group = placement_group(  # removed at the end, whatever happens now
            [dict(bundle) for bundle in self.plan.bundles],
            strategy="PACK",
            bundle_label_selector=self._away_from(avoided),
        )
        if not self._group.wait(PLACEMENT_TIMEOUT_S):
            wanted = f"{PLACEMENT_TIMEOUT_S:g} s for {list(self.plan.bundles)}"
            raise RunError(f"no room in the cluster after {wanted}: other jobs hold it")

    def _away_from(self, nodes: Sequence[str]) -> list[dict[str, str]]:
        """For each bundle where Ray may put it: one with GPUs on none of these nodes."""
        rule = {"ray.io/node-id": f"!in({','.join(nodes)})"} if nodes else {}
        return [rule if bundle.get("GPU") else {} for bundle in self.plan.bundles]

    def options(self, role: str, index: int) -> dict[str, Any]:
        """Ray options of actor ``index`` of a role.

        Ray never restarts an actor by itself: the pool does, with its weights.
        """
        claims = self.plan.role(role)
        strategy: Any = NodeAffinitySchedulingStrategy(self._node, soft=False)
        if self._group is not None:
            bundle = self.plan.bundle_of(role, index)
            strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return {
            "num_cpus": claims.cpus,
            "num_gpus": claims.gpus,
            "scheduling_strategy": strategy,
            "max_restarts": 0,
            "max_task_retries": 0,
        }

    def close(self, logs: Path | None) -> None:
        """Leave Ray; a private one ends, with all its processes, and its logs move to ``logs``.

        Idempotent.
        """
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None
        ray.shutdown()
        if self._folder is not None and self._folder.exists():
            if logs is not None:
                for session in self._folder.glob("session_2*"):
                    with suppress(OSError):  # a full disk, say: it must not hide why the run ended
                        copy_contents(session / "logs", logs, lambda path: path.name not in SKIPPED_RAY_LOGS)
            shutil.rmtree(self._folder, ignore_errors=True)


def _is_ours_to_set(name: str, value: str) -> bool:
    """Whether actors get a variable from us: what a job or its shell has set otherwise wins."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submitted = (job.get("runtime_env") or {}).get("env_vars") or {}
    return name not in submitted and os.environ.get(name, value) == value
