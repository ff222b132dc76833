"""A GLM-4-Voice checkpoint as it is published, but small: random weights under the remote code's names.

The published folder (zai-org/glm-4-voice-9b) holds: config.json (model_type chatglm, auto_map), tokenizer.model
(a tiktoken file), tokenizer_config.json (added_tokens_decoder), sharded safetensors with an index, and Python
files, which here refuse to be run.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech.codecs.mel import MelCodec

BUFFER = "transformer.rotary_pos_emb.inv_freq"  # in the folder, not in the learner
CODES = 32
GAP = 8  # ids that no token has, between the special tokens and the codes (1008 of them in the original)
MERGES = (
    *("th", "the", " the", "an", "sw", "er", "answ", "answer", " answer", "is", " is", "tw", "two", " two"),
    *("st", "str", "stre", "am", "stream", "in", "ing", "on", "Us", "User", "\n\n", "12", "123", "'s"),
)
SPECIALS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    *("<|begin_of_audio|>", "<|end_of_audio|>"),
)
CONFIG: dict[str, Any] = {
    "_name_or_path": "THUDM/glm-4-voice-9b",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["ChatGLMForConditionalGeneration"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "bias_dropout_fusion": True,
    "classifier_dropout": None,
    "ffn_hidden_size": 96,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 128,
    "kv_channels": 32,
    "layernorm_epsilon": 3.90625e-08,
    "model_type": "chatglm",
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 1,
    "seq_length": 1024,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.1",
    "use_cache": True,
}
REFUSAL = "raise RuntimeError('the code of a checkpoint was run')\n"


def write_checkpoint(path: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write the folder and return it."""
    path.mkdir(parents=True)
    ranks, added = _ranks(), added_tokens()
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for piece, rank in ranks.items()]
    (path / "tokenizer.model").write_text("\n".join(lines) + "\n")
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "added_tokens_decoder": {str(i): {"content": token, **plain} for token, i in added.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "tokenizer_class": "ChatGLM4Tokenizer",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = -(-(max(added.values()) + 1) // 64) * 64
    config = {**CONFIG, "padded_vocab_size": rows, "vocab_size": rows}
    config["eos_token_id"] = [added[token] for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    config["pad_token_id"] = added["<|endoftext|>"]
    (path / "config.json").write_text(json.dumps(config))
    for name in ("configuration", "modeling", "tokenization"):
        (path / f"{name}_chatglm.py").write_text(REFUSAL)
    _write_weights(path, {name: tensor.to(dtype) for name, tensor in weights(config, seed).items()})
    return path


def added_tokens() -> dict[str, int]:
    """Special tokens behind the words, codes behind a gap."""
    first = len(_ranks())
    codes = {f"<|audio_{code}|>": first + len(SPECIALS) + GAP + code for code in range(CODES)}
    return {token: first + i for i, token in enumerate(SPECIALS)} | codes


def weights(config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Random tensors of every name that the remote code's model has, its rotary buffer included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.15) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    width, inner, head = config["hidden_size"], config["ffn_hidden_size"], config["kv_channels"]
    stacked = head * (config["num_attention_heads"] + 2 * config["multi_query_group_num"])
    actual = {
        "transformer.embedding.word_embeddings.weight": normal(config["padded_vocab_size"], width),
        "transformer.output_layer.weight": normal(config["padded_vocab_size"], width),
        "transformer.encoder.final_layernorm.weight": 1 + normal(width),
        "transformer.rotary_pos_emb.inv_freq": 1e4 ** -(torch.arange(0, head // 2, 2) / (head // 2)),
    }
    for layer in range(config["num_layers"]):
        actual |= {
            f"transformer.encoder.layers.{layer}.{name}": tensor
            for name, tensor in {
                "input_layernorm.weight": 1 + normal(width),
                "post_attention_layernorm.weight": 1 + normal(width),
                "self_attention.query_key_value.weight": normal(stacked, width),
                "self_attention.query_key_value.bias": normal(stacked),
                "self_attention.dense.weight": normal(width, width),
                "mlp.dense_h_to_4h.weight": normal(2 * inner, width),
                "mlp.dense_4h_to_h.weight": normal(width, inner),
            }.items()
        }
    return actual


def write_codec(folder: Path, *, size: int = CODES) -> Path:
    """A codec of 12.5 codes per second that was fitted on noise."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.1, 1280 * 2 * size).astype(np.float32)
    MelCodec.fit([noise], size=size, seed=0, rounds=1).save(folder / "codec.safetensors")
    return folder


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint's shards, by name."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    actual = {file: load_file(folder / file) for file in set(index.values())}
    return {name: actual[file][name] for name, file in index.items()}


def _ranks() -> dict[bytes, int]:
    """All bytes, then the merges; each is made of two pieces that come before it."""
    pieces = [bytes([byte]) for byte in range(256)] + [word.encode() for word in MERGES]
    return {piece: rank for rank, piece in enumerate(pieces)}


def _write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """In two shards with an index."""
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        shard = {name: tensor.contiguous() for name, tensor in tensors.items() if where[name] == file}
        save_file(shard, path / file, metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
