"""The engine protocol: what the rollout worker needs from something that samples tokens.

Two implementations: ``vllm_engine``, and ``torch_engine`` (families with parallel streams, and the reference that
vLLM is checked against). ``version`` is the learner step whose weights are loaded; it is read back from the
engine after every update, never assumed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rollout.types import FinishReason, Prompt, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReply:
    """What an engine returns: ids as sampled, log-probs, policy versions. No text, no audio, no judgement."""

    prompt_id: str
    index: int
    ids: tuple[int, ...]
    logps: tuple[float, ...]
    versions: tuple[int, ...]
    finish: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """Describes one flat weight buffer: tensors in order, each at a 64-byte aligned offset.

    ``digest`` is the sha256 of the layout (version, names, dtypes, shapes) and the buffer; a receiver checks
    names, shapes and digest before it loads anything.
    """

    version: int
    names: tuple[str, ...]
    dtypes: tuple[str, ...]  # torch dtype names, e.g. "float32"
    shapes: tuple[tuple[int, ...], ...]
    digest: str


class Engine(Protocol):
    """Samples replies and takes new weights."""

    @property
    def version(self) -> int:
        """Policy version of the loaded weights."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[RawReply]:
        """Yield every (prompt, index) once, each as soon as it finishes, in any order."""
        ...

    async def pause(self) -> None:
        """Stop stepping; running requests keep their tokens."""
        ...

    async def resume(self) -> None:
        """Step again. Caches of the old weights are gone."""
        ...

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        """Check the buffer, load it, return the version read back. ValueError: names, shapes or digest."""
        ...

    def health(self) -> Mapping[str, float]:
        """Counters: requests running, tokens generated, seconds busy. Raises if the engine is dead."""
        ...

    def close(self) -> None:
        """Free the engine. Idempotent."""
        ...
