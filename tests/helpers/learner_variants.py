"""Every objective that a learner can be told to learn, with the batches that it learns from."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import yaml

from conf.keys import CONFIG_FOLDER
from learner.types import Advantage, PreferencePair, StepBatch
from tests.helpers.training_replies import as_written


def routed(step: StepBatch) -> StepBatch:
    """The same replies with an advantage of its own for each kind of token, some of them 0."""
    rng = np.random.default_rng(step.step)
    advantages = [Advantage(*(rng.normal(size=3) * (rng.random(3) < 0.7)).tolist()) for _ in step.rollouts]
    return replace(
        step, rollouts=tuple(replace(r, advantage=a) for r, a in zip(step.rollouts, advantages, strict=True))
    )


def paired(step: StepBatch, *, own: bool) -> StepBatch:
    """Each group's two replies as a pair instead. ``own``: of this run's sampling."""
    replies = step.rollouts if own else [as_written(r) for r in step.rollouts]
    pairs = [
        PreferencePair(chosen=best, rejected=worst, weight=1.0 + (best.prompt.id == "p1"))
        for best, worst in zip(replies[::2], replies[1::2], strict=True)
    ]
    return replace(step, rollouts=(), pairs=tuple(pairs))


def preset(name: str, **more: Any) -> dict[str, Any]:
    """What conf/algo says."""
    return {**yaml.safe_load((CONFIG_FOLDER / f"algo/{name}.yaml").read_text()), **more}


def same(step: StepBatch) -> StepBatch:
    return step


HOT = {"temperature": 0.7}
VARIANTS: dict[str, tuple[dict[str, Any], Callable[[StepBatch], StepBatch]]] = {
    "gated": (preset("gated"), same),  # to a learner also gated_no_ema, gated_denoised, grpo_text, two_stage
    "grpo_all": (preset("grpo_all"), same),  # and gated_all
    "routed": (preset("routed"), routed),
    "dpo_text": (preset("dpo_text"), partial(paired, own=False)),
    "dpo_all": (preset("dpo_all", dpo_beta=0.7), partial(paired, own=False)),
    "online_dpo": (preset("online_dpo"), partial(paired, own=True)),
    "sft": (preset("sft"), partial(replace, weight=0.0, rollouts=())),
    "faithful": ({"faithful": True}, same),
    "token_mean": (
        {
            "preference": dict.fromkeys(("text", "audio", "boundary", "stop"), 1),
            "aggregation": "token_mean",
            "kl": {"audio": 0.01},
        },
        same,
    ),
    "sum": (
        {
            "preference": {"text": 1},
            "aggregation": "sum",
            "kl": {"text": 0.01, "boundary": 0.3},
            "importance_cap": 0.5,
        },
        same,
    ),
    "constant": (
        {"aggregation": "constant", "kl": {"text": 0.3, "audio": 0.7}, "kl_estimator": "k2", "clip_low": 0.1},
        same,
    ),
    "weighted": (
        {
            "preference": {"text": 1, "audio": 0.25, "stop": 3},
            "sft": {"text": 1, "audio": 0.1, "boundary": 2},
            "sft_aggregation": "sequence_mean",
            "entropy": {"text": 0.2, "audio": 0.05},
            "importance": "sequence",
            "clip_dual": 2.0,
        },
        routed,
    ),
}
"""Settings of the objective and what they make of a batch."""

PENALISED: dict[str, Any] = {"kl_in": "reward", "kl": {"text": 0.3, "audio": 0.1}, "kl_estimator": "k1"}
