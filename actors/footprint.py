"""How much memory a run will need, before it starts; for ``--dry-run``."""

import os

from conf.schema import Config
from learner.objectives import needs_reference


def physical_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_estimate(config: Config) -> dict[str, int]:
    """Bytes per role that the run will need, roughly: processes, weights, optimiser, caches."""
    weights = sum(path.stat().st_size for path in config.model.path.glob("*.safetensors"))
    process = 500 << 20  # an interpreter with torch
    engine = (700 << 20) + weights + (config.rollout.kv_cache_mb << 20)
    reference = weights if needs_reference(config.algo) or config.log.diagnose_every else 0
    work = config.learner.tokens_per_microbatch * 4096 * 4 * 8  # activations, by the order of magnitude
    return {
        "driver": process // 2,
        "ray": 600 << 20,
        "rollout": config.rollout.workers * engine,
        "judge": config.judge.workers * (250 << 20),
        "learner": config.learner.ranks * (process + work) + 5 * weights + reference,
    }
