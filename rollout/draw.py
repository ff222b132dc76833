"""One id per row from its log-probs, with one uniform number of that row's own generator.

Invariant: a row's draws depend on its own generator and log-probs alone, not on the batch or the device; an
id of probability 0 is never drawn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_token_ids(logps_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """int64 [B]: the id at which the cumulated probability passes a uniform number."""
    uniform_B = torch.stack([torch.rand((), dtype=torch.float64, generator=generator) for generator in generators])
    cumulated_BV = logps_BV.double().exp().cumsum(-1)
    whole_B1 = cumulated_BV[:, -1:]
    sought_B1 = torch.minimum(uniform_B[:, None].to(whole_B1.device) * whole_B1, next_smaller_float(whole_B1))
    return torch.searchsorted(cumulated_BV, sought_B1, right=True)[:, 0]


def next_smaller_float(values: Tensor) -> Tensor:
    """The next smaller numbers: a product that rounds up must not pass the last id."""
    return torch.nextafter(values, torch.zeros_like(values))
