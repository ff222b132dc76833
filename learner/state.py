"""The learner's state on disk: weights, Adam moments, counters and RNG as safetensors, written by all ranks.

    weights.<name>  exp_avg.<name>  exp_avg_sq.<name>      sharded: each rank writes and reads its own rows
    counters                                               int64: version, optimiser updates
    rng.rank<r>                                            uint8: torch's CPU generator of rank r

Invariant: no pickle, and loading on any number of ranks gives the same weights and moments bit for bit
(torch.distributed.checkpoint with the safetensors reader and writer). A rank that did not exist when the
state was written keeps its own RNG. Atomicity is the caller's: write to a fresh folder and rename it.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_tensors
from torch.distributed.checkpoint.state_dict_saver import save as write_tensors
from torch.optim import AdamW

from learner.model import Policy
from learner.ranks import barrier


def save_state(directory: Path, policy: Policy, optimizer: AdamW, *, rank: int, version: int, updates: int) -> None:
    """Write into ``directory``, which must be empty or new. Collective. OSError: the disk is full, say."""
    if rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ValueError(f"learner state needs an empty folder: {directory} is not")
    barrier()
    state = _collect_state_tensors(policy, optimizer)
    state["counters"] = torch.tensor([version, updates])
    state[f"rng.rank{rank}"] = torch.get_rng_state()
    try:
        write_tensors(state, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))
    except CheckpointException as failed:  # no Exception: it would end the rank, with a page of traceback
        raise _get_first_failure(failed) from None
    barrier()


def load_state(directory: Path, policy: Policy, optimizer: AdamW, *, rank: int) -> tuple[int, int]:
    """Read what ``save_state`` wrote, on any number of ranks. (version, updates). Collective.

    ValueError: not a learner state, or one of another model.
    """
    reader = HuggingFaceStorageReader(str(directory))
    entries = reader.read_metadata().state_dict_metadata
    stored = {name: tuple(e.size) for name, e in entries.items() if isinstance(e, TensorStorageMetadata)}
    state = _collect_state_tensors(policy, optimizer)
    wrong = [name for name, tensor in state.items() if stored.get(name) != tuple(tensor.shape)]
    if wrong or "counters" not in stored:
        raise ValueError(
            f"{directory}: not a state of this model: {(wrong or ['counters'])[0]} is missing or has another shape"
        )
    state["counters"] = torch.zeros(2, dtype=torch.int64)
    rng = f"rng.rank{rank}"
    if rng in stored:
        state[rng] = torch.empty(stored[rng], dtype=torch.uint8)
    try:
        read_tensors(state, storage_reader=reader)  # in place
    except CheckpointException as failed:
        raise _get_first_failure(failed) from None
    version, updates = (int(value) for value in state["counters"])
    for _, parameter in policy.lm.named_parameters():
        optimizer.state[parameter]["step"].fill_(float(updates))
    if rng in stored:
        torch.set_rng_state(state[rng])
    barrier()
    return version, updates


def _get_first_failure(failed: CheckpointException) -> Exception:
    """What went wrong on the first rank on which something did."""
    error = next(iter(failed.failures.values()))[0]
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def initialise_moments(policy: Policy, optimizer: AdamW) -> None:
    """Give every parameter its zero moments now, so that the state has the same tensors before and after the
    first step.
    """
    for _, parameter in policy.lm.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter.detach()),
            "exp_avg_sq": torch.zeros_like(parameter.detach()),
        }


def _collect_state_tensors(policy: Policy, optimizer: AdamW) -> dict[str, Tensor]:
    """The live tensors by name. Tied parameters appear once."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in policy.lm.named_parameters():
        tensors[f"weights.{name}"] = parameter.detach()
        tensors[f"exp_avg.{name}"] = optimizer.state[parameter]["exp_avg"]
        tensors[f"exp_avg_sq.{name}"] = optimizer.state[parameter]["exp_avg_sq"]
    return tensors
