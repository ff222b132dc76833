"""The policy under its checkpoint's names: for engines, and as a folder like the start checkpoint's.

Invariant: every weight file of the start checkpoint is written again under its name, with the same tensor
names, shapes and dtypes; tensors that the learner does not hold (encoders, frozen heads) and every other file
(config, tokenizer, wavgate.json, codec) are copied bit for bit, but for the start's weights in another form
(pytorch_model.bin) and what is left of its training (optimizer.pt), which would be stale. So whatever loaded
the start checkpoint loads the export. Modes are those that the umask gives.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.model import Policy, gather_tensor
from learner.ranks import barrier
from rollout.language_model import read_checkpoint_layout, stack_parts
from speech.checkpoints.folder import EXPORT_STEP_KEY, is_stale_weight_file, weight_files
from speech.families.base import Family
from store.files import copy_contents

SKIPPED_NAMES = (".cache", ".git")  # what a download or a clone keeps beside its files, weights among it


def engine_tensors(policy: Policy, family: Family) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, whole float32 tensor on CPU) of all that engines run, a tied head as well.

    Collective: exhaust it on every rank.
    """
    state = policy.lm.state_dict()
    for name in read_checkpoint_layout(family)[0]:
        yield name, stack_parts(family.tensor_names, name, lambda part: gather_tensor(state[part]))


def export_policy(policy: Policy, family: Family, target: Path, *, rank: int, step: int = 0) -> None:
    """Write the policy to ``target`` in the layout of the family's folder. Collective; rank 0 writes, one
    weight file in memory at a time. ``step``: of the run, kept beside the weights.

    ValueError: ``target`` is not empty, or the folder holds a tensor that the policy does not have.
    """
    source = family.path
    separate_folders = (family.codec_path, family.audio_encoder_path)

    def is_copied(path: Path) -> bool:
        stale = path.parent == source and path not in separate_folders and is_stale_weight_file(path.name)
        return not (stale or path in files or path.name in SKIPPED_NAMES)

    if target.exists() and any(target.iterdir()):
        raise ValueError(f"export needs an empty folder: {target} is not")
    barrier()  # everyone has looked before rank 0 writes
    files = weight_files(source)
    state = policy.lm.state_dict()
    if rank == 0:
        target.mkdir(parents=True, exist_ok=True)
    for file in files:
        tensors: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - not a mapping
                parts = family.tensor_names.module_names(name)
                if missing := [part for part in parts if part not in state]:
                    raise ValueError(f"{file}: the policy has no tensor {missing[0]} for {name}")
                value = (
                    stack_parts(family.tensor_names, name, lambda part: gather_tensor(state[part])) if parts else None
                )
                if rank == 0:
                    start_tensor = stored.get_tensor(name)
                    tensors[name] = start_tensor if value is None else value.to(start_tensor.dtype).contiguous()
            metadata = {**(stored.metadata() or {"format": "pt"}), EXPORT_STEP_KEY: str(step)}
        if rank == 0:
            _save_tensors(tensors, target / file.name, metadata)
    if rank == 0:  # last: nobody waits in a gather while gigabytes of encoders are copied
        copy_contents(source, target, is_copied)


def _save_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """As a new file of this process is made; the library alone makes one that only its owner reads."""
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, metadata=dict(metadata))
    _sort_metadata(file)
    file.chmod(mode)


def _sort_metadata(file: Path) -> None:
    """Order the header's metadata by its keys, in place. The library leaves that to chance, and equal weights
    make equal files.
    """
    with file.open("r+b") as stored:
        size = int.from_bytes(stored.read(8), "little")
        header = json.loads(stored.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(ordered) == size, (len(ordered), size)
        stored.seek(8)
        stored.write(ordered)


# Names of an earlier release, kept for one more.
export, whole, LEFT_OUT = export_policy, gather_tensor, SKIPPED_NAMES
