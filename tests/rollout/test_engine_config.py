"""What a config.json becomes is the same in vLLM's classes as in the learner's: no engine is started."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from actors.checks.model import CPU_HEAD_WIDTHS
from rollout.environment import prepare_environment
from speech.checkpoints.qwen2 import read_decoder

CONFIG = {
    "vocab_size": 10,
    "hidden_size": 64,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROTATIONS: dict[str, dict[str, Any]] = {
    "plain": {"rope_theta": 1e6},
    "none said": {},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": YARN,
    "yarn, narrower": YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
    "yarn, louder": YARN | {"attention_factor": 1.3},
    "yarn, with scales": YARN | {"mscale": 1.2, "mscale_all_dim": 0.8},
    "yarn, beyond its config": {**YARN, "factor": 8.0},
    "llama3": LLAMA3,
}


@pytest.mark.parametrize("case", ROTATIONS)
def test_engine_and_learner_turn_by_the_same_angles(case: str) -> None:
    prepare_environment()
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    decoder = read_decoder(Path("config.json"), CONFIG | {"rope_parameters": ROTATIONS[case]})
    reach = decoder["max_position_embeddings"]
    cos, sin = Qwen2RotaryEmbedding(Qwen2Config(**decoder))(torch.zeros(1, reach, 64), torch.arange(reach)[None])
    with set_current_vllm_config(VllmConfig()):
        rope = get_rope(32, max_position=reach, rope_parameters=decoder["rope_parameters"], dtype=torch.float32)
    table = rope.cos_sin_cache
    assert len(table) >= reach
    assert torch.allclose(torch.cat([cos[0, :, :16], sin[0, :, :16]], dim=-1), table[:reach], atol=1e-6)


def test_the_heads_that_are_let_through_are_those_of_vllms_attention_on_cpu() -> None:
    prepare_environment()
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_WIDTHS) == CPUAttentionBackend.get_supported_head_sizes()
