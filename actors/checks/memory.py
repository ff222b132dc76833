"""How much memory a run will need, before it starts; for ``--dry-run``.

    learner   each number of the language model: 4 bytes of master weight, 4 of gradient, 8 of Adam's moments,
              and 4 of the start policy where one is held, over all ranks together. On CPU each rank also
              gathers the model for its passes and keeps gradients until a step's last one.
    engine    the model in its type (the reference engine: float32), caches, float32 encoders, codec as stored
    weights   on the way from one to the other: two copies in rank 0, one in the object store

Read from headers: what lies on disk may be of another type than what is held. Loading needs no further copy.
"""

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

from conf.schema import Config
from learner.objectives import needs_reference
from speech.checkpoints.folder import read_tensor_headers
from speech.families.base import Family

MIB = 1 << 20
PROCESS_BYTES = 500 * MIB  # an interpreter with torch
BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2}
MASTER_WEIGHT_BYTES, GRADIENT_BYTES, ADAM_MOMENT_BYTES = 4, 4, 8  # float32 whatever the compute type
CONTAINER_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")  # of a container; "max": none


def read_physical_memory() -> int:
    """Bytes of this machine's memory, or of this container's where that is less."""
    limit = CONTAINER_LIMIT_FILE.read_text().strip() if CONTAINER_LIMIT_FILE.exists() else ""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(have, int(limit)) if limit.isdigit() else have


def estimate_memory(config: Config, family: Family) -> dict[str, int]:
    """Bytes per role that the run will need, roughly, on hosts and GPUs together."""
    sizes, rollout, ranks = CheckpointSizes.of(family), config.rollout, config.learner.ranks
    number_bytes = BYTES_PER_NUMBER[config.model.dtype]
    engine = sizes.sampled * number_bytes + sizes.beside
    if rollout.engine == "torch":
        engine += (
            rollout.max_num_seqs
            * config.model.max_length
            // family.streams
            * _count_cached_numbers(family)
            * number_bytes
        )
    else:
        engine += rollout.kv_cache_mb * MIB
    state = MASTER_WEIGHT_BYTES + GRADIENT_BYTES + ADAM_MOMENT_BYTES
    state += MASTER_WEIGHT_BYTES if needs_reference(config.algo) or config.log.diagnose_every else 0
    gathered = sizes.learnt * (number_bytes + GRADIENT_BYTES) if config.cluster.kind == "local" else 0
    activation_bytes = config.learner.tokens_per_microbatch * 4096 * 4 * 8  # activations, by the order of magnitude
    sent = sizes.sampled * number_bytes
    return {
        "driver": PROCESS_BYTES // 2,
        "ray": 600 * MIB + sent,
        "rollout": rollout.workers * (700 * MIB + engine),
        "judge": (config.judge.workers + len(config.judge.endpoints) * bool(config.judge.api_axes)) * 250 * MIB,
        "learner": ranks * (PROCESS_BYTES + activation_bytes + gathered) + sizes.learnt * state + 2 * sent,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSizes:
    """Of a checkpoint."""

    learnt: int  # numbers that the learner trains
    sampled: int  # numbers that engines run
    beside: int  # bytes: encoders and the codec

    @classmethod
    def of(cls, family: Family) -> "CheckpointSizes":
        """From headers. ValueError: see ``speech.checkpoints.folder``."""
        stored, names = read_tensor_headers(family.path), family.tensor_names
        encoder_shapes = {name: h for name, h in stored.items() if not names.module_names(name)}
        if family.audio_encoder_path and family.audio_encoder_path.is_dir():
            encoder_shapes |= {
                name: h for name, h in read_tensor_headers(family.audio_encoder_path).items() if "encoder." in name
            }
        return cls(
            learnt=sum(prod(h.shape) for name, h in stored.items() if names.module_names(name)),
            sampled=sum(prod(h.shape) for name, h in stored.items() if names.is_sampled(name)),
            beside=4 * sum(prod(h.shape) for h in encoder_shapes.values()) + _sum_stored_bytes(family.codec_path),
        )


def _count_cached_numbers(family: Family) -> int:
    """Numbers that a step leaves in the torch engine's cache: keys and values of every layer."""
    config, names = family.backbone, family.tensor_names
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    sampled = filter(names.is_sampled, read_tensor_headers(family.path))
    layers = sum(part.endswith(".k_proj.weight") for name in sampled for part in names.module_names(name))
    return 2 * layers * int(config.get("num_key_value_heads") or heads) * int(head)


def _sum_stored_bytes(codec: Path | None) -> int:
    files = [] if codec is None else [codec] if codec.is_file() else codec.rglob("*.*")
    return sum(file.stat().st_size for file in files if file.suffix in (".safetensors", ".onnx"))
