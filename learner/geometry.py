"""Gradient geometry: does the preference push words and voice in the same direction, and how hard each?

The paper's reason for a text-only objective: on shared weights the text part of the gradient is far larger
than the audio part, and the two are about orthogonal (ratio >> 1, cosine ~ 0). Two extra backward passes,
so only at an interval; nothing is updated.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from conf.algorithm import AlgoConfig, ChannelWeights
from learner.objectives import rows_of
from learner.ranks import totals
from learner.rows import Row, Sampled
from learner.types import StepBatch
from speech.channels import Channel


def everything_preferred(algo: AlgoConfig) -> AlgoConfig:
    """The same objective with TEXT and AUDIO in the preference loss and nothing beside it."""
    return algo.model_copy(
        update={
            "preference": ChannelWeights(text=1.0, audio=1.0),
            "kl": ChannelWeights(),
            "entropy": ChannelWeights(),
        }
    )


def preference_rows(batch: StepBatch, algo: AlgoConfig, sampled: Sampled, channel: Channel) -> list[Row]:
    """Rows with one channel's part of the preference loss over both channels."""
    rows = rows_of(replace(batch, weight=1.0, anchors=()), everything_preferred(algo), sampled)
    return [replace(row, weights_CR=np.where(row.channels_R == channel, row.weights_CR, 0.0)) for row in rows]


def local_gradient(module: nn.Module) -> list[Tensor]:
    """This rank's shards of the gradient, taken away from the parameters."""
    shards = []
    for parameter in module.parameters():
        grad = parameter.grad
        assert grad is not None, "a backward pass comes first"
        shards.append((grad.to_local() if isinstance(grad, DTensor) else grad).clone())
        parameter.grad = None
    return shards


def compare_gradients(text: Sequence[Tensor], audio: Sequence[Tensor]) -> dict[str, float]:
    """Ratio of norms and cosine over all weights, identical on every rank; empty when a gradient is zero.

    Collective.
    """
    sums = totals(
        {
            name: torch.stack(
                [(a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)]
            ).sum()
            for name, first, second in (("tt", text, text), ("aa", audio, audio), ("ta", text, audio))
        }
    )
    if not sums["tt"] or not sums["aa"]:
        return {}
    return {
        "grad/text_audio_ratio": (sums["tt"] / sums["aa"]) ** 0.5,
        "grad/text_audio_cosine": sums["ta"] / (sums["tt"] * sums["aa"]) ** 0.5,
    }
