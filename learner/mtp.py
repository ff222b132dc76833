"""Multi-token-prediction (MTP) heads: layers that predict tokens further ahead, and what they score.

Invariant: they learn from anchors alone, and no gradient of theirs reaches the backbone.
"""

import torch
from torch import Tensor, nn

from learner.batch import Microbatch
from learner.logprob import chosen_logprobs
from learner.rows import LossComponent
from rollout.language_model import MtpModel, embed_inputs


def compute_mtp_logprobs(lm: MtpModel, head: nn.Linear, micro: Microbatch, hidden_TH: Tensor, *, chunk: int) -> Tensor:
    """Log-probs [D, N] of the anchors' tokens by each head."""
    anchored_N = micro.weights_CN[LossComponent.SFT] != 0
    lengths = torch.tensor(micro.lengths, device=micro.keep_N.device)
    segment_T = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    anchored_T = torch.isin(segment_T, micro.row_N[anchored_N])
    embedded_TH = embed_inputs(lm, micro.ids_TS, micro.features_KH, micro.at_K)
    logps_by_depth = []
    states = lm.mtp_states(hidden_TH, embedded_TH, micro.positions_T, segment_T, anchored_T)
    for depth, state_TH in enumerate(states):
        (predicted,) = (anchored_N & (micro.positions_T[micro.keep_N] > depth)).nonzero(as_tuple=True)
        scored_states = state_TH[micro.keep_N[predicted]]
        logps, _ = chosen_logprobs(scored_states, head.weight.detach(), micro.targets_N[predicted], chunk=chunk)
        logps_by_depth.append(logps.new_zeros(len(micro.keep_N)).index_add(0, predicted, logps))
    return torch.stack(logps_by_depth)
