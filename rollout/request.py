"""A row as a prompt; what every engine makes of one before it samples: seeds, and a check that it fits.

Invariant: the reply (prompt, index) is drawn from a seed made of (sampling.seed, prompt.id, index) alone,
so the same seed gives the same replies whatever the batch, the order and the number of workers.
"""

import hashlib
from collections.abc import Sequence

from rollout.types import Prompt, Sampling
from speech.dataset import Example, PairExample


class EngineDead(RuntimeError):
    """The engine cannot go on; every waiter is told. Replace the worker."""


class WeightsBroken(RuntimeError):
    """A weight load failed half-way: the model is neither old nor new. Only a full update helps."""


def example_to_prompt(example: Example | PairExample) -> Prompt:
    """What an engine is given of an encoded row."""
    return Prompt(id=example.row_id, ids=example.prompt.ids, features=example.prompt.features)


def derive_seed(seed: int, prompt_id: str, index: int) -> int:
    """A stable 63-bit seed; the same in every process, unlike ``hash``."""
    text = f"{seed}\x1f{prompt_id}\x1f{index}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def check_prompts_fit(prompts: Sequence[Prompt], sampling: Sampling, max_length: int) -> None:
    """ValueError: an id twice, no ids, prompt + reply above ``max_length`` (an engine would just cut it)."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ValueError(f"prompt ids must be unique in a call: {prompt.id!r} came twice")
        seen.add(prompt.id)
        if not prompt.ids:
            raise ValueError(f"prompt {prompt.id!r} is empty: it needs at least one token")
        if len(prompt.ids) + sampling.max_new_tokens > max_length:
            raise ValueError(
                f"prompt {prompt.id!r} is too long: {len(prompt.ids)} tokens"
                f" + max_new_tokens={sampling.max_new_tokens} > max_length={max_length}"
            )
