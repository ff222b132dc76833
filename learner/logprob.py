"""Log-probs and entropies of chosen positions without ever holding more than ``chunk`` rows of logits.

    logp_i = logits_i[target_i] - logsumexp(logits_i)
    logits_i = (W h_i) / temperature_i, masked by the grammar

Invariant: equal to log_softmax over the whole logits matrix, values and gradients, for any chunk. The
forward pass keeps one logsumexp per position; the backward pass computes the logits again, chunk by chunk.
Cost: one more head GEMM (4 instead of 3) for a peak of chunk x V instead of N x V. Accumulates in float32
(float64 for float64 inputs). Where the loss uses the entropies, their gradient costs one more chunk x V.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MASKED_LOGIT = -1e30  # finite, so that p * logit of a forbidden token is 0 and not nan


def chosen_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    targets_N: Tensor,
    *,
    chunk: int,
    temperature_N: Tensor | None = None,
    allowed_GV: Tensor | None = None,
    grammar_states_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(log-probs, entropies) in nats, both [N] and differentiable with respect to hidden and weight.

    ``allowed_GV``: bool, tokens that each grammar state allows; ``grammar_states_N`` indexes its rows.
    A target that its grammar state forbids gets a log-prob of about -1e30: callers check for it.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1: got {chunk}")
    assert (allowed_GV is None) == (grammar_states_N is None), "a mask needs grammar states and they need a mask"
    inputs = (hidden_NH, weight_VH, targets_N, temperature_N, allowed_GV, grammar_states_N, chunk)
    logps, entropies = _ChosenLogprobs.apply(*inputs)  # type: ignore[no-untyped-call]
    return logps, entropies


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _compute_logits(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    temperature_N: Tensor | None,
    allowed_GV: Tensor | None,
    grammar_states_N: Tensor | None,
    rows: slice,
) -> Tensor:
    logits = (hidden_NH[rows] @ weight_VH.T).to(_accumulation_dtype(hidden_NH.dtype))
    if temperature_N is not None:
        logits.div_(temperature_N[rows, None])
    if allowed_GV is not None and grammar_states_N is not None:
        logits.masked_fill_(~allowed_GV[grammar_states_N[rows]], MASKED_LOGIT)
    return logits


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        targets_N: Tensor,
        temperature_N: Tensor | None,
        allowed_GV: Tensor | None,
        grammar_states_N: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = _accumulation_dtype(hidden_NH.dtype)
        logps, lses, entropies = (torch.empty(len(hidden_NH), dtype=dtype, device=hidden_NH.device) for _ in range(3))
        for begin in range(0, len(hidden_NH), chunk):
            rows = slice(begin, begin + chunk)
            logits = _compute_logits(hidden_NH, weight_VH, temperature_N, allowed_GV, grammar_states_N, rows)
            lse = torch.logsumexp(logits, dim=-1)
            logps[rows] = logits.gather(-1, targets_N[rows, None])[:, 0] - lse
            probabilities = torch.exp(logits - lse[:, None])
            entropies[rows] = lse - probabilities.mul_(logits).sum(dim=-1)
            lses[rows] = lse
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)  # None: the loss does not use it
        saved = (hidden_NH, weight_VH, targets_N, temperature_N, allowed_GV, grammar_states_N, lses, entropies)
        ctx.save_for_backward(*saved)
        return logps, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor | None, bonus_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, targets_N, temperature_N, allowed_GV, grammar_states_N, lses, entropies = (
            ctx.saved_tensors
        )
        grad_N = torch.zeros_like(lses) if grad_N is None else grad_N
        grad_hidden = torch.empty_like(hidden_NH)
        grad_weight = None
        if ctx.needs_input_grad[1]:  # else the head is a constant
            grad_weight = torch.zeros_like(weight_VH, dtype=_accumulation_dtype(weight_VH.dtype))
        for begin in range(0, len(hidden_NH), ctx.chunk):
            rows = slice(begin, begin + ctx.chunk)
            logits = _compute_logits(hidden_NH, weight_VH, temperature_N, allowed_GV, grammar_states_N, rows)
            logps = logits.sub_(lses[rows, None])
            # d logp / d logits = onehot(target) - softmax; d entropy / d logits = -softmax * (logp + entropy)
            pull = grad_N[rows, None]
            if bonus_N is not None:
                pull = pull + bonus_N[rows, None] * (logps + entropies[rows, None])
            grad_logits = logps.exp_().mul_(-pull)
            grad_logits.scatter_add_(-1, targets_N[rows, None], grad_N[rows, None].to(grad_logits.dtype))
            if temperature_N is not None:
                grad_logits.div_(temperature_N[rows, None])
            rounded = grad_logits.to(hidden_NH.dtype)
            grad_hidden[rows] = rounded @ weight_VH
            if grad_weight is None:
                continue
            if grad_weight.dtype == rounded.dtype:
                grad_weight.addmm_(rounded.T, hidden_NH[rows])
            else:
                grad_weight += rounded.T @ hidden_NH[rows]
        rounded_weight = None if grad_weight is None else grad_weight.to(weight_VH.dtype)
        return grad_hidden, rounded_weight, None, None, None, None, None
