"""Kimi-Audio's forward pass written out from the published code, without transformers and without a cache."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.micro_kimi_audio import CONFIG

HEADS, GROUPS = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
SIZE = CONFIG["hidden_size"] // HEADS


def logits(
    w: Mapping[str, Tensor], text: Tensor, audio: Tensor, at: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """[T, V] of the text and of the audio head. ``features``: at the steps ``at``, behind the adaptor."""
    table = w["model.embed_tokens.weight"]
    heard = table[audio].clone()
    for k, step in enumerate(at.tolist()):
        heard[step] = (heard[step] + features[k]) * 2.0**0.5
    hidden = heard + table[text]
    for i in range(CONFIG["num_hidden_layers"]):
        hidden = layer(w, f"model.layers.{i}", hidden)
        if i == CONFIG["kimia_mimo_transformer_from_layer_index"]:
            side = hidden
    for i in range(CONFIG["kimia_mimo_layers"]):
        side = layer(w, f"model.mimo_layers.{i}", side)
    said = norm(hidden, w["model.norm.weight"]) @ w["lm_head.weight"].T
    return said, norm(side, w["model.mimo_norm.weight"]) @ w["mimo_output.weight"].T


def layer(w: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    x = x + attention(w, f"{at}.self_attn", norm(x, w[f"{at}.input_layernorm.weight"]))
    y = norm(x, w[f"{at}.post_attention_layernorm.weight"])
    gate, up = y @ w[f"{at}.mlp.gate_proj.weight"].T, y @ w[f"{at}.mlp.up_proj.weight"].T
    return x + (F.silu(gate) * up) @ w[f"{at}.mlp.down_proj.weight"].T


def attention(w: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    q, k, v = (x @ w[f"{at}.{n}_proj.weight"].T + w[f"{at}.{n}_proj.bias"] for n in "qkv")
    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    collected = []
    for head in range(HEADS):
        ours = slice(head * SIZE, (head + 1) * SIZE)
        group = head // (HEADS // GROUPS)
        theirs = slice(group * SIZE, (group + 1) * SIZE)
        scores = turned(q[:, ours]) @ turned(k[:, theirs]).T / SIZE**0.5
        collected.append(scores.masked_fill(later, float("-inf")).softmax(-1) @ v[:, theirs])
    return torch.cat(collected, 1) @ w[f"{at}.o_proj.weight"].T


def turned(x: Tensor) -> Tensor:
    """Rotary positions."""
    rates = CONFIG["rope_theta"] ** (-torch.arange(0, SIZE, 2) / SIZE)
    angles = torch.arange(len(x))[:, None] * torch.cat([rates, rates])
    halves = torch.cat([-x[:, SIZE // 2 :], x[:, : SIZE // 2]], 1)
    return x * angles.cos() + halves * angles.sin()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]) * weight
