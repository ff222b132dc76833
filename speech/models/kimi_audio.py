"""Kimi-Audio's language model: one trunk, two ends, a text and an audio id at every step.

    text id  ─ embedding ─────────────────────────┐
    audio id ─ embedding ─ (+ feature) * sqrt(2) ─┴─ + ─ layers 0..21 ─┬─ layers 22..27 ─ norm ─ text head
                           where there is one                         └─ mimo layers ─ norm ─ audio head

Both ids of a step share one embedding table, both heads score its whole vocabulary. The two ids of a step are
predicted from the step before, neither from the other. Names of modules are those of the published checkpoint
(modeling_moonshot_kimia.py), whose attention runs in 16 bits; here it runs in the type of the weights.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)


class KimiAudioConfig(Qwen2Config):  # type: ignore[misc]
    """The published config.json; what it says beyond this is kept and not read."""

    model_type = "kimi_audio"

    kimia_mimo_layers: int = 6
    kimia_mimo_transformer_from_layer_index: int = 21


class KimiAudio(Qwen2PreTrainedModel):  # type: ignore[misc]
    """A ``rollout.language_model.ParallelStreamModel``: stream 0 is text, stream 1 audio."""

    config_class = KimiAudioConfig
    config: KimiAudioConfig

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__(config)
        self.model = _Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mimo_output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def states(self, ids_TS: Tensor, features_KH: Tensor, at_K: Tensor, **place: Any) -> Sequence[Tensor]:
        """Last hidden states [T, H] of text and audio. ``features_KH``: from the family's audio encoder."""
        text_TH, audio_TH = (self.model.embed_tokens(ids_T) for ids_T in ids_TS.unbind(1))
        if len(at_K):
            root = torch.tensor(2.0, dtype=audio_TH.dtype, device=audio_TH.device).sqrt()
            fused_KH = (audio_TH[at_K] + features_KH.to(audio_TH.dtype)) * root
            audio_TH = audio_TH.index_copy(0, at_K, fused_KH)
        states: list[Tensor] = self.model((audio_TH + text_TH)[None], **place)
        return states

    def heads(self) -> Sequence[nn.Linear]:
        """Of text and audio."""
        return [self.lm_head, self.mimo_output]

    def blocks(self) -> Sequence[Qwen2DecoderLayer]:
        """Every layer, in the order in which they run."""
        return [*self.model.layers, *self.model.mimo_layers]


class _Trunk(nn.Module):
    """Everything between the embeddings and the heads."""

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__()
        main_layers, side_layers = config.num_hidden_layers, config.kimia_mimo_layers
        self._fork = config.kimia_mimo_transformer_from_layer_index
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(config, i) for i in range(main_layers))
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        side = [Qwen2DecoderLayer(config, i) for i in range(side_layers)]
        for i, layer in enumerate(side):
            layer.self_attn.layer_idx = main_layers + i  # by which a cache knows it
        self.mimo_layers = nn.ModuleList(side)
        self.mimo_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config)

    def forward(self, hidden: Tensor, **place: Any) -> list[Tensor]:
        """[1, T, H] -> [T, H] of text and audio."""
        turned = self.rotary_emb(hidden, place["position_ids"])
        for i, layer in enumerate(self.layers):
            hidden = layer(hidden, position_embeddings=turned, **place)
            if i == self._fork:
                audio = hidden
        for layer in self.mimo_layers:
            audio = layer(audio, position_embeddings=turned, **place)
        return [self.norm(hidden)[0], self.mimo_norm(audio)[0]]
