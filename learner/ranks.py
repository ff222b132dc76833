"""The learner's process group: who the ranks are, and the three collectives that they use.

Invariant: every wait has the configured timeout, and every collective is called by all ranks in the same
order on tensors whose sizes all ranks know beforehand. Nothing here is pickled (torch's
checkpoint planner, which ``state.py`` calls, exchanges its plan as objects; its files hold none).
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

Key = TypeVar("Key")


def join_process_group(*, rank: int, world: int, address: str, timeout_s: float) -> None:
    """Join the learner's group at ``address`` (host:port of rank 0). RuntimeError when the others do not
    come in time.

    nccl on GPU (one visible GPU per process, or the rank's own on a shared machine), else gloo.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in [0, {world}): got {rank}")
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_s),
    )


def leave_process_group() -> None:
    """Leave the group. Idempotent."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_rank_device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def build_device_mesh(world: int) -> DeviceMesh:
    """The one-dimensional mesh over all ranks."""
    return init_device_mesh(get_rank_device().type, (world,), mesh_dim_names=("shard",))


def barrier() -> None:
    """Wait for every rank (on CPU: no GPU needs to be idle for it)."""
    dist.all_reduce(torch.zeros(1))


def sum_over_ranks(sums: Mapping[Key, Tensor]) -> dict[Key, float]:
    """Sum of each scalar over the ranks, in float64, identical on every rank."""
    packed = torch.stack([value.to(torch.float64) for value in sums.values()]).cpu()
    dist.all_reduce(packed)
    return dict(zip(sums, packed.tolist(), strict=True))


def gather_over_ranks(values: Tensor, lengths: Sequence[int]) -> list[list[float]]:
    """Every rank's 1-d values; ``lengths[r]`` is how many rank r has, which all ranks know."""
    padded = torch.zeros(max(lengths))
    padded[: len(values)] = values.float().cpu()
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded)
    return [part[:length].tolist() for part, length in zip(received, lengths, strict=True)]
