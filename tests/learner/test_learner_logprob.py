"""Chunked log-probs against log_softmax over the whole logits matrix."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from learner.logprob import chosen_logprobs


def inputs(n: int, hidden: int, vocab: int, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Random tensors; grammar_state 0 allows everything, the others allow at least the target."""
    g = torch.Generator().manual_seed(seed)
    targets, grammar_states = torch.randint(vocab, (n,), generator=g), torch.randint(3, (n,), generator=g)
    allowed = torch.rand(3, vocab, generator=g) < 0.5
    allowed[0] = True
    allowed[grammar_states, targets] = True
    return {
        "hidden": torch.randn(n, hidden, generator=g, dtype=dtype).requires_grad_(),
        "weight": torch.randn(vocab, hidden, generator=g, dtype=dtype).requires_grad_(),
        "targets": targets,
        "temperature": torch.rand(n, generator=g, dtype=dtype) + 0.5,
        "allowed": allowed,
        "grammar_states": grammar_states,
    }


def naive(x: dict[str, torch.Tensor], *, heat: bool, mask: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logits = x["hidden"] @ x["weight"].T
    if heat:
        logits = logits / x["temperature"][:, None]
    if mask:
        logits = logits.masked_fill(~x["allowed"][x["grammar_states"]], float("-inf"))
    logps = torch.log_softmax(logits, -1)
    entropies = -(logps.exp() * logps.clamp(min=-1e29)).sum(-1)  # 0 log 0 is 0
    return logps.gather(-1, x["targets"][:, None])[:, 0], entropies


def chunked(x: dict[str, torch.Tensor], chunk: int, *, heat: bool, mask: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return chosen_logprobs(
        x["hidden"],
        x["weight"],
        x["targets"],
        chunk=chunk,
        temperature_N=x["temperature"] if heat else None,
        allowed_GV=x["allowed"] if mask else None,
        grammar_states_N=x["grammar_states"] if mask else None,
    )


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 9), hidden=st.integers(1, 5), vocab=st.integers(1, 17), chunk=st.integers(1, 12),
    seed=st.integers(0, 999), heat=st.booleans(), mask=st.booleans(),
)  # fmt: skip
def test_equal_to_log_softmax_in_values_and_gradients(
    n: int, hidden: int, vocab: int, chunk: int, seed: int, heat: bool, mask: bool
) -> None:
    x = inputs(n, hidden, vocab, seed)
    upstream = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    actual, expected = chunked(x, chunk, heat=heat, mask=mask), naive(x, heat=heat, mask=mask)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    wanted = (x["hidden"], x["weight"])
    for used in ([0], [1], [0, 1]):  # log-probs, entropies, both
        gradients = [
            torch.autograd.grad(sum((values[i] * upstream[i]).sum() for i in used), wanted, retain_graph=True)
            for values in (actual, expected)
        ]
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask", [False, True])
def test_gradcheck(mask: bool) -> None:
    x = inputs(5, 3, 7, seed=1)

    def logps(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return chunked({**x, "hidden": hidden, "weight": weight}, 2, heat=True, mask=mask)[0]

    assert torch.autograd.gradcheck(logps, (x["hidden"], x["weight"]))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_never_more_than_a_chunk_of_logits() -> None:
    x = inputs(64, 2, 100, seed=2, dtype=torch.float32)
    with Largest() as largest:
        chunked(x, 8, heat=True, mask=True)[0].sum().backward()
    assert largest.elements == 8 * 100


def test_bfloat16_is_summed_in_float32() -> None:
    x = inputs(64, 16, 100, seed=3, dtype=torch.bfloat16)
    x["temperature"] = x["temperature"].float()
    wide = {
        **x,
        "hidden": x["hidden"].detach().float().requires_grad_(),
        "weight": x["weight"].detach().float().requires_grad_(),
    }
    logps, entropies = chunked(x, 7, heat=True, mask=True)
    assert logps.dtype == entropies.dtype == torch.float32
    logps.sum().backward()
    assert x["weight"].grad is not None and x["weight"].grad.dtype == torch.bfloat16
    expected = naive(wide, heat=True, mask=True)[0]
    expected.sum().backward()
    torch.testing.assert_close(logps, expected, rtol=0, atol=0.1)  # bfloat16 logits of size 10
    off = (x["weight"].grad.float() - wide["weight"].grad).norm() / wide["weight"].grad.norm()
    assert off < 0.02


def test_chunk_must_be_positive() -> None:
    x = inputs(2, 2, 3, seed=0)
    with pytest.raises(ValueError, match="chunk must be at least 1: got 0"):
        chunked(x, 0, heat=False, mask=False)
