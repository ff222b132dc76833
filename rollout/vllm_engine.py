"""The product's engine: vLLM inside this process, stepped by one thread (``vllm_steps``).

Invariants: a weight load never meets a step; a reply's log-probs are those of the distribution it was drawn
from (``processed_logprobs``: temperature and grammar mask included); a half-loaded model is never sampled.
What differs between CPU and GPU is in ``vllm_settings``.
"""

# ruff: noqa: E402 - the environment must be ready before vLLM is imported

from rollout.environment import ENV, prepare_environment

prepare_environment()

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast, get_args

from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.v1.engine.llm_engine import LLMEngine

from rollout.engine import RawReply, WeightManifest
from rollout.language_model import read_checkpoint_layout
from rollout.request import EngineDead, WeightsBroken, check_prompts_fit, derive_seed
from rollout.types import FinishReason, Prompt, Sampling
from rollout.vllm_settings import (
    VllmSettings,
    build_engine_args,
    build_sampling_params,
    build_vllm_prompt,
    write_engine_folder,
)
from rollout.vllm_steps import Mailbox, StepThread
from rollout.vllm_worker import OBJECT_STORE_BACKEND
from rollout.weights import check_finite_weights, check_weight_buffer, check_weight_layout
from speech.families.base import Family

__all__ = ["ENV", "EngineDead", "VllmEngine", "VllmSettings", "WeightsBroken", "prepare_environment"]

TransferCall = Literal["init", "start", "update", "finish"]


