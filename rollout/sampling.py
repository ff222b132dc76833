"""How replies are drawn: those that a step learns from or pairs are made of, and greedy ones."""

from conf.schema import RolloutConfig
from rollout.types import Sampling
from speech.families.base import Family

SEEDS_PER_RUN = 1_000_000  # a step's sampling seed is run.seed * this + step: no two steps draw alike
STEP_OUTSIDE_TRAINING = 0  # steps count from 1: what is sampled outside a run draws like none of its steps


def build_step_sampling(rollout: RolloutConfig, run_seed: int, step: int) -> Sampling:
    """Of this step of a run, or of ``STEP_OUTSIDE_TRAINING``."""
    return Sampling(
        group_size=rollout.group_size,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        seed=run_seed * SEEDS_PER_RUN + step,
        grammar=rollout.grammar,
    )


def check_sampling(rollout: RolloutConfig, family: Family) -> None:
    """ValueError: parallel streams, sampled by an engine for one, or without the mask that forces blanks."""
    if family.streams == 1:
        return
    if rollout.engine != "torch":
        rule = f"rollout.engine must be torch for {family.name}, the others sample one stream"
        raise ValueError(f"{rule}: got {rollout.engine}")
    if not rollout.grammar:
        rule = f"rollout.grammar must be true for {family.name}, whose blanks the grammar forces"
        raise ValueError(f"{rule}: got false")


def build_greedy_sampling(config: RolloutConfig) -> Sampling:
    """One reply per prompt, the likeliest token each time; the rest as in training."""
    return Sampling(
        group_size=1, temperature=0.0, max_new_tokens=config.max_new_tokens, seed=0, grammar=config.grammar
    )
