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
COMPONENTS = ("sft", "po", "dpo", "kl", "entropy")  # in the order of ``Component``


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """One micro-batch after its forward pass; everything detached."""

    micro: Microbatch
    logps_N: Tensor
    entropies_N: Tensor
    terms: Terms


def reduce(scored: Sequence[Scored], factor: Sequence[float]) -> dict[str, float]:
    """Metrics of one pass over the whole step, identical on every rank. Collective.

    ``factor``: ``objectives.scales``. ``loss/kl_*`` is the weighted mean of the estimate itself.
    """
    sums = totals(
        {name: torch.stack([one[name] for one in map(_sums, scored)]).sum() for name in _sums(scored[0])}
    )
    found = {"loss/total": sum(sums[name] * scale for name, scale in zip(COMPONENTS, factor, strict=True))}
    shown = {"sft": "anchored", "po": "preferred", "dpo": "pairs", "ahead": "foreseen"}
    found |= {f"loss/{name}": sums[name] for name, count in shown.items() if sums[count]}
    ratios = {
        **{f"loss/kl_{name}": (f"penalty/{name}", f"held/{name}") for name in CHANNELS},
        **{f"entropy/{name}": (f"entropy/{name}", f"count/{name}") for name in CHANNELS},
        **{f"mismatch/{name}": (f"mismatch/{name}", f"count/{name}") for name in CHANNELS},
        "clip_fraction": ("clipped", "preferred"),
        "dpo/agreed": ("agreed", "pairs"),
        "dpo/gap": ("gap", "pairs"),
    }
    found |= {name: sums[over] / sums[under] for name, (over, under) in ratios.items() if sums[under]}
    return {**found, "tokens": sums["tokens"]}


def _sums(scored: Scored) -> dict[str, Tensor]:
    micro, terms = scored.micro, scored.terms
    real = micro.pairs_P != 0
    # an idle rank's micro-batch holds one token that stands for nothing
    tokens = torch.tensor(
        float(micro.ids_TS.numel()) if len(micro.keep_N) else 0.0, device=micro.ids_TS.device
    )
    sums = {
        **{name: getattr(terms, name) for name in (*COMPONENTS, "ahead", "foreseen", "clipped", "preferred")},
        "tokens": tokens,
        "anchored": (micro.sft_N != 0).sum(),
        "pairs": real.sum(),
        "agreed": (terms.gaps_P[real] > 0).sum(),
        "gap": terms.gaps_P[real].sum(),
    }
    off = (scored.logps_N - micro.behaviour_N).abs()
    for name, channel in CHANNELS.items():
        here = micro.rollout_N & (micro.channels_N == channel)
        held = micro.kl_N * (micro.audio_N if name == "audio" else ~micro.audio_N)
        sums |= {
            f"count/{name}": here.sum(),
            f"entropy/{name}": scored.entropies_N[here].double().sum(),
            f"mismatch/{name}": off[here].double().sum(),
            f"held/{name}": held.double().sum(),
            f"penalty/{name}": (held * terms.penalty_N).double().sum(),
        }
    return {name: value.double() for name, value in sums.items()}
