"""The engine for families with parallel streams: torch modules, a static cache, many replies together.

One thread owns the module; whatever touches it (a step, a load) runs there, so none meets another half done.
Whoever waits for a reply keeps the thread stepping, and each step serves everyone. CPU or GPU, float32 or
bfloat16. It runs single-stream families as well, which is how it is checked against vLLM.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import torch

from rollout.decoder import Decoder, GenerateCall
from rollout.engine import RawReply, WeightManifest
from rollout.language_model import copy_checkpoint_tensors, read_checkpoint_layout
from rollout.loading import load_language_model
from rollout.request import EngineDead, WeightsBroken, check_prompts_fit
from rollout.slots import SLOT_ATTENTION
from rollout.types import Prompt, Sampling
from rollout.weights import TORCH_DTYPES, check_finite_weights, check_weight_buffer, check_weight_layout, view_tensors
from speech.families.base import Family

THREAD_SLICE_S = 0.05  # seconds that the thread steps before others may ask for it, and that a paused waiter sleeps

T = TypeVar("T")


class TorchEngine:
    """``rollout.engine.Engine`` on torch.

    Example:
        engine = TorchEngine(family, max_length=512, dtype="float32", max_num_seqs=32)
        async for raw in engine.generate(prompts, sampling): ...
        engine.close()
    """

    def __init__(
        self,
        family: Family,
        *,
        max_length: int,
        max_num_seqs: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
        version: int = 0,
        device: str | None = None,
    ) -> None:
        """Loads ``family.path``. ``device``: a torch device; none: the GPU when there is one."""
        self._family, self._max_length, self._version = family, max_length, version
        self._layout, self._optional = read_checkpoint_layout(family)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # Its buffers stay float32: a position times a frequency is large.
        self._lm = load_language_model(family, attention=SLOT_ATTENTION, dtype=TORCH_DTYPES[dtype], device=device)
        self._lm.requires_grad_(False)
        self._decoder = Decoder(family, self._lm, slots=max_num_seqs, length=max_length)
        self._thread = ThreadPoolExecutor(1, "torch-engine")
        self._paused = False
        self._gone: str | None = None  # why the engine cannot go on
        self._broken: str | None = None  # why nothing may be sampled until a full update
        self._tokens, self._busy_s = 0, 0.0

    @property
    def version(self) -> int:
        """Policy version of the loaded weights."""
        return self._version

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[RawReply]:
        """Yield every (prompt, index) once, as it finishes; stop id included.

        ValueError: a prompt that does not fit. EngineDead: a step failed, this call's or another's.
        Leaving the iterator early frees what still runs.
        """
        check_prompts_fit(prompts, sampling, self._max_length)
        call, left = GenerateCall(), len(prompts) * sampling.group_size
        await self._on_thread(lambda: self._decoder.queue_prompts(call, prompts, sampling))
        try:
            while left:
                await self._on_thread(lambda: self._step_for_call(call))
                while call.finished:
                    left -= 1
                    yield call.finished.popleft()
                if self._paused:
                    await asyncio.sleep(THREAD_SLICE_S)
        finally:
            if left and self._gone is None:
                self._thread.submit(self._decoder.drop_call, call)

    async def pause(self) -> None:
        """Stop stepping; returns once the step under way is over."""
        self._paused = True
        await self._on_thread(lambda: None)

    async def resume(self) -> None:
        """Step again."""
        self._paused = False

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        """Check everything, then copy between two steps; running replies go on under the new weights.

        ValueError (nothing was touched): names, shapes, digest, a NaN.
        """
        check_weight_layout(manifest, self._layout, self._optional)
        await asyncio.to_thread(_check_payload, manifest, payload)  # hashing runs beside the steps
        return await self._on_thread(lambda: self._load(manifest, payload))

    def health(self) -> Mapping[str, float]:
        """running, tokens, busy_s, as in ``VllmEngine``. EngineDead when it is."""
        self._raise_if_gone()
        return {"running": float(self._decoder.left), "tokens": float(self._tokens), "busy_s": self._busy_s}

    def close(self) -> None:
        """Refuse further work; whoever is paused or sampling gets EngineDead. Idempotent."""
        self._gone = self._gone or "it was closed"
        self._thread.shutdown(wait=False)

    async def _on_thread(self, task: Callable[[], T]) -> T:
        self._raise_if_gone()
        return await asyncio.get_running_loop().run_in_executor(self._thread, task)

    def _raise_if_gone(self) -> None:
        if self._gone is not None:
            raise EngineDead(f"the torch engine is gone: {self._gone}")

    # -- on the thread

    def _step_for_call(self, call: GenerateCall) -> None:
        """Steps until this call has something to yield, or others have waited long enough."""
        began = now = time.monotonic()
        while not self._paused and not call.finished:
            self._raise_if_gone()
            if self._broken is not None:
                raise WeightsBroken(self._broken)
            self._tokens += self._step()
            self._busy_s += time.monotonic() - now
            now = time.monotonic()
            if now > began + THREAD_SLICE_S:
                break

    def _step(self) -> int:
        """Sample one step of every stream. EngineDead: it failed, and the streams may have unequal lengths now."""
        try:
            return self._decoder.step(self._version)
        except Exception as error:
            self._gone = f"{type(error).__name__}: {error}"
            raise EngineDead(f"the torch engine is gone: {self._gone}") from error

    def _load(self, manifest: WeightManifest, payload: Any) -> int:
        self._broken = f"the load of version {manifest.version} did not finish"
        copy_checkpoint_tensors(self._lm, self._family.tensor_names, view_tensors(manifest, payload))
        self._decoder.evict_caches()
        self._version, self._broken = manifest.version, None
        return self._version


def _check_payload(manifest: WeightManifest, payload: Any) -> None:
    check_weight_buffer(manifest, payload)
    check_finite_weights(manifest, payload)
