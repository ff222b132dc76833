"""From log-probs to the loss: sums of weighted positions, nothing else.

    SFT      -logp;  with multi-token-prediction (MTP) heads also the mean of theirs, from which they alone learn
    PO       -w * min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)      A < 0: at least clip_dual * A
                 rho = exp(logp - old)      old: the learner's log-prob before the first update on this batch
                 w   = min(exp(old - behaviour), importance_cap), a constant (engine vs learner)
    DPO      softplus(-z),  z = beta * sum of signed (logp - ref) over both replies of a pair
    KL       k1, k2 or k3 of ref - logp, to the frozen reference policy
    ENTROPY  of the position's distribution, a bonus

Invariant: the weights of ``objectives.py`` already hold every division, so sums over micro-batches and
ranks add up to the loss of the whole step. The trainer knows no algorithm beyond these sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conf.algorithm import AlgoConfig
from learner.batch import Microbatch
from learner.rows import LossComponent, compute_component_factors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossTerms:
    """Loss of one micro-batch (scalar, differentiable) and its parts (detached scalars, before their
    factors).
    """

    total: Tensor
    parts: Mapping[LossComponent, Tensor]
    mtp: Tensor  # the SFT term of the MTP heads; 0 without any
    mtp_count: Tensor  # how many log-probs it is made of
    penalty_N: Tensor  # the KL estimate of each position, before its coefficient
    clipped: Tensor  # those of ``preferred`` whose ratio was clipped
    preferred: Tensor  # preference positions with an advantage
    gaps_P: Tensor  # z of each pair: above 0 where the policy agrees with it


def compute_loss_terms(
    logps_N: Tensor,
    entropies_N: Tensor,
    old_N: Tensor,
    reference_N: Tensor,
    micro: Microbatch,
    mtp_logps_DN: Tensor | None = None,
    *,
    weight: float,
    algo: AlgoConfig,
) -> LossTerms:
    """The loss of one micro-batch at lambda = ``weight``.

    ``reference_N`` is read where ``micro.referenced_N``; anything finite elsewhere.
    """
    gain_N, clipped_N = _compute_clipped_gains(logps_N, old_N, micro, algo)
    bonus_N = entropies_N if algo.entropy.any else entropies_N.detach()  # an unused gradient is not free
    drift_N = torch.where(micro.referenced_N, logps_N - reference_N, 0.0)
    dpo_N, kl_N = micro.weights_CN[LossComponent.DPO], micro.weights_CN[LossComponent.KL]
    gaps_P = algo.dpo_beta * torch.zeros_like(micro.pairs_P).index_add(0, micro.pair_N, dpo_N * drift_N)
    penalty_N = estimate_kl(torch.where(kl_N != 0, -drift_N, 0.0), algo.kl_estimator)
    sft_N, po_N = micro.weights_CN[LossComponent.SFT], micro.weights_CN[LossComponent.PO]
    parts = {
        LossComponent.SFT: -(sft_N * logps_N).sum(),
        LossComponent.PO: -(po_N * gain_N).sum(),
        LossComponent.DPO: (micro.pairs_P * torch.nn.functional.softplus(-gaps_P)).sum(),
        LossComponent.KL: (kl_N * penalty_N).sum(),
        LossComponent.ENTROPY: (micro.weights_CN[LossComponent.ENTROPY] * bonus_N).sum(),
    }
    factors = compute_component_factors(weight)
    total = sum((factors[component] * part for component, part in parts.items()), torch.zeros(()))
    heads = 0 if mtp_logps_DN is None else len(mtp_logps_DN)
    mtp = sft_N.new_zeros(())
    if mtp_logps_DN is not None and heads:
        mtp = -(sft_N * mtp_logps_DN.mean(0)).sum()
    total = total + factors[LossComponent.SFT] * mtp
    preferred_N = (po_N != 0) & (micro.advantages_N != 0)  # importance=sequence weighs others too
    return LossTerms(
        total=total,
        parts={component: part.detach() for component, part in parts.items()},
        mtp=mtp.detach(),
        mtp_count=(sft_N != 0).sum() * heads,
        penalty_N=penalty_N.detach(),
        clipped=(clipped_N & preferred_N).sum(),
        preferred=preferred_N.sum(),
        gaps_P=gaps_P.detach(),
    )


def estimate_kl(gap_N: Tensor, estimator: str) -> Tensor:
    """Estimate of KL(policy || reference) at sampled tokens from d = ref - logp; each has mean KL or, k2,
    nearly so.
    """
    match estimator:
        case "k1":
            return -gap_N
        case "k2":
            return gap_N.square() / 2
        case "k3":
            return torch.expm1(gap_N) - gap_N
    raise ValueError(f"unknown estimator: {estimator!r}")


def _compute_clipped_gains(
    logps_N: Tensor, old_N: Tensor, micro: Microbatch, algo: AlgoConfig
) -> tuple[Tensor, Tensor]:
    """What each position adds to the objective, and whether its ratio was clipped."""
    advantages = micro.advantages_N
    # where: no preference, no ratio; exp must not overflow there, 0 * inf is no gradient
    ratio = torch.exp(torch.where(micro.weights_CN[LossComponent.PO] != 0, logps_N - old_N, 0.0))
    bounded = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high)
    gain = torch.minimum(ratio * advantages, bounded * advantages)
    if algo.clip_dual is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, algo.clip_dual * advantages), gain)
    clipped = torch.where(advantages > 0, ratio > 1 + algo.clip_high, ratio < 1 - algo.clip_low)
    return _compute_importance_weights(old_N, micro, algo) * gain, clipped


def _compute_importance_weights(old_N: Tensor, micro: Microbatch, algo: AlgoConfig) -> Tensor:
    """Truncated importance weight of each position, from what sampled to the policy before the update."""
    log_ratio_N = old_N - micro.behaviour_N
    match algo.importance:
        case "off":
            return torch.ones_like(old_N)
        case "sequence":
            preferred_N = torch.where(micro.weights_CN[LossComponent.PO] != 0, log_ratio_N, 0.0)
            per_row = torch.zeros(len(micro.lengths), dtype=preferred_N.dtype, device=preferred_N.device)
            log_ratio_N = per_row.index_add(0, micro.row_N, preferred_N)[micro.row_N]
    return torch.exp(log_ratio_N).clamp(max=algo.importance_cap)