class VllmEngine:
    """``rollout.engine.Engine`` on vLLM. Safe to use from any event loop.

    Example:
        engine = VllmEngine(VllmSettings(model=config.model), family)
        async for raw in engine.generate(prompts, sampling): ...
        assert await engine.update_weights(*pack_weights(tensors, version=1)) == 1
        engine.close()
    """

    def __init__(self, settings: VllmSettings, family: Family) -> None:
        """``family``: of ``settings.model``. ValueError: one with parallel streams, vLLM samples one."""
        if family.streams != 1:
            raise ValueError(f"rollout.engine must be torch for {family.name}: vLLM samples one stream")
        self._settings, self._family = settings, family
        self._layout, self._optional = read_checkpoint_layout(family)
        with TemporaryDirectory(prefix="wavgate-engine-") as folder:
            write_engine_folder(Path(folder), settings.model, family)
            args = build_engine_args(settings, family, Path(folder))
            self._engine = LLMEngine.from_engine_args(args, enable_multiprocessing=False)
        self._engine.set_weight_version(str(settings.version))
        self._version = settings.version
        if settings.transfer == OBJECT_STORE_BACKEND:
            self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        self._broken: str | None = None  # why nothing may be sampled
        self._calls = itertools.count()
        self._steps = StepThread(self._engine)

    @property
    def version(self) -> int:
        """Policy version of the loaded weights, as last read back from the engine."""
        return self._version

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[RawReply]:
        """Yield every (prompt, index) once, as it finishes; stop token included.

        ValueError: a prompt that does not fit, a grammar that was not loaded. EngineDead, WeightsBroken.
        Leaving the iterator early frees what still runs.
        """
        check_prompts_fit(prompts, sampling, self._settings.model.max_length)
        if sampling.grammar and not self._settings.grammar:
            raise ValueError("sampling.grammar needs an engine that was started with grammar=true")
        call, group = next(self._calls), range(sampling.group_size)
        wanted = {f"{call}/{p}/{i}": (prompt, i) for p, prompt in enumerate(prompts) for i in group}
        mailbox = Mailbox(asyncio.get_running_loop())
        try:
            await self._steps.run_between_steps(lambda: self._add(dict(wanted), sampling, mailbox))
            while wanted:
                output = await mailbox.get()
                prompt, index = wanted.pop(output.request_id)
                yield _output_to_raw_reply(prompt, index, output.outputs[0])
        finally:
            if wanted:
                self._steps.schedule_between_steps(lambda: self._steps.abort_requests(list(wanted)))

    async def pause(self) -> None:
        """Stop stepping once the step under way is over."""
        await self._steps.run_between_steps(lambda: self._set_paused(True))

    async def resume(self) -> None:
        """Step again."""
        await self._steps.run_between_steps(lambda: self._set_paused(False))

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        """Check everything, load between two steps, return the version read back from vLLM.

        Running replies keep their tokens and go on under the new weights, their caches computed again.
        ValueError (nothing was touched): layout, size, digest, a tensor that is not finite.
        WeightsBroken: the load itself failed; the engine refuses to generate until a full update succeeds.
        """
        check_weight_layout(manifest, self._layout, self._optional)
        await asyncio.to_thread(_check_payload, manifest, payload)  # hashing runs beside the steps
        return await self._steps.run_between_steps(lambda: self._load(manifest, payload))

    async def transfer(
        self, call: TransferCall, info: dict[str, Any] | None = None, version: int | None = None
    ) -> None:
        """One control call of vLLM's own transports (settings.transfer = ipc or nccl); see ``vllm_transfer``.

        Between start and finish nothing is stepped; ``finish`` takes the version that was sent.
        """
        await self._steps.run_between_steps(lambda: self._transfer(call, info, version))

    def health(self) -> Mapping[str, float]:
        """running (replies), tokens (of finished replies), busy_s (inside steps). EngineDead when it is."""
        self._steps.raise_if_dead()
        steps = self._steps
        return {"running": float(len(steps.mailboxes)), "tokens": float(steps.tokens), "busy_s": steps.busy_s}

    def close(self) -> None:
        """Free the engine; whoever still waits gets EngineDead. Idempotent."""
        self._steps.close()

    # -- on the step thread

    def _set_paused(self, paused: bool) -> None:
        self._steps.paused = paused

    def _add(self, wanted: Mapping[str, tuple[Prompt, int]], sampling: Sampling, mailbox: Mailbox) -> None:
        if self._broken is not None:
            raise WeightsBroken(self._broken)
        given: dict[str, Any] = {}  # the replies to a prompt share it: vLLM writes in none
        for request, (prompt, index) in wanted.items():
            if prompt.id not in given:
                given[prompt.id] = build_vllm_prompt(prompt)
            seed = derive_seed(sampling.seed, prompt.id, index)
            params = build_sampling_params(self._family.stop_ids, sampling, seed)
            self._engine.add_request(request, given[prompt.id], params)
            self._steps.mailboxes[request] = mailbox

    def _load(self, manifest: WeightManifest, payload: Any) -> int:
        self._transfer("start", None, None)
        self._transfer("update", {"manifest": manifest, "payload": payload}, None)
        self._transfer("finish", None, manifest.version)
        return self._version

    def _transfer(self, call: TransferCall, info: dict[str, Any] | None, version: int | None) -> None:
        rpc = self._engine.collective_rpc
        try:
            if call == "init":
                rpc("init_weight_transfer_engine", kwargs={"init_info": info})
            elif call == "start":
                if self._broken is not None:
                    rpc("wavgate_repair")
                self._broken, self._steps.loading = "a weight load has begun and not finished", True
                rpc("start_weight_update")
            elif call == "update":
                rpc("update_weights", kwargs={"update_info": info})
            else:
                rpc("finish_weight_update")
                self._commit_version(version)
        except Exception as error:
            self._broken = f"weight transfer failed at {call}: {type(error).__name__}: {error}"
            self._steps.loading = False
            self._steps.fail_running_replies(WeightsBroken(self._broken))
            raise WeightsBroken(self._broken) from error

    def _commit_version(self, version: int | None) -> None:
        """New weights are in: label what is sampled from now on, forget every cached key and value."""
        assert version is not None, "finish takes the version that was sent"
        if self._settings.transfer == OBJECT_STORE_BACKEND:  # vLLM's own transports carry no version
            held = set(self._engine.collective_rpc("wavgate_version"))
            if held != {version}:
                raise RuntimeError(f"workers must hold version {version}: they report {held}")
        self._engine.set_weight_version(str(version))
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM could not reset its prefix cache")
        self._version = int(self._engine.get_weight_version())
        self._broken, self._steps.loading = None, False


def _check_payload(manifest: WeightManifest, payload: Any) -> None:
    check_weight_buffer(manifest, payload)
    check_finite_weights(manifest, payload)


def _output_to_raw_reply(prompt: Prompt, index: int, output: CompletionOutput) -> RawReply:
    logprobs, spans = output.logprobs, output.weight_versions or []
    assert isinstance(logprobs, FlatLogprobs)
    ids = tuple(output.token_ids)
    versions = tuple(int(span.version) for span in spans for _ in range(span.start, span.end))
    assert tuple(logprobs.token_ids) == ids and len(versions) == len(ids), "a log-prob and a version per id"
    if output.finish_reason not in get_args(FinishReason):
        raise EngineDead(f"vLLM ended reply {prompt.id!r}/{index} with {output.finish_reason!r}")
    return RawReply(
        prompt_id=prompt.id,
        index=index,
        ids=ids,
        logps=tuple(logprobs.logprobs),
        versions=versions,
        finish=cast(FinishReason, output.finish_reason),
    )
