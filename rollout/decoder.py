"""Sampling many replies together, a step at a time, on a module with a static cache.

    waiting ──admit──► slots 0 .. B-1 ──step──► one id per stream and reply ──► finished
                  ▲                     │
                  └── the last slot moves into the gap that a finished reply leaves

A step feeds the newest ids of every reply, so a prompt's last step goes the same way as a sampled one; what
lies before is filled in once, when a reply gets its slot, and again when the weights have changed. Invariant:
a reply's ids depend on its prompt, seed and weights, not on what is sampled beside it (up to rounding).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rollout.draw import draw_token_ids
from rollout.engine import RawReply
from rollout.language_model import compute_hidden_states, get_stream_heads
from rollout.request import derive_seed
from rollout.slots import DecodePass, KeyValueSlots, PrefillPass
from rollout.types import Prompt, Sampling
from speech.families.base import Family
from speech.grammar.interleave import FREE

ATTENTION_BLOCK_STEPS = 64  # steps: attention looks at a multiple of this


@dataclass(slots=True, eq=False)
class GenerateCall:
    """What one ``generate`` waits for."""

    finished: deque[RawReply] = field(default_factory=deque)


@dataclass(slots=True, eq=False)
class _RunningReply:
    """A reply under way. ``ids``: the prompt's and its own; ``cached``: steps that its slot holds."""

    call: GenerateCall
    prompt: Prompt
    index: int
    sampling: Sampling
    ids: list[int]
    state: int  # grammar
    generator: torch.Generator
    logps: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    cached: int = 0
    stopped: bool = False

    @property
    def done(self) -> bool:
        return self.stopped or len(self.logps) == self.sampling.max_new_tokens

    def to_raw_reply(self) -> RawReply:
        return RawReply(
            prompt_id=self.prompt.id,
            index=self.index,
            ids=tuple(self.ids[len(self.prompt.ids) :]),
            logps=tuple(self.logps),
            versions=tuple(self.versions),
            finish="stop" if self.stopped else "length",
        )


