"""Checkpoints with opinions, and the naive computations that engines are held against."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rollout.draw import draw_token_ids
from rollout.engine import Engine, RawReply
from rollout.request import derive_seed
from rollout.types import FinishReason, Prompt, Sampling
from speech.families.base import Family
from tests.helpers.sound_fixtures import write_micro_checkpoint

T = TypeVar("T")


def sharp_checkpoint(path: Path, seed: int, *, tied: bool = True) -> Path:
    """A micro checkpoint far from uniform, with a generation_config.json that would spoil sampling."""
    write_micro_checkpoint(path, seed=seed, tied=tied)
    model = load(path)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.15, generator=generator)
    model.save_pretrained(path)
    spoiler = {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 2,
        "top_p": 0.5,
        "repetition_penalty": 1.5,
        "eos_token_id": [50],
    }
    (path / "generation_config.json").write_text(json.dumps(spoiler))
    return path


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True).eval()


def prompts(n: int, *, first: int = 0) -> list[Prompt]:
    return [
        Prompt(id=f"p{i}", ids=tuple((7 * i + 3 * j) % 70 for j in range(12 + i))) for i in range(first, first + n)
    ]


def collect(engine: Engine, asked: Sequence[Prompt], sampling: Sampling) -> dict[tuple[str, int], RawReply]:
    return asyncio.run(gather(engine.generate(asked, sampling)))


async def gather(replies: AsyncIterator[RawReply]) -> dict[tuple[str, int], RawReply]:
    actual = {}
    async for raw in replies:
        assert (raw.prompt_id, raw.index) not in actual
        actual[raw.prompt_id, raw.index] = raw
    return actual


@torch.no_grad()
def replay(
    model: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float, family: Family | None = None
) -> Tensor:
    """Log-probs of ``ids`` under the model, all at once; masked by the grammar of ``family`` when given."""
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
    if family is not None:
        allowed = torch.from_numpy(family.interleave.allowed_masks().copy())[family.interleave.grammar_states(ids)]
        logits = logits.masked_fill(~allowed, float("-inf"))
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def largest_difference(
    model: Any,
    asked: Sequence[Prompt],
    replies: Sequence[RawReply],
    temperature: float,
    family: Family | None = None,
) -> float:
    by_id = {prompt.id: prompt.ids for prompt in asked}
    return max(
        float((replay(model, by_id[r.prompt_id], r.ids, temperature, family) - torch.tensor(r.logps)).abs().max())
        for r in replies
    )


@torch.no_grad()
def sample_plainly(model: Any, prompt: Prompt, index: int, sampling: Sampling, family: Family) -> RawReply:
    """One reply of docs/method.md §2 and nothing else: the whole sequence through the model for each id."""
    generator = torch.Generator().manual_seed(derive_seed(sampling.seed, prompt.id, index))
    state, ids, logps = family.interleave.start_state(), [], []
    allowed = torch.from_numpy(family.interleave.allowed_masks().copy())
    while len(ids) < sampling.max_new_tokens and (not ids or ids[-1] not in family.stop_ids):
        logits = model(torch.tensor([[*prompt.ids, *ids]])).logits[0, -1].float()
        if sampling.grammar:
            logits = logits.masked_fill(~allowed[family.interleave.grammar_state(state)], float("-inf"))
        scores = torch.log_softmax(logits / (sampling.temperature or 1.0), -1)
        ids.append(int(draw_token_ids(scores[None], [generator])[0] if sampling.temperature else scores.argmax()))
        logps.append(float(scores[ids[-1]]))
        state = family.interleave.advance(state, ids[-1])
    finish: FinishReason = "stop" if ids[-1] in family.stop_ids else "length"
    return RawReply(
        prompt_id=prompt.id, index=index, ids=tuple(ids), logps=tuple(logps), versions=(0,) * len(ids), finish=finish
    )


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int], stop: Sequence[int], budget: int) -> tuple[int, ...]:
    ids: list[int] = []
    while len(ids) < budget and (not ids or ids[-1] not in stop):
        ids.append(int(model(torch.tensor([[*prompt, *ids]])).logits[0, -1].argmax()))
    return tuple(ids)
