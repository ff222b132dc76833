"""A Step-Audio 2 mini checkpoint as it is published, but small: random weights under the remote code's names.

The published folder (stepfun-ai/Step-Audio-2-mini) holds: config.json (model_type step_audio_2, text_config,
audio_encoder_config, auto_map), tokenizer.json and its companions, sharded safetensors with an index, token2wav,
and Python files, which here refuse to be run.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

CODES = 32
MERGES = "t h|th e|Ġ the|a n|s w|e r|an sw|answ er|Ġ answer|i s|Ġ is|t w|tw o|Ġ two|u s|us er|1 2".split("|")
SPLIT = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
SPECIALS = (  # in the order of the published ids, those of no known name as <|unused_N|>
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"),
    *("<|EOT|>", "<|BOT|>", "<|unused_0|>", "<audio_start>", "<audio_end>", "<audio_patch>"),
    *("<|unused_1|>", "<|unused_2|>", "<tts_start>", "<tts_end>", "<tts_pad>"),
    *(f"<audio_{code}>" for code in range(CODES + 1)),
)
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_attention_groups": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "max_seq_len": 512,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 512,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
}
ENCODER: dict[str, Any] = {
    "n_mels": 128,
    "n_audio_ctx": 1500,
    "n_audio_state": 32,
    "n_audio_head": 2,
    "n_audio_layer": 2,
    "n_codebook_size": 4096,
    "llm_dim": 64,
    "kernel_size": 3,
    "adapter_stride": 2,
}
CONFIG: dict[str, Any] = {
    "architectures": ["StepAudio2ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_step_audio_2.StepAudio2Config",
        "AutoModelForCausalLM": "modeling_step_audio_2.StepAudio2ForCausalLM",
    },
    "model_type": "step_audio_2",
    "torch_dtype": "bfloat16",
}
REFUSAL = "raise RuntimeError('the code of a checkpoint was run')\n"


def write_checkpoint(path: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write the folder, a codec apart, and return it."""
    path.mkdir(parents=True)
    tokenizer = write_tokenizer(path)
    rows = -(-tokenizer.get_vocab_size() // 64) * 64
    special = {"eos_token_id": tokenizer.token_to_id("<|endoftext|>"), "vocab_size": rows}
    config = {**CONFIG, "text_config": {**TEXT, **special}, "audio_encoder_config": ENCODER}
    (path / "config.json").write_text(json.dumps(config))
    for name in ("configuration", "modeling"):
        (path / f"{name}_step_audio_2.py").write_text(REFUSAL)
    (path / "token2wav").mkdir()
    (path / "token2wav" / "flow.yaml").write_text("{}\n")
    tensors = {name: tensor.to(dtype) for name, tensor in weights(rows, seed).items()}
    shards = {1: [n for n in tensors if n < "encoder"], 2: [n for n in tensors if n >= "encoder"]}
    index = {}
    for number, names in shards.items():
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index_file = {"metadata": {"total_size": size}, "weight_map": index}
    (path / "model.safetensors.index.json").write_text(json.dumps(index_file))
    return path


def write_tokenizer(path: Path) -> Tokenizer:
    """Qwen's byte pairs with a few merges, then the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(merge.split()) for merge in MERGES]
    pieces = [*letters, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def weights(rows: int, seed: int) -> dict[str, Tensor]:
    """Random tensors of every name that the remote code's model has."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.15

    width, inner, state = TEXT["hidden_size"], TEXT["intermediate_size"], ENCODER["n_audio_state"]
    actual = {
        "model.embed_tokens.weight": normal(rows, width) * 4,
        "lm_head.weight": normal(rows, width),
        "model.norm.weight": 1 + normal(width),
        "encoder.conv1.weight": normal(state, ENCODER["n_mels"], 3),
        "encoder.conv2.weight": normal(state, state, 3),
        "encoder.positional_embedding.weight": normal(ENCODER["n_audio_ctx"], state),
        "adapter.conv.weight": normal(state, state, 3),
        "adapter.linear1.weight": normal(48, state),
        "adapter.linear2.weight": normal(ENCODER["llm_dim"], 48) * 4,
        "encoder.after_norm.weight": 1 + normal(state),
        "encoder.after_norm.bias": normal(state),
    }
    for layer in range(TEXT["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name in ("q", "k", "v"):
            height = width if name == "q" else 32
            actual[f"{at}.self_attn.{name}_proj.weight"] = normal(height, width)
            actual[f"{at}.self_attn.{name}_proj.bias"] = normal(height)
        actual[f"{at}.self_attn.o_proj.weight"] = normal(width, width)
        actual[f"{at}.mlp.gate_proj.weight"], actual[f"{at}.mlp.up_proj.weight"] = (
            normal(inner, width),
            normal(inner, width),
        )
        actual[f"{at}.mlp.down_proj.weight"] = normal(width, inner)
        for name in ("input_layernorm", "post_attention_layernorm"):
            actual[f"{at}.{name}.weight"] = 1 + normal(width)
    for layer in range(ENCODER["n_audio_layer"]):
        at = f"encoder.blocks.{layer}"
        for name in ("query", "key", "value", "out"):
            actual[f"{at}.attn.{name}.weight"] = normal(state, state)
            if name != "key":
                actual[f"{at}.attn.{name}.bias"] = normal(state)
        actual[f"{at}.mlp.0.weight"], actual[f"{at}.mlp.0.bias"] = normal(4 * state, state), normal(4 * state)
        actual[f"{at}.mlp.2.weight"], actual[f"{at}.mlp.2.bias"] = normal(state, 4 * state), normal(state)
        for name in ("attn_ln", "mlp_ln"):
            actual[f"{at}.{name}.weight"], actual[f"{at}.{name}.bias"] = 1 + normal(state), normal(state)
    biased = ("encoder.conv1", "encoder.conv2", "adapter.conv", "adapter.linear1", "adapter.linear2")
    return actual | {f"{name}.bias": normal(len(actual[f"{name}.weight"])) for name in biased}


def write_codec(path: Path, ratios: tuple[int, ...] = (8, 5, 4, 6), codes: int = CODES) -> Path:
    """A random EnCodec: 24 kHz and, with these ratios, the 25 codes a second of the published codec."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    config = EncodecConfig(
        hidden_size=16, num_filters=2, codebook_size=codes, num_lstm_layers=1, upsampling_ratios=list(ratios)
    )
    model = EncodecModel(config)
    for name, buffer in model.named_buffers():  # the books start as zeros: all codes alike
        if name.endswith(".embed"):
            torch.nn.init.normal_(buffer)
    for name, weight in model.named_parameters():  # else a random encoder hears hardly anything
        if name.startswith("encoder.") and name.endswith("original0"):
            weight.data *= 4
    model.save_pretrained(path)
    return path