class Decoder:
    """The replies under way on one module.

    Example:
        call = GenerateCall()
        decoder.queue_prompts(call, prompts, sampling)
        while not call.finished:
            decoder.step(version=0)
    """

    def __init__(self, family: Family, lm: Any, *, slots: int, length: int) -> None:
        """``lm``: with attention ``slotted``. ``length``: ids of the longest prompt + reply."""
        self._family, self._lm, self._heads = family, lm, get_stream_heads(lm, family.streams)
        self._device = next(lm.parameters()).device
        self._streams = family.streams
        self._slots = KeyValueSlots(slots, -(-length // family.streams))
        self._forbidden_PV = ~torch.from_numpy(family.interleave.allowed_masks().copy()).to(self._device)
        self._waiting: deque[_RunningReply] = deque()
        self._running: list[_RunningReply] = []  # by slot

    @property
    def left(self) -> int:
        """Replies that are not finished."""
        return len(self._waiting) + len(self._running)

    def queue_prompts(self, call: GenerateCall, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        """Queue the replies of these prompts."""
        start = self._family.interleave.start_state()
        for prompt in prompts:
            assert len(prompt.ids) % self._streams == 0, "a prompt is whole steps"
            for index in range(sampling.group_size):
                generator = torch.Generator().manual_seed(derive_seed(sampling.seed, prompt.id, index))
                self._waiting.append(_RunningReply(call, prompt, index, sampling, list(prompt.ids), start, generator))

    def drop_call(self, call: GenerateCall) -> None:
        """Forget what a call still waits for."""
        self._waiting = deque(reply for reply in self._waiting if reply.call is not call)
        for slot in reversed(range(len(self._running))):
            if self._running[slot].call is call:
                self._free_slot(slot)

    def evict_caches(self) -> None:
        """The weights have changed: every cache is to be filled again."""
        for reply in self._running:
            reply.cached = 0

    @torch.no_grad()
    def step(self, version: int) -> int:
        """One step of every reply that has a slot. ``version``: of the weights. Returns the ids sampled."""
        self._admit()
        self._fill_caches()
        hidden = self._advance_hidden_states() if self._running else []
        sampled = sum(
            self._sample_stream(stream, stream_hidden, version) for stream, stream_hidden in enumerate(hidden)
        )
        for slot in reversed(range(len(self._running))):
            if self._running[slot].done:
                self._running[slot].call.finished.append(self._running[slot].to_raw_reply())
                self._free_slot(slot)
        return sampled

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._slots.count:
            self._running.append(self._waiting.popleft())

    def _free_slot(self, slot: int) -> None:
        """Slots stay without gaps: the last reply moves."""
        last = self._running.pop()
        if slot < len(self._running):
            self._slots.copy(len(self._running), slot, last.cached)
            self._running[slot] = last

    def _fill_caches(self) -> None:
        """Cache all but the last step of replies whose slot holds nothing; equal beginnings once."""
        known: dict[tuple[int, tuple[int, ...]], int] = {}
        for slot, reply in enumerate(self._running):
            steps = len(reply.ids) // self._streams - 1
            if reply.cached or not steps:
                continue
            ids = tuple(reply.ids[: steps * self._streams])
            source = known.setdefault((id(reply.prompt.features), ids), slot)  # a group's replies share them
            if source != slot:
                self._slots.copy(source, slot, steps)
            else:
                self._prefill_slot(reply, ids, slot)
            reply.cached = steps

    def _prefill_slot(self, reply: _RunningReply, ids: Sequence[int], slot: int) -> None:
        steps = len(ids) // self._streams
        features = reply.prompt.features
        at_K, vectors_KH = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
        if features is not None:
            assert max(features.steps, default=0) < steps, "a prompt does not end with audio"
            at_K, vectors_KH = (
                torch.tensor(features.steps, dtype=torch.int64),
                torch.from_numpy(features.vectors),
            )
        compute_hidden_states(
            self._lm,
            torch.tensor(ids, device=self._device).view(-1, self._streams),
            vectors_KH.to(self._device),
            at_K.to(self._device),
            position_ids=torch.arange(steps, device=self._device)[None],
            slots=self._slots,
            at=PrefillPass(slot),
        )

    def _advance_hidden_states(self) -> Sequence[Tensor]:
        """Hidden states [B, H] of each stream, of every reply's last step."""
        rows = [reply.ids[reply.cached * self._streams :] for reply in self._running]
        positions_B = torch.tensor([reply.cached for reply in self._running], device=self._device)
        longest = 1 + max(reply.cached for reply in self._running)
        reach = min(-(-longest // ATTENTION_BLOCK_STEPS) * ATTENTION_BLOCK_STEPS, self._slots.length)
        seen_BL = torch.arange(reach, device=self._device) <= positions_B[:, None]
        states_by_stream = compute_hidden_states(
            self._lm,
            torch.tensor(rows, device=self._device),
            torch.zeros(0, 0, device=self._device),
            torch.zeros(0, dtype=torch.int64, device=self._device),
            position_ids=positions_B[None],
            slots=self._slots,
            at=DecodePass(positions_B, seen_BL),
        )
        for reply in self._running:
            reply.cached += 1
        return states_by_stream

    def _sample_stream(self, stream: int, hidden_BH: Tensor, version: int) -> int:
        """One id of this stream for each reply that still wants one."""
        logits_BV = self._heads[stream](hidden_BH).float()
        interleave, replies = self._family.interleave, self._running
        if any(reply.sampling.grammar for reply in replies):
            phases = [interleave.grammar_state(r.state) if r.sampling.grammar else FREE for r in replies]
            forbidden_BV = self._forbidden_PV[torch.tensor(phases, device=self._device)]
            logits_BV = logits_BV.masked_fill(forbidden_BV, float("-inf"))
        heat_B = torch.tensor([r.sampling.temperature for r in replies], device=self._device)
        logps_BV = torch.log_softmax(logits_BV / torch.where(heat_B > 0, heat_B, 1.0)[:, None], -1)
        drawn_B = draw_token_ids(logps_BV, [reply.generator for reply in replies])
        chosen_B = torch.where(heat_B > 0, drawn_B, logps_BV.argmax(-1))
        tokens, logps = chosen_B.tolist(), logps_BV.gather(1, chosen_B[:, None])[:, 0].tolist()
        going = [
            (reply, token_and_logp)
            for reply, *token_and_logp in zip(replies, tokens, logps, strict=True)
            if not reply.done
        ]
        for reply, (token, logp) in going:
            reply.ids.append(token)
            reply.logps.append(logp)
            reply.versions.append(version)
            reply.state = interleave.advance(reply.state, token)
            reply.stopped = stream == self._streams - 1 and token in self._family.stop_ids
        return len(going)
