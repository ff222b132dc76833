"""What we register in vLLM: a loader, the transfer engine ``object_store``, worker RPCs, the grammar mask.

vLLM imports this module in every worker process (``worker_extension_cls`` names a class of it) before the
engine is built, and the import registers the transfer engine with vLLM's own factory. Weights arrive checked
(``VllmEngine.update_weights``); here they are loaded layer by layer through vLLM's reload, the one way that
also works where the CPU backend has packed its weights.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader import DefaultModelLoader, register_model_loader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from conf.schema import ModelConfig
from rollout.engine import WeightManifest
from rollout.weights import view_tensors
from speech.checkpoints.folder import read_json, weight_files
from speech.families import load_family
from speech.families.base import Family
from speech.grammar.interleave import Interleave

NamedTensors = Generator[tuple[str, torch.Tensor], None, None]

OBJECT_STORE_BACKEND = "object_store"
GRAMMAR_ARGUMENT = "grammar"  # key of SamplingParams.extra_args
WORKER_EXTENSION_PATH = "rollout.vllm_worker.WorkerExtension"
WAVGATE_LOAD_FORMAT = "wavgate"
MODEL_CONFIG_FILE = "wavgate_model.json"  # beside the engine's config.json: which checkpoint, as ModelConfig
GRAMMAR_PROCESSOR_PATH = "rollout.vllm_worker:GrammarProcessor"


@register_model_loader(WAVGATE_LOAD_FORMAT)
class CheckpointLoader(DefaultModelLoader):
    """Reads the language model's own safetensors only: encoders, further heads and a codec may lie beside
    them, which vLLM's classes refuse, and no pickle is ever opened."""

    def _prepare_weights(self, model_name_or_path: str, *_: Any) -> tuple[str, list[str], bool, str]:
        path = load_engine_family(model_name_or_path).path
        return str(path), [str(file) for file in weight_files(path)], True, "model.safetensors.index.json"

    def get_all_weights(self, model_config: Any, model: torch.nn.Module) -> NamedTensors:
        """(checkpoint name, tensor) of what engines run."""
        names = load_engine_family(model_config.model).tensor_names
        for name, tensor in super().get_all_weights(model_config, model):
            if names.is_sampled(name):
                yield name, tensor


def load_engine_family(engine_folder: str) -> Family:
    """The family of the checkpoint that an engine's folder stands for."""
    return load_family(ModelConfig.model_validate(read_json(Path(engine_folder) / MODEL_CONFIG_FILE)))


@dataclass
class ObjectStoreInit(WeightTransferInitInfo):
    """No rendezvous: the buffer comes with the call."""


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    """One whole model. ``payload``: the uint8 buffer, read-only when it lies in Ray's object store."""

    manifest: WeightManifest
    payload: Any


class ObjectStoreEngine(WeightTransferEngine[ObjectStoreInit, ObjectStoreUpdate]):
    """Loads one flat buffer. ``version`` is None during a load: half a model has none."""

    init_info_cls = ObjectStoreInit
    update_info_cls = ObjectStoreUpdate
    version: int | None = None
    _received: int | None = None

    def init_transfer_engine(self, init_info: ObjectStoreInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Open the model for loading."""
        self.version = self._received = None
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ObjectStoreUpdate) -> None:
        """Load every tensor of the buffer; layers are packed again as soon as they are complete."""
        self.model.load_weights(view_tensors(update_info.manifest, update_info.payload))
        self._received = update_info.manifest.version

    def finish_weight_update(self) -> None:
        """Close the model; from here on it has the buffer's version."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            _repack_tied_heads(self.model)
        self.version = self._received

    def shutdown(self) -> None:
        """Nothing to free."""


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """The CPU backend's tied head has its own packed copy of the embedding, which a reload leaves stale."""
    tables = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, VocabParallelEmbedding) and not isinstance(m, ParallelLMHead)
    }
    for head in model.modules():
        if isinstance(head, ParallelLMHead) and id(head.weight) in tables:
            head.quant_method.process_weights_after_loading(head)


class WorkerExtension:
    """Mixed into vLLM's worker; its methods are RPCs."""

    weight_transfer_engine: Any
    model_runner: Any
    vllm_config: Any

    def wavgate_version(self) -> int | None:
        """Version of the weights in this worker, None when no whole update has arrived yet."""
        version: int | None = self.weight_transfer_engine.version
        return version

    def wavgate_repair(self) -> None:
        """After a load that failed half-way: make a full update possible again; wipe the KV cache."""
        with set_current_vllm_config(self.vllm_config):
            self.weight_transfer_engine.finish_weight_update()
        self._weight_update_active = False
        for block in self.model_runner.kv_caches:
            block.zero_()


class GrammarProcessor(LogitsProcessor):
    """Masks what the reply grammar forbids, for requests with ``extra_args={"grammar": True}``.

    Interface of vLLM's V1 model runner; where a GPU would use the newer one, ``vllm_settings`` pins it.
    The family is rebuilt from the engine's folder, so it also works in a worker process.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """ValueError: ``grammar`` is neither true nor false."""
        wanted = (sampling_params.extra_args or {}).get(GRAMMAR_ARGUMENT, False)
        if not isinstance(wanted, bool):
            raise ValueError(f"extra_args[{GRAMMAR_ARGUMENT!r}] must be true or false: got {wanted!r}")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._interleave = load_engine_family(vllm_config.model_config.model).interleave
        allowed = torch.from_numpy(self._interleave.allowed_masks().copy())
        vocab = vllm_config.model_config.get_vocab_size()
        if allowed.shape[1] != vocab:
            raise ValueError(f"the grammar covers {allowed.shape[1]} ids, the model has {vocab}")
        self._forbidden = ~allowed.to(device)
        self._rows: dict[int, _GrammarProgress] = {}

    def is_argmax_invariant(self) -> bool:
        """Greedy replies obey the grammar too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow vLLM's rows: removed, added, moved, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            self._rows.pop(row, None)
            if (params.extra_args or {}).get(GRAMMAR_ARGUMENT, False):
                self._rows[row] = _GrammarProgress(output, self._interleave.start_state())
        for source, target, direction in batch_update.moved:
            here, there = self._rows.pop(source, None), self._rows.pop(target, None)
            if here is not None:
                self._rows[target] = here
            if there is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = there

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Minus infinity on forbidden ids, in place; ``logits``: float32 [rows, vocab]."""
        if self._rows:
            rows = list(self._rows)
            phases = [progress.next_grammar_state(self._interleave) for progress in self._rows.values()]
            masked = logits[rows].masked_fill_(self._forbidden[phases], float("-inf"))
            logits[rows] = masked
        return logits


@dataclass(slots=True)
class _GrammarProgress:
    """How far the grammar has read a request's output; ``output`` is vLLM's own growing list."""

    output: list[int]
    state: int
    read: int = 0

    def next_grammar_state(self, interleave: Interleave) -> int:
        """Read what is new, then the phase of the next position."""
        for token in self.output[self.read :]:
            self.state = interleave.advance(self.state, token)
        self.read = len(self.output)
        phase: int = interleave.grammar_state(self.state)
        return phase


if OBJECT_STORE_BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(OBJECT_STORE_BACKEND, ObjectStoreEngine)
