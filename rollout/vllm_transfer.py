"""vLLM's own GPU transports, ``ipc`` (same GPU) and ``nccl`` (apart), from the learner's side.

    every learner rank: trainer.send_weights() ──► rank 0 drives  start -> update -> finish  on every engine

Written from vLLM 0.32's source; both need CUDA, and the tests run neither. Only wiring lives here; the
transports are vLLM's. With them the version that an engine reports is the one that
``TransferClient.version`` announced: these transports carry no digest.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from vllm.distributed.weight_transfer import (
    TrainerWeightTransferEngine,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, materialize_full_tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from rollout.language_model import read_checkpoint_layout, stack_parts
from speech.families.base import Family

# (call, info per engine, version) for ``VllmEngine.transfer`` on every engine at once; returns when all have.
FanOut = Callable[[str, Sequence[dict[str, Any] | None], int | None], None]


class TransferClient:
    """vLLM's ``VLLMWeightSyncClient`` over several engines. Set ``version`` before each ``send_weights``."""

    def __init__(self, fan_out: FanOut, engines: int, tensor_parallel: int) -> None:
        self._fan_out = fan_out
        self._engines = engines
        self._tensor_parallel = tensor_parallel
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Every engine gets its own NCCL ranks; with equal ones all would wait for each other for ever."""
        infos = [dict(init_info) for _ in range(self._engines)]
        for i, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += i * self._tensor_parallel
        self._fan_out("init", infos, None)

    def start_weight_update(self) -> None:
        """Open every engine's model; its steps stop."""
        self._fan_out("start", [None] * self._engines, None)

    def update_weights(self, update_info: Any) -> None:
        """Blocks until every engine has received."""
        self._fan_out("update", [update_info] * self._engines, None)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close every engine's model under the announced version; vLLM's trainers name none."""
        self._fan_out(
            "finish", [None] * self._engines, self.version if weight_version is None else int(weight_version)
        )


class CheckpointSource(WeightSource):
    """A sharded module's weights under its checkpoint's names, whole, rounded to the engine's type as in
    ``Learner.weights``; a tied head goes once, as embedding."""

    def __init__(self, module: torch.nn.Module, family: Family, dtype: torch.dtype) -> None:
        layout, tied = read_checkpoint_layout(family)
        self._layout = {name: shape for name, shape in layout.items() if name not in tied}
        self._parameters, self._names = dict(module.named_parameters()), family.tensor_names
        self._dtype = dtype

    def metadata(self) -> list[ParamMeta]:
        """(name, dtype, shape) of all that iteration yields; nothing is gathered."""
        return [ParamMeta(name, self._dtype, shape) for name, shape in self._layout.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Collective."""
        for name in self._layout:
            yield name, stack_parts(self._names, name, self._gather_parameter)

    def _gather_parameter(self, name: str) -> torch.Tensor:
        whole: torch.Tensor = materialize_full_tensor(self._parameters[name])
        return whole.to(self._dtype)


def init_trainer_transfer(
    kind: Literal["ipc", "nccl"],
    module: torch.nn.Module,
    family: Family,
    client: TransferClient,
    *,
    dtype: torch.dtype,
    rank: int,
    master_address: str = "",
    master_port: int = 0,
    world_size: int = 0,
) -> TrainerWeightTransferEngine:
    """Call on every learner rank; collective. FSDP2 shards are gathered tensor by tensor when sent.
    ``dtype``: the engines'.

    ``nccl`` needs an address and port of rank 0 and ``world_size`` = 1 + engines * tensor_parallel.
    """
    info = (
        IPCTrainerInitInfo(rank=rank, packed=True)
        if kind == "ipc"
        else NCCLTrainerInitInfo(master_address, master_port, world_size, rank=rank)
    )
    return WeightTransferTrainerFactory.trainer_init(
        info, client=client, source=CheckpointSource(module, family, dtype)
    )
