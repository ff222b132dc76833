"""Weight transfer of ``bench.gpu``: one flat buffer to a second process, checked word by word on arrival."""

import statistics
import time
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from bench.gpu_figure import WARM_UP, Bench, Figure, Figures, timed
from bench.gpu_speech import Shape, language_model


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


def weight_transfer(bench: Bench, shape: Shape) -> Figures:
    """All bf16 weights in one flat buffer to a second process, by CUDA IPC handle (on CPU: shared memory)."""
    lm = language_model(bench, shape, torch.bfloat16)
    weights = [tensor.reshape(-1).view(torch.uint8) for tensor in lm.state_dict().values()]
    filling, _, bucket = timed(bench, lambda: torch.cat(weights))
    here, there = (context := multiprocessing.get_context("spawn")).Pipe()
    (other := context.Process(target=receive, args=(there,), daemon=True)).start()
    there.close()
    runs = []
    for _ in range(WARM_UP + bench.steps):
        begin = time.perf_counter()
        here.send(bucket)
        if not here.poll(180):
            raise RuntimeError("the receiving process did not answer within 180 s")
        copying, sums = here.recv()
        runs.append((copying, time.perf_counter() - begin, sums == checksum(bucket)))
    here.send(None)
    other.join()
    seconds, whole = (statistics.median(run[i] for run in runs[WARM_UP:]) for i in (0, 1))
    found = {"GB": bucket.numel() / 1e9, "GB/s": bucket.numel() / 1e9 / seconds, "fill s": filling}
    found |= {"send to checked answer s": whole, "checksum equal": all(run[2] for run in runs)}
    how = "CUDA IPC" if bucket.is_cuda else "shared memory"
    yield Figure("weight transfer, bf16", f"{shape.name}, {how}", seconds, None, found)
