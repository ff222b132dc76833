"""The other process of ``bench.gpu``'s weight transfer. Imports only torch: it should be up at once."""

import time
from typing import Any

import torch
from torch import Tensor


def checksum(buffer: Tensor) -> list[int]:
    """Sums of 32-bit words over 16 columns: a changed, lost or shifted word shows."""
    sums: list[int] = buffer.view(torch.int32).view(-1, 16).sum(0).tolist()
    return sums


def receive(pipe: Any) -> None:
    """The other process: copies what the handle points to into its own memory, and says how long it took."""
    while (shared := pipe.recv()) is not None:
        wait = torch.cuda.synchronize if shared.is_cuda else int
        own = torch.empty_like(shared)
        wait()
        begin = time.perf_counter()
        own.copy_(shared)
        wait()
        seconds = time.perf_counter() - begin
        del shared  # before the answer: its owner may free it then
        pipe.send((seconds, checksum(own)))
