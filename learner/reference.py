"""The frozen reference policy: its log-probs at the positions that ask for them, and what a reply pays for
leaving it.

Invariant: a pass runs on every rank when any rank needs it, for FSDP ranks must call forward equally often.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.batch import Microbatch, MicrobatchPlan, pack_reference_microbatch
from learner.model import Policy
from learner.ranks import sum_over_ranks
from learner.rows import REFERENCE_COMPONENTS, LossComponent, TrainingRow
from rollout.types import ReplyKey


@torch.no_grad()
def compute_reference_logps(
    reference: Policy | None,
    rows: Sequence[TrainingRow],
    plan: MicrobatchPlan,
    rank: int,
    micros: Sequence[Microbatch],
) -> list[Tensor]:
    """[N] per micro-batch of this rank, 0 where ``referenced_N`` is not set. Collective."""
    needs_reference = [row.restrict_to(REFERENCE_COMPONENTS).needed_R.any() for row in rows]
    logps_by_micro = []
    for m, (row_indices, micro) in enumerate(zip(plan[rank], micros, strict=True)):
        logps = torch.zeros(len(micro.keep_N), device=micro.ids_TS.device)
        if any(needs_reference[i] for rank_plan in plan for i in rank_plan[m]):
            assert reference is not None, "a weight that needs a reference without one"
            reference_micro = pack_reference_microbatch([rows[i] for i in row_indices], micro.streams)
            logps[micro.referenced_N] = reference(reference_micro.to(logps.device))[0]
        logps_by_micro.append(logps)
    return logps_by_micro


def sum_kl_penalties(
    rows: Sequence[TrainingRow],
    rank_plan: Sequence[Sequence[int]],
    micros: Sequence[Microbatch],
    estimates: Sequence[Tensor],
) -> dict[ReplyKey, float]:
    """By the key of each row: its sum of KL coefficient times estimate. ``rank_plan``: rows of each of this rank's
    micro-batches. Collective, the same on every rank.
    """
    sums = torch.zeros(len(rows), dtype=torch.float64)
    for row_indices, micro, estimate_N in zip(rank_plan, micros, estimates, strict=True):
        penalties_N = micro.weights_CN[LossComponent.KL] * estimate_N
        needed = [i for i in row_indices if rows[i].needed_R.any()]
        for place, i in enumerate(needed):
            sums[i] = penalties_N[micro.row_N == place].sum()
    sum_by_key = {row.key: total for row, total in zip(rows, sums, strict=True) if row.key is not None}
    return sum_over_ranks(sum_by_key) if sum_by_key else {}
