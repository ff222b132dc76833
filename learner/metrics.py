"""What a pass over the micro-batches adds up to, under the metric names of docs/design.md §4.

Invariants: only sums travel between ranks; every figure is a ratio of two global sums, so that it does not
depend on how the batch was cut. A figure over no positions is left out, never invented; a loss that the rows
ask for is never left out (``check_losses_present``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.batch import Microbatch
from learner.loss import LossTerms
from learner.ranks import sum_over_ranks
from learner.rows import LossComponent, TrainingRow
from speech.grammar.channels import Channel

CHANNELS = {"text": Channel.TEXT, "audio": Channel.AUDIO}
SHOWN_BY_CHANNEL = {LossComponent.KL, LossComponent.ENTROPY}  # any other component is shown as one loss
LOSS_METRICS = {c: f"loss/{c.name.lower()}" for c in LossComponent if c not in SHOWN_BY_CHANNEL}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredMicrobatch:
    """One micro-batch after its forward pass; everything detached."""

    micro: Microbatch
    logps_N: Tensor
    entropies_N: Tensor
    terms: LossTerms


def reduce_metrics(scored: Sequence[ScoredMicrobatch], factors: Mapping[LossComponent, float]) -> dict[str, float]:
    """Metrics of one pass over the whole step, identical on every rank. Collective.

    ``factors``: ``compute_component_factors``. ``loss/kl_*`` is the weighted mean of the estimate itself.
    """
    sums = sum_over_ranks(
        {
            name: torch.stack([micro_sums[name] for micro_sums in map(_sum_microbatch, scored)]).sum()
            for name in _sum_microbatch(scored[0])
        }
    )
    scaled = [sums[f"part/{component.name}"] * factor for component, factor in factors.items()]
    metrics = {"loss/total": sum(scaled) + sums["mtp"] * factors[LossComponent.SFT]}
    metrics |= {name: sums[f"part/{c.name}"] for c, name in LOSS_METRICS.items() if sums[f"weighed/{c.name}"]}
    metrics |= {"loss/ahead": sums["mtp"]} if sums["mtp_count"] else {}
    ratios = {
        **{f"loss/kl_{name}": (f"penalty/{name}", f"kl_weight/{name}") for name in CHANNELS},
        **{f"entropy/{name}": (f"entropy/{name}", f"count/{name}") for name in CHANNELS},
        **{f"mismatch/{name}": (f"mismatch/{name}", f"count/{name}") for name in CHANNELS},
        "clip_fraction": ("clipped", "preferred"),
        "dpo/agreed": ("agreed", "pairs"),
        "dpo/gap": ("gap", "pairs"),
    }
    metrics |= {name: sums[over] / sums[under] for name, (over, under) in ratios.items() if sums[under]}
    return {**metrics, "tokens": sums["tokens"]}


def check_losses_present(metrics: Mapping[str, float], rows: Sequence[TrainingRow], mtp_heads: int) -> None:
    """RuntimeError: a loss that these rows of the whole step ask for is not among the metrics.

    ``mtp_heads``: how many of them learn from the anchors.
    """
    weighed = {component for row in rows for component in LossComponent if row.weights_CR[component].any()}
    expected = {LOSS_METRICS[component] for component in weighed - SHOWN_BY_CHANNEL}
    expected |= {"loss/ahead"} if mtp_heads and LossComponent.SFT in weighed else set()
    if missing_losses := sorted(expected - metrics.keys()):
        raise RuntimeError(f"the step asked for {', '.join(missing_losses)}, and nothing was learnt of it")


def _sum_microbatch(scored: ScoredMicrobatch) -> dict[str, Tensor]:
    micro, terms = scored.micro, scored.terms
    real = micro.pairs_P != 0
    # an idle rank's micro-batch holds one token that stands for nothing
    tokens = torch.tensor(float(micro.ids_TS.numel()) if len(micro.keep_N) else 0.0, device=micro.ids_TS.device)
    sums = {
        **{f"part/{component.name}": part for component, part in terms.parts.items()},
        **{f"weighed/{component.name}": (micro.weights_CN[component] != 0).sum() for component in LOSS_METRICS},
        **{name: getattr(terms, name) for name in ("mtp", "mtp_count", "clipped", "preferred")},
        "tokens": tokens,
        "pairs": real.sum(),
        "agreed": (terms.gaps_P[real] > 0).sum(),
        "gap": terms.gaps_P[real].sum(),
    }
    mismatch_N = (scored.logps_N - micro.behaviour_N).abs()
    for name, channel in CHANNELS.items():
        here_N = micro.rollout_N & (micro.channels_N == channel)
        kl_N = micro.weights_CN[LossComponent.KL] * (micro.audio_N if name == "audio" else ~micro.audio_N)
        sums |= {
            f"count/{name}": here_N.sum(),
            f"entropy/{name}": scored.entropies_N[here_N].double().sum(),
            f"mismatch/{name}": mismatch_N[here_N].double().sum(),
            f"kl_weight/{name}": kl_N.double().sum(),
            f"penalty/{name}": (kl_N * terms.penalty_N).double().sum(),
        }
    return {name: value.double() for name, value in sums.items()}
