"""Local judges and the endpoints behind them, as a run has them; for tests and benches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray

from actors.api_judge import EndpointPool, build_endpoint_pools
from actors.handles import JudgeActor
from actors.judge_pool import JudgePool, build_judge_pool
from actors.run.provenance import hash_source
from conf.schema import Config
from judge.llm.build import probe_endpoints


@asynccontextmanager
async def api_judges(config: Config, journal: Any, restarts: int) -> AsyncIterator[tuple[JudgePool, EndpointPool]]:
    """Started local judges, and the first endpoint. The run's folder is made."""
    run = config.run.root / config.run.name
    run.mkdir(parents=True, exist_ok=True)
    common = {"source": hash_source(), "restarts": restarts, "journal": journal}
    endpoints = build_endpoint_pools(config, await probe_endpoints(config.judge), run, **common)
    actor: Any = ray.remote(JudgeActor)
    judges = build_judge_pool(config, lambda index: actor.options(num_cpus=0).remote(config), endpoints, **common)
    pools = [judges, *endpoints]
    try:
        await asyncio.gather(*(pool.start() for pool in pools))
        yield judges, endpoints[0]
    finally:
        for pool in pools:
            pool.close()
