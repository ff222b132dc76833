"""What a pass over the micro-batches adds up to, under the metric names of DESIGN §4.

Invariant: only sums travel between ranks; every figure is a ratio of two global sums, so that it does not
depend on how the batch was cut. A figure over no positions is left out, never invented.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batch import Microbatch
from learner.loss import Terms
from learner.ranks import totals
from speech.channels import Channel

CHANNELS = {"text": Channel.TEXT, "audio": Channel.AUDIO}
COMPONENTS = ("sft", "po", "kl_text", "kl_audio")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """One micro-batch after its forward pass; everything detached."""

    micro: Microbatch
    logps_N: Tensor
    entropies_N: Tensor
    terms: Terms


def reduce(scored: Sequence[Scored], factor: Sequence[float]) -> dict[str, float]:
    """Metrics of one pass over the whole step, identical on every rank. Collective.

    ``factor``: ``objectives.scales``.
    """
    sums = totals(
        {name: torch.stack([one[name] for one in map(_sums, scored)]).sum() for name in _sums(scored[0])}
    )
    losses = {f"loss/{name}": sums[name] for name, scale in zip(COMPONENTS, factor, strict=True) if scale}
    metrics = {
        "loss/total": sum(sums[name] * scale for name, scale in zip(COMPONENTS, factor, strict=True)),
        **losses,
    }
    for name in CHANNELS:
        if sums[f"count/{name}"]:
            metrics[f"entropy/{name}"] = sums[f"entropy/{name}"] / sums[f"count/{name}"]
            metrics[f"mismatch/{name}"] = sums[f"mismatch/{name}"] / sums[f"count/{name}"]
    if sums["preferred"]:
        metrics["clip_fraction"] = sums["clipped"] / sums["preferred"]
    metrics["tokens"] = sums["tokens"]
    return metrics


def _sums(scored: Scored) -> dict[str, Tensor]:
    micro, terms = scored.micro, scored.terms
    sums = {name: getattr(terms, name).double() for name in (*COMPONENTS, "clipped", "preferred")}
    # an idle rank's micro-batch holds one token that stands for nothing
    sums["tokens"] = torch.tensor(
        float(len(micro.ids_T)) if len(micro.keep_N) else 0.0, device=micro.ids_T.device
    ).double()
    gap = (scored.logps_N - micro.behaviour_N).abs().double()
    for name, channel in CHANNELS.items():
        here = micro.rollout_N & (micro.channels_N == channel)
        sums[f"count/{name}"] = here.sum().double()
        sums[f"entropy/{name}"] = scored.entropies_N[here].double().sum()
        sums[f"mismatch/{name}"] = gap[here].sum()
    return sums
