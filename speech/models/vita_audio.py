"""VITA-Audio's decoder with its MCTP layers: Qwen2, and one more layer for each token further ahead.

    x(d)_p = proj_d [norm embed(p) ; norm h(d-1)_(p-1)]        h(-1): the decoder's last hidden states
    h(d)   = norm(layer_d(x(d)))    over p > d, causal         predicts the token after p, as h(-1)_p does

So depth d sees the tokens up to p and the decoder's state of d + 1 steps before. Final norm and head are the
decoder's own. Invariant: what the depths learn from never reaches the decoder: its states, embeddings, final
norm and head are constants to them. Names: VITA-MLLM/VITA-Audio@0abaf17, ``mtp_forward``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm


class MtpHead(nn.Module):
    """One MCTP layer with the norms and the projection before it."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.embed_norm = Qwen2RMSNorm(size, eps=config.rms_norm_eps)
        self.hidden_norm = Qwen2RMSNorm(size, eps=config.rms_norm_eps)
        self.proj = nn.Linear(2 * size, size, bias=False)
        self.layer = Qwen2DecoderLayer(config, layer_idx=0)

    def forward(self, embedded_NH: Tensor, before_NH: Tensor, **place: Any) -> Tensor:
        """[1, N, H], not yet normed. ``place``: rotations and segment lengths, as a Qwen2 layer takes them.

        No view of it is returned: FSDP hangs its backward pass on what a module returns.
        """
        joined = torch.cat([self.embed_norm(embedded_NH), self.hidden_norm(before_NH)], dim=-1)
        state: Tensor = self.layer(self.proj(joined)[None], attention_mask=None, **place)
        return state


class VitaAudioForCausalLM(Qwen2ForCausalLM):  # type: ignore[misc]  # transformers has no types
    """``rollout.language_model.MtpModel``."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.ahead = nn.ModuleList(MtpHead(config) for _ in range(config.num_nextn_predict_layers))
        self.post_init()

    def mtp_states(
        self, hidden_TH: Tensor, embedded_TH: Tensor, positions_T: Tensor, segment_T: Tensor, wanted_T: Tensor
    ) -> list[Tensor]:
        """Each depth's states [T, H]; zeros at positions that it does not have or that are not wanted."""
        hidden_TH, embedded_TH = hidden_TH.detach(), embedded_TH.detach()
        states = []
        for number, depth in enumerate(self.ahead):
            (at,) = (wanted_T & (positions_T > number)).nonzero(as_tuple=True)
            if not len(at):  # every rank runs every depth: any position will do
                at = torch.zeros_like(positions_T[:1])
            lengths = segment_T[at].unique_consecutive(return_counts=True)[1]
            state_1NH = depth(
                embedded_TH[at],
                hidden_TH[(at - 1).clamp(min=0)],
                position_embeddings=self.model.rotary_emb(hidden_TH, positions_T[at][None]),
                segment_lengths=tuple(lengths.tolist()),
            )
            hidden_TH = torch.zeros_like(hidden_TH).index_copy(0, at, self._apply_final_norm(state_1NH[0]))
            states.append(hidden_TH)
        return states

    def _apply_final_norm(self, state_NH: Tensor) -> Tensor:
        """The final norm as a constant."""
        size = state_NH.shape[-1:]
        scaled = F.rms_norm(state_NH.float(), size, eps=self.config.rms_norm_eps)
        normed: Tensor = self.model.norm.weight.detach() * scaled.to(state_NH.dtype)
        return normed
