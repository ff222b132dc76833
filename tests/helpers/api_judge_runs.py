"""Judges that ask an endpoint, and the limiter of it, as a run has them; for tests and benches."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray

from actors.api_judge import JUDGE_CALLS_FILE, start_limiters
from actors.judge_pool import JudgePool, build_judge_pool
from conf.schema import Config
from judge.llm.build import probe_endpoints


@asynccontextmanager
async def api_judges(
    config: Config, kind: type[Any], journal: Any, restarts: int
) -> AsyncIterator[tuple[JudgePool, Any]]:
    """A started pool of actors of this kind, and the first limiter. The run's folder is made."""
    run = config.run.root / config.run.name
    run.mkdir(parents=True, exist_ok=True)
    found = await probe_endpoints(config.judge)
    limiters = start_limiters(config.judge, config.rollout.group_size, run / JUDGE_CALLS_FILE)
    actor: Any = ray.remote(kind)
    pool = build_judge_pool(
        config,
        lambda index: actor.options(num_cpus=0).remote(config, run, found, limiters),
        source=(await limiters[0].hello.remote())["source"],
        restarts=restarts,
        journal=journal,
    )
    pool.on_lost = lambda judge: limiters[0].forget.remote(judge)
    await pool.start()
    try:
        yield pool, limiters[0]
    finally:
        pool.close()
        for limiter in limiters:
            ray.kill(limiter)
