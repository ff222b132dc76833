"""Micro VITA-Audio checkpoints in the released layout: random weights, a byte-pair tokenizer of a few words.

Layout, names and added tokens as in VITA-MLLM/VITA-Audio@0abaf17 (vita_audio/models, vita_audio/tokenizer_*.py);
its remote code is there too, and raises: nothing may run it.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from speech.codecs.mel import MelCodec

Kind = Literal["boost", "plus"]
LAYERS, AHEAD, HIDDEN, CODES, HEARS = 2, 2, 64, 32, 16
PIECES = (
    "system",
    "user",
    "assistant",
    "Your",
    " Voice",
    " the",
    " one",
    " two",
    "\n\n",
    " is",
    "two",
    "one",
)


def write_checkpoint(path: Path, kind: Kind = "boost", seed: int = 0) -> Path:
    """Config, tokenizer, two weight files with their index, generation settings and remote code."""
    path.mkdir(parents=True)
    tokenizer = _tokenizer(kind)
    tokenizer.save_pretrained(path)
    ahead = AHEAD if kind == "boost" else 0
    config = _config(kind, rows=-(-len(tokenizer) // 8) * 8 + 8, ahead=ahead)
    config["eos_token_id"] = tokenizer.eos_token_id
    (path / "config.json").write_text(json.dumps(config))
    if kind == "boost":
        spoiler = {"do_sample": True, "top_k": 2, "temperature": 0.1, "mtp_inference_mode": [1, 10, 4, 10]}
        (path / "generation_config.json").write_text(json.dumps(spoiler))
    (path / "modeling_qwen2.py").write_text("raise RuntimeError('remote code ran')\n")
    tensors = _decoder(config, seed) | _ahead(ahead, seed)
    if kind == "plus":
        tensors |= _encoder(seed)
        (path / "am.mvn").write_text(_statistics())
    _save(path, {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()})
    return path


def write_codec(path: Path, codes: int = CODES) -> Path:
    """A codec of as many codes as the micro tokenizer has, at 12.5 per second."""
    noise = np.random.default_rng(0).normal(0, 0.1, 1280 * 2 * codes).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    MelCodec.fit([noise], size=codes, seed=0, rounds=2).save(path)
    return path


def _tokenizer(kind: Kind) -> Qwen2Tokenizer:
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for piece in PIECES:
        ((spelled, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(piece)
        for n in range(1, len(spelled)):
            merge = (spelled[:n], spelled[n])
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault(spelled[: n + 1], len(vocabulary))
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges)  # adds <|endoftext|>
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.add_tokens(_added(kind), special_tokens=True)
    tokenizer.add_tokens([f"<|audio_{code}|>" for code in range(CODES)])
    return tokenizer


def _added(kind: Kind) -> list[str]:
    """The 20 tokens of the discrete models, with <|context_of_audio|> the 21 of Plus, in their order."""
    parts = dict.fromkeys(("image", "video", "patch"), ("begin", "end", "context"))
    parts["audio"] = ("begin", "end", "context")[: 3 if kind == "plus" else 2]
    parts |= dict.fromkeys(("quad", "ref", "box"), ("begin", "end"))
    marks = [f"<|{part}_of_{name}|>" for name, each in parts.items() for part in each]
    return [*marks, "<|image|>", "<|video|>", "<|audio|>"]


def _config(kind: Kind, rows: int, ahead: int) -> dict[str, Any]:
    name = "Qwen2MTP" if kind == "boost" else "Qwen2MTPSenseVoice"
    return {
        "architectures": [f"{name}ForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": f"configuration_qwen2.{name}Config",
            "AutoModelForCausalLM": f"modeling_qwen2.{name}ForCausalLM",
        },
        "bos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 2 * HIDDEN,
        "max_position_embeddings": 1024,
        "max_window_layers": 28,
        "model_type": "qwen2_mtp" if kind == "boost" else "qwen2_mtp_sensevoice",
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS + ahead,
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": ahead,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.48.3",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": rows,
    }


def _decoder(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """All layers, those of MCTP included; far from uniform, so that parity means something."""
    foreign = ("auto_map", "architectures", "model_type", "torch_dtype", "transformers_version")
    known = {name: value for name, value in config.items() if name not in foreign}
    model = Qwen2ForCausalLM(Qwen2Config(**known))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15, generator=generator)
    return dict(model.state_dict())


def _ahead(count: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    tensors: dict[str, Tensor] = {}
    for depth in range(count):
        tensors[f"mtp_projs.{depth}.weight"] = 0.15 * torch.randn(HIDDEN, 2 * HIDDEN, generator=generator)
        for norm in ("mtp_embed_norms", "mtp_hidden_norms"):
            tensors[f"{norm}.{depth}.weight"] = 1 + 0.1 * torch.randn(HIDDEN, generator=generator)
    return tensors


def _encoder(seed: int) -> dict[str, Tensor]:
    """SenseVoice-small with one first layer, two more and one behind the norm; its CTC head; the projector."""
    generator = torch.Generator().manual_seed(seed + 2)
    inner, wide = 4 * HEARS, HEARS
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (16, 560), "ctc.ctc_lo.weight": (20, wide)}
    shapes |= {"ctc.ctc_lo.bias": (20,)}
    for stack, count, width in (("encoders0", 1, 560), ("encoders", 2, wide), ("tp_encoders", 1, wide)):
        for name in (f"encoder.{stack}.{n}." for n in range(count)):
            for norm, size in (("norm1", width), ("norm2", wide)):
                shapes |= {f"{name}{norm}.weight": (size,), f"{name}{norm}.bias": (size,)}
            for linear, (rows, columns) in {
                "self_attn.linear_q_k_v": (3 * wide, width),
                "self_attn.linear_out": (wide, wide),
                "feed_forward.w_1": (inner, wide),
                "feed_forward.w_2": (wide, inner),
            }.items():
                shapes |= {f"{name}{linear}.weight": (rows, columns), f"{name}{linear}.bias": (rows,)}
            shapes[f"{name}self_attn.fsmn_block.weight"] = (wide, 1, 11)
    for norm in ("after_norm", "tp_norm"):
        shapes |= {f"encoder.{norm}.weight": (wide,), f"encoder.{norm}.bias": (wide,)}
    tensors = {f"model.audio_model.model.{name}": shape for name, shape in shapes.items()}
    tensors |= {f"model.audio_projection.pre_proj_layernorm.{part}": (wide,) for part in ("weight", "bias")}
    tensors |= {"model.audio_projection.mlp.0.weight": (HIDDEN, wide)}
    tensors |= {"model.audio_projection.mlp.2.weight": (HIDDEN, HIDDEN)}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in tensors.items()}


def _statistics() -> str:
    """am.mvn: Kaldi's text form of a shift and a scale for each of 560 features."""
    shift, scale = (" ".join(f"{start + n / 1000:.4f}" for n in range(560)) for start in (-9.0, 0.1))
    return (
        f"<Nnet>\n<Splice> 560 560\n[ 0 ]\n<AddShift> 560 560\n<LearnRateCoef> 0 [ {shift} ]\n"
        f"<Rescale> 560 560\n<LearnRateCoef> 0 [ {scale} ]\n</Nnet>\n"
    )


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Two files and their index, as a model of this size is shipped."""
    files = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    place = {name: files[i % 2] for i, name in enumerate(sorted(tensors))}
    for file in files:
        held = {name: tensor.contiguous() for name, tensor in tensors.items() if place[name] == file}
        save_file(held, path / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
