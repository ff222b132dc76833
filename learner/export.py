"""The policy as a Hugging Face folder: what the start checkpoint was, with new numbers in it.

Invariant: every weight file of the start checkpoint is written again under its name, with the same tensor
names, shapes and dtypes; every other file (config, tokenizer, wavgate.json, codec) is copied as it is. So
whatever loaded the start checkpoint loads the export.
"""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from learner.model import Policy, whole
from learner.ranks import barrier
from speech.checkpoint import weight_files


def export(policy: Policy, source: Path, target: Path, *, rank: int) -> None:
    """Write the policy to ``target`` in the layout of ``source``. Collective; rank 0 writes, one weight file
    in memory at a time.

    ValueError: ``target`` is not empty, or ``source`` holds a tensor that the policy does not have.
    """
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"export needs an empty folder: {target} is not")
    barrier()  # everyone has looked before rank 0 writes
    files = weight_files(source)
    state = policy.lm.state_dict()
    if rank == 0:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(
            source, target, dirs_exist_ok=True, ignore=lambda folder, names: _weights_in(folder, names, files)
        )
    for file in files:
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                if name not in state:
                    raise ValueError(f"{file}: the policy has no tensor {name}")
                value = whole(state[name])
                if rank == 0:
                    tensors[name] = value.to(stored.get_tensor(name).dtype).contiguous()
            metadata = stored.metadata() or {"format": "pt"}
        if rank == 0:
            save_file(tensors, target / file.name, metadata=metadata)
    barrier()


def _weights_in(folder: str, names: list[str], files: list[Path]) -> list[str]:
    return [name for name in names if Path(folder) / name in files]
