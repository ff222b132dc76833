"""From log-probs to the loss: four sums of weighted positions, nothing else.

    SFT   -logp
    PO    -w * min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)
              rho = exp(logp - old)      old: the learner's log-prob before the first update on this batch
              w   = min(exp(old - behaviour), importance_cap), a constant (engine vs learner)
    KL    exp(ref - logp) - (ref - logp) - 1          k3, to the frozen start policy

Invariant: the weights of ``objectives.py`` already hold every division, so sums over micro-batches and
ranks add up to the loss of the whole step. The trainer knows no algorithm beyond these sums.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from conf.schema import AlgoConfig
from learner.batch import Microbatch
from learner.objectives import scales


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """Loss of one micro-batch (scalar, differentiable) and its parts (detached scalars, before their
    factors).
    """

    total: Tensor
    sft: Tensor
    po: Tensor
    kl_text: Tensor
    kl_audio: Tensor
    clipped: Tensor  # preference positions whose ratio was clipped
    preferred: Tensor  # preference positions


def loss_terms(
    logps_N: Tensor, old_N: Tensor, reference_N: Tensor, micro: Microbatch, *, weight: float, algo: AlgoConfig
) -> Terms:
    """The loss of one micro-batch at lambda = ``weight``.

    ``reference_N`` is read where ``micro.kl_N``; anything finite elsewhere.
    """
    factor = scales(weight, algo)
    advantages = micro.advantages_N
    ratio = torch.exp(logps_N - old_N)
    bounded = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high)
    trust = torch.exp(old_N - micro.behaviour_N).clamp(max=algo.importance_cap)
    gap = torch.where(micro.kl_N, reference_N - logps_N, 0.0)
    divergence = torch.expm1(gap) - gap

    sft = -(micro.sft_N * logps_N).sum()
    # where: a weight of 0 gives exactly 0, also if exp overflows at a position without preference

    gain = trust * torch.minimum(ratio * advantages, bounded * advantages)
    po = -(micro.po_N * torch.where(micro.po_N != 0, gain, 0.0)).sum()
    kl_text = (micro.kl_text_N * divergence).sum()
    kl_audio = (micro.kl_audio_N * divergence).sum()

    clipped = torch.where(advantages > 0, ratio > 1 + algo.clip_high, ratio < 1 - algo.clip_low) & (
        micro.po_N != 0
    )
    return Terms(
        total=factor[0] * sft + factor[1] * po + factor[2] * kl_text + factor[3] * kl_audio,
        sft=sft.detach(),
        po=po.detach(),
        kl_text=kl_text.detach(),
        kl_audio=kl_audio.detach(),
        clipped=clipped.sum().detach(),
        preferred=(micro.po_N != 0).sum(),
    )
