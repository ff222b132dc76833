"""The network of ``speech.codecs.whisper_vq``. It imports torch and transformers at once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer


class WhisperVQEncoder(nn.Module):
    """Log-mel features to codes. Its parameters have the published names."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["d_model"]
        layer = WhisperConfig(
            d_model=width,
            encoder_attention_heads=config["encoder_attention_heads"],
            encoder_ffn_dim=config["encoder_ffn_dim"],
            activation_function="gelu",
            attn_implementation="sdpa",
        )
        self.block, self.pool = config["quantize_causal_block_size"], config["pooling_kernel_size"]
        self.conv1 = nn.Conv1d(config["num_mel_bins"], width, kernel_size=3)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2)
        self.embed_positions = nn.Embedding(config["max_source_positions"], width)
        self.layers = nn.ModuleList(WhisperEncoderLayer(layer) for _ in range(config["quantize_position"]))
        self.codebook = nn.Embedding(config["quantize_vocab_size"], width)

    def forward(self, features_BMF: Tensor, heard_BF: Tensor) -> Tensor:
        """Codes [B, F / 2 / pool]; as ``pool_features``."""
        return find_nearest_codes(self.pool_features(features_BMF, heard_BF), self.codebook.weight)

    def pool_features(self, features_BMF: Tensor, heard_BF: Tensor) -> Tensor:
        """What is quantised. F is a multiple of 2 * pool; ``heard_BF``: the frames that are no padding."""
        hidden = functional.gelu(self.conv1(functional.pad(features_BMF, (2, 0))))
        hidden = functional.gelu(self.conv2(functional.pad(hidden, (2, 0)))).transpose(1, 2)
        steps = hidden.shape[1]
        hidden = hidden + self.embed_positions.weight[:steps]
        attention_mask = build_block_causal_mask(steps, self.block, hidden.device) & heard_BF[:, None, ::2]
        mask = torch.zeros(attention_mask.shape, device=hidden.device).masked_fill(
            ~attention_mask, torch.finfo(torch.float32).min
        )
        for layer in self.layers:
            hidden = layer(hidden, mask[:, None])
        return torch.unflatten(hidden, 1, (-1, self.pool)).mean(dim=2)


def build_block_causal_mask(steps: int, block: int, device: torch.device) -> Tensor:
    """[query, key]: the key is not later, or in the same block."""
    index = torch.arange(steps, device=device)
    return (index[None] <= index[:, None]) | (index[None] // block == index[:, None] // block)


def find_nearest_codes(rows_BTH: Tensor, book_KH: Tensor) -> Tensor:
    """Index of the closest entry, by the expanded square as in the published code."""
    flat = rows_BTH.flatten(0, 1)
    known = (book_KH**2).sum(dim=1) + (flat**2).sum(dim=1, keepdim=True)
    return torch.addmm(known, flat, book_KH.T, alpha=-2.0).argmin(dim=1).view(rows_BTH.shape[:2])
