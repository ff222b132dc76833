"""A Kimi-Audio checkpoint as it is published, but small: random weights under the remote code's names.

The published folder (moonshotai/Kimi-Audio-7B-Instruct) holds: config.json (architectures, auto_map, kimia_*),
tiktoken.model, sharded safetensors with an index, whisper-large-v3/ (the ear), audio_detokenizer/, and Python
files, which here refuse to be run.
"""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig, WhisperModel

from speech.codecs.mel import MelCodec

CODES = 32
MERGES = ["th", "the", " the", "an", " an", "is", " is", " t", "wo", " two", "wh", "at", "what"]
BASE = 256 + len(MERGES)  # ranks
OFFSET = BASE + 421
WIDTH, INNER, EAR = 64, 96, 16
CONFIG: dict[str, Any] = {
    "architectures": ["MoonshotKimiaForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_moonshot_kimia.KimiAudioConfig",
        "AutoModelForCausalLM": "modeling_moonshot_kimia.MoonshotKimiaForCausalLM",
    },
    "model_type": "kimi_audio",
    "vocab_size": OFFSET + CODES,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "kimia_mimo_layers": 2,
    "kimia_mimo_transformer_from_layer_index": 1,
    "kimia_mimo_audiodelaytokens": 6,
    "kimia_token_offset": OFFSET,
    "kimia_adaptor_input_dim": 4 * EAR,
    "kimia_media_begin": BASE + 18,
    "kimia_media_end": BASE + 20,
    "use_whisper_feature": True,
}
REFUSAL = "raise RuntimeError('the code of a checkpoint was run')\n"


def write_checkpoint(path: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write the folder, a codec apart, and return it."""
    path.mkdir(parents=True)
    pieces = [bytes([byte]) for byte in range(256)] + [piece.encode() for piece in MERGES]
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for rank, piece in enumerate(pieces)]
    (path / "tiktoken.model").write_text("\n".join(lines) + "\n")
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name in ("configuration_moonshot_kimia", "modeling_moonshot_kimia", "tokenization_kimia"):
        (path / f"{name}.py").write_text(REFUSAL)
    tensors = {name: tensor.to(dtype) for name, tensor in weights(seed).items()}
    shards = {1: [n for n in tensors if n < "model.m"], 2: [n for n in tensors if n >= "model.m"]}
    index = {}
    for number, names in shards.items():
        file = f"model-{number}-of-2.safetensors"
        save_file({name: tensors[name] for name in names}, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    write_ear(path / "whisper-large-v3")
    return path


def weights(seed: int) -> dict[str, Tensor]:
    """Random tensors of every name that the remote code's model has, far from uniform."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, size: float = 0.15) -> Tensor:
        return torch.randn(shape, generator=generator) * size

    rows = CONFIG["vocab_size"]
    actual = {
        "model.embed_tokens.weight": normal(rows, WIDTH, size=0.5),
        "lm_head.weight": normal(rows, WIDTH),
        "mimo_output.weight": normal(rows, WIDTH),
        "model.norm.weight": 1 + normal(WIDTH),
        "model.mimo_norm.weight": 1 + normal(WIDTH),
        "model.vq_adaptor.layers.0.weight": normal(WIDTH, 4 * EAR),
        "model.vq_adaptor.layers.0.bias": normal(WIDTH),
        "model.vq_adaptor.layers.3.weight": normal(WIDTH, WIDTH),
        "model.vq_adaptor.layers.3.bias": normal(WIDTH),
        "model.vq_adaptor.layers.4.weight": 1 + normal(WIDTH),
        "model.vq_adaptor.layers.4.bias": normal(WIDTH),
    }
    actual["lm_head.weight"][BASE + 24] *= 6  # streams end often, in some places
    actual["mimo_output.weight"][BASE + 2] *= 3
    for at in [f"model.layers.{i}" for i in range(3)] + [f"model.mimo_layers.{i}" for i in range(2)]:
        for name, height in (("q", WIDTH), ("k", WIDTH // 2), ("v", WIDTH // 2)):
            actual[f"{at}.self_attn.{name}_proj.weight"] = normal(height, WIDTH)
            actual[f"{at}.self_attn.{name}_proj.bias"] = normal(height)
        actual[f"{at}.self_attn.o_proj.weight"] = normal(WIDTH, WIDTH)
        actual[f"{at}.mlp.gate_proj.weight"] = normal(INNER, WIDTH)
        actual[f"{at}.mlp.up_proj.weight"] = normal(INNER, WIDTH)
        actual[f"{at}.mlp.down_proj.weight"] = normal(WIDTH, INNER)
        for name in ("input_layernorm", "post_attention_layernorm"):
            actual[f"{at}.{name}.weight"] = 1 + normal(WIDTH)
    return actual


def write_ear(path: Path) -> Path:
    """A random Whisper with 128 mel bands, as the large one has."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        num_mel_bins=128,
        d_model=EAR,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        init_std=0.3,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    WhisperModel(config).save_pretrained(path)
    return path


def write_codec(path: Path, codes: int = CODES) -> Path:
    """A mel codec fitted on noise: 12.5 codes a second, as the published tokenizer has."""
    path.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).normal(0, 0.1, 1280 * 2 * codes).astype(np.float32)
    MelCodec.fit([noise], size=codes, seed=0, rounds=2).save(path / "codec.safetensors")
    return path
