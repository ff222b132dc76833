"""How vLLM is set up: what the engine and each request are given, and what differs between CPU and GPU.

Invariant: all that shapes the sampled distribution is explicit here, nothing comes from the model's folder.
"""

# ruff: noqa: E402 - the environment must be ready before vLLM is imported

from rollout.environment import prepare_environment

HAS_GPU = prepare_environment()

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from vllm import SamplingParams
from vllm.config import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind

from conf.schema import ModelConfig
from rollout.types import Prompt, Sampling
from rollout.vllm_worker import (
    GRAMMAR_ARGUMENT,
    GRAMMAR_PROCESSOR_PATH,
    MODEL_CONFIG_FILE,
    WAVGATE_LOAD_FORMAT,
    WORKER_EXTENSION_PATH,
)
from speech.families.base import Family

WeightTransport = Literal["object_store", "ipc", "nccl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """What the engine needs. ``kv_cache_mb`` is for CPU, ``gpu_memory`` and ``tensor_parallel`` for GPU."""

    model: ModelConfig
    max_num_seqs: int = 128
    kv_cache_mb: int = 64
    grammar: bool = False
    tensor_parallel: int = 1
    gpu_memory: float = 0.85
    transfer: WeightTransport = "object_store"
    version: int = 0  # policy version of the weights in ``model.path``


def build_sampling_params(stop_ids: Sequence[int], sampling: Sampling, seed: int) -> SamplingParams:
    """No penalty, no filter, no default of the model's folder."""
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        seed=seed if sampling.temperature > 0 else None,
        max_tokens=sampling.max_new_tokens,
        stop_token_ids=list(stop_ids),
        ignore_eos=True,  # the family's stop ids are the only ones
        logprobs=0,  # the sampled id's alone
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args={GRAMMAR_ARGUMENT: True} if sampling.grammar else None,
    )


def build_vllm_prompt(prompt: Prompt) -> Any:
    """Ids; with continuous audio, vectors at its steps and ids, embedded by the engine, at all others."""
    if prompt.features is None:
        return {"prompt_token_ids": list(prompt.ids)}
    vectors_TH = torch.zeros(len(prompt.ids), prompt.features.vectors.shape[1])
    vectors_TH[list(prompt.features.steps)] = torch.from_numpy(prompt.features.vectors)
    heard = set(prompt.features.steps)
    return {
        "prompt_embeds": vectors_TH,
        "prompt_token_ids": list(prompt.ids),
        "prompt_is_token_ids": [step not in heard for step in range(len(prompt.ids))],
    }


def build_engine_args(config: VllmSettings, family: Family, folder: Path) -> EngineArgs:
    """One place for what differs between CPU and GPU. ``folder``: as ``write_engine_folder`` leaves it."""
    args: dict[str, Any] = {
        "model": str(folder),
        "load_format": WAVGATE_LOAD_FORMAT,
        "dtype": config.model.dtype,
        "max_model_len": config.model.max_length,
        "max_num_seqs": config.max_num_seqs,
        "skip_tokenizer_init": True,  # token-in-token-out
        "generation_config": "vllm",  # the folder's generation_config.json must not change the sampling
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,  # the G replies of a group share their prompt
        "async_scheduling": False,  # no step may be under way when weights are loaded
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "weight_transfer_config": WeightTransferConfig(backend=config.transfer),
        "worker_extension_cls": WORKER_EXTENSION_PATH,
        "enable_prompt_embeds": bool(family.audio_inputs),
    }
    if config.grammar:
        args["logits_processors"] = [GRAMMAR_PROCESSOR_PATH]
    if HAS_GPU:
        args |= {"gpu_memory_utilization": config.gpu_memory, "tensor_parallel_size": config.tensor_parallel}
        if config.grammar:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the new runner refuses this kind of processor
    else:
        # Chunked prefill ends in "CPU Generator does not use offset" as soon as a seeded prompt is cut.
        args |= {
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "kv_cache_memory_bytes": config.kv_cache_mb << 20,
        }
    return EngineArgs(**args)


def write_engine_folder(folder: Path, model: ModelConfig, family: Family) -> None:
    """What vLLM may read of a checkpoint: the engine's config, and where the weights lie.

    So no code, generation settings or tokenizer of the checkpoint's own folder can have a say.
    """
    (folder / "config.json").write_text(json.dumps(dict(family.engine_config or family.backbone)))
    (folder / MODEL_CONFIG_FILE).write_text(model.model_dump_json())
