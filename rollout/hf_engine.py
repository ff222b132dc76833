"""The slow reference: the same protocol on a plain transformers model, for checking vLLM against.

One prompt at a time, its G replies as one batch, float32, a sampling loop with nothing in it that is not
in docs/method.md §2: logits, grammar mask, temperature, softmax, one draw per reply from that reply's own
generator. When the weights change under a running batch its cache is thrown away and computed again.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rollout.draw import draw_token_ids
from rollout.engine import RawReply, WeightManifest
from rollout.language_model import copy_checkpoint_tensors, read_checkpoint_layout
from rollout.loading import load_language_model
from rollout.request import EngineDead, WeightsBroken, check_prompts_fit, derive_seed
from rollout.types import Prompt, Sampling
from rollout.weights import check_finite_weights, check_weight_layout, unpack_weights
from speech.families.base import Family


class HfEngine:
    """``rollout.engine.Engine`` on transformers.

    Example:
        engine = HfEngine(family, max_length=512)
        async for raw in engine.generate(prompts, sampling): ...
    """

    def __init__(self, family: Family, *, max_length: int, version: int = 0, device: str | None = None) -> None:
        """Loads ``family.path``. ``device``: a torch device; none: the GPU when there is one.

        ValueError: a family with parallel streams, transformers samples one.
        """
        if family.streams != 1:
            raise ValueError(f"rollout.engine must be torch for {family.name}: transformers samples one stream")
        self._family = family
        self._max_length = max_length
        self._version = version
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._layout, self._optional = read_checkpoint_layout(family)
        self._lm = load_language_model(family, device=str(self._device)).requires_grad_(False)
        self._forbidden = ~torch.from_numpy(family.interleave.allowed_masks().copy()).to(self._device)
        self._weights = threading.Lock()  # held for each forward pass and for a load
        self._going = threading.Event()
        self._going.set()
        self._closed = False
        self._broken: str | None = None
        self._running, self._tokens, self._busy_s = 0, 0, 0.0

    @property
    def version(self) -> int:
        """Policy version of the loaded weights."""
        return self._version

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[RawReply]:
        """Yield the G replies of one prompt after another. ValueError: a prompt that does not fit."""
        check_prompts_fit(prompts, sampling, self._max_length)
        self._running += len(prompts) * sampling.group_size
        left = len(prompts) * sampling.group_size
        try:
            for prompt in prompts:
                group = _SampledGroup.start(prompt, sampling, self._family, self._device)
                while group.live:
                    await asyncio.to_thread(self._advance, group)
                for raw in group.replies():
                    self._tokens += len(raw.ids)
                    self._running -= 1
                    left -= 1
                    yield raw
        finally:
            self._running -= left

    async def pause(self) -> None:
        """Stop stepping; returns once the pass under way is over."""
        self._going.clear()
        await asyncio.to_thread(self._weights.acquire)
        self._weights.release()

    async def resume(self) -> None:
        """Step again."""
        self._going.set()

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        """Check everything, then copy between two passes. ValueError: names, shapes, digest, a NaN."""
        check_weight_layout(manifest, self._layout, self._optional)
        return await asyncio.to_thread(self._load, manifest, payload)

    def health(self) -> Mapping[str, float]:
        """running, tokens, busy_s, as in ``VllmEngine``. EngineDead after ``close``."""
        if self._closed:
            raise EngineDead("the transformers engine was closed")
        return {"running": float(self._running), "tokens": float(self._tokens), "busy_s": self._busy_s}

    def close(self) -> None:
        """Refuse further work; whoever is paused or sampling gets EngineDead."""
        self._closed = True
        self._going.set()

    def _load(self, manifest: WeightManifest, payload: Any) -> int:
        tensors = unpack_weights(manifest, payload)
        check_finite_weights(manifest, payload)
        with self._weights:
            self._broken = f"the load of version {manifest.version} did not finish"
            copy_checkpoint_tensors(self._lm, self._family.tensor_names, tensors)
            self._version, self._broken = manifest.version, None
        return self._version

    def _advance(self, group: "_SampledGroup") -> None:
        """One token for every live reply of the group."""
        self._going.wait()
        with self._weights, torch.no_grad():
            if self._closed:
                raise EngineDead("the transformers engine was closed")
            if self._broken is not None:
                raise WeightsBroken(self._broken)
            began = time.monotonic()
            logits_GV = self._logits(group)
            if group.sampling.grammar:
                phases = [self._family.interleave.grammar_state(state) for state in group.states]
                logits_GV.masked_fill_(self._forbidden[phases], float("-inf"))
            greedy = group.sampling.temperature == 0
            logps_GV = torch.log_softmax(logits_GV / (1.0 if greedy else group.sampling.temperature), dim=-1)
            tokens = logps_GV.argmax(-1).tolist() if greedy else draw_token_ids(logps_GV, group.generators).tolist()
            group.append(tokens, logps_GV, self._version, self._family)
            self._busy_s += time.monotonic() - began

    def _logits(self, group: "_SampledGroup") -> Tensor:
        """float32 [G, vocab] for the next position; a cache is used only under the weights that filled it."""
        embed, heard = self._lm.get_input_embeddings(), group.prompt.features
        if group.cache is None or group.cache_version != self._version:
            group.cache, group.cache_version = None, self._version
            inputs_GTH = embed(group.rows)
            if heard is not None:
                inputs_GTH[:, list(heard.steps)] = torch.from_numpy(heard.vectors).to(inputs_GTH)
        else:
            inputs_GTH = embed(group.rows[:, -1:])
        output = self._lm(inputs_embeds=inputs_GTH, past_key_values=group.cache, use_cache=True, logits_to_keep=1)
        group.cache = output.past_key_values
        logits: Tensor = output.logits[:, -1].float()
        return logits


@dataclass(slots=True)
class _SampledGroup:
    """The replies of one prompt being sampled. A finished row stays in the batch; its draws are not kept."""

    prompt: Prompt
    sampling: Sampling
    rows: Tensor  # [G, length so far]
    generators: list[torch.Generator]
    states: list[int]  # grammar
    ids: list[list[int]]
    logps: list[list[float]]
    versions: list[list[int]]
    live: set[int]
    stopped: set[int] = field(default_factory=set)
    cache: Any = None
    cache_version: int = -1

    @classmethod
    def start(cls, prompt: Prompt, sampling: Sampling, family: Family, device: torch.device) -> "_SampledGroup":
        """Nothing sampled yet."""
        size = sampling.group_size
        return cls(
            prompt=prompt,
            sampling=sampling,
            rows=torch.tensor([prompt.ids] * size, device=device),
            generators=[torch.Generator().manual_seed(derive_seed(sampling.seed, prompt.id, i)) for i in range(size)],
            states=[family.interleave.start_state()] * size,
            ids=[[] for _ in range(size)],
            logps=[[] for _ in range(size)],
            versions=[[] for _ in range(size)],
            live=set(range(size)),
        )

    def append(self, tokens: list[int], logps_GV: Tensor, version: int, family: Family) -> None:
        """Keep the draws of live rows; a stop id or the budget ends a row."""
        self.rows = torch.cat([self.rows, torch.tensor(tokens, device=self.rows.device)[:, None]], dim=1)
        for i in sorted(self.live):
            token = tokens[i]
            self.ids[i].append(token)
            self.logps[i].append(float(logps_GV[i, token]))
            self.versions[i].append(version)
            self.states[i] = family.interleave.advance(self.states[i], token)
            if token in family.stop_ids:
                self.stopped.add(i)
            if token in family.stop_ids or len(self.ids[i]) == self.sampling.max_new_tokens:
                self.live.discard(i)

    def replies(self) -> list[RawReply]:
        """The finished replies, by index."""
        return [
            RawReply(
                prompt_id=self.prompt.id,
                index=i,
                ids=tuple(self.ids[i]),
                logps=tuple(self.logps[i]),
                versions=tuple(self.versions[i]),
                finish="stop" if i in self.stopped else "length",
            )
            for i in range(self.sampling.group_size)
        ]
