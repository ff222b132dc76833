"""The product's engine: vLLM inside this process, stepped by one thread, spoken to through a queue.

    asyncio side                      step thread (the only one that touches vLLM)
    generate ── add ───────────►  ┌─ commands between steps ─┐
    update_weights ── load ────►  │          step            │ ──► mailbox of each generate call
    pause / resume ────────────►  └──────────────────────────┘

Invariants: a weight load never meets a step; a reply's log-probs are those of the distribution it was drawn
from (``processed_logprobs``: temperature and grammar mask included); nobody waits for a dead engine.
What differs between CPU and GPU is in ``vllm_settings``.
"""

# ruff: noqa: E402 - the environment must be ready before vLLM is imported

from rollout.environment import ENV, prepare_environment

prepare_environment()

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from rollout.engine import RawReply, WeightManifest
from rollout.request import EngineDead, WeightsBroken, check_fits, seed_of
from rollout.types import Finish, Prompt, Sampling
from rollout.vllm_settings import VllmSettings, engine_args, sampling_params
from rollout.vllm_worker import BACKEND
from rollout.weights import check, check_finite, check_layout, checkpoint_layout

__all__ = ["ENV", "EngineDead", "VllmEngine", "VllmSettings", "WeightsBroken", "prepare_environment"]

T = TypeVar("T")
TransferCall = Literal["init", "start", "update", "finish"]


class VllmEngine:
    """``rollout.engine.Engine`` on vLLM. One event loop at a time may wait on it; commands are safe from any.

    Example:
        engine = VllmEngine(VllmSettings(path=folder, family="tiny", stop_ids=family.stop_ids))
        async for raw in engine.generate(prompts, sampling): ...
        assert await engine.update_weights(*pack(model.state_dict().items(), version=1)) == 1
        engine.close()
    """

    def __init__(self, config: VllmSettings) -> None:
        self._config = config
        self._layout, self._optional = checkpoint_layout(config.path)
        self._engine = LLMEngine.from_engine_args(engine_args(config), enable_multiprocessing=False)
        self._version = config.version
        self._engine.set_weight_version(str(config.version))
        if config.transfer == BACKEND:
            self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
        self._calls = itertools.count()
        self._mailboxes: dict[str, _Mailbox] = {}  # by vLLM request id; step thread only
        self._paused = False
        self._loading = False  # between start and finish of a transfer: the model is in pieces
        self._broken: str | None = None
        self._tokens, self._busy_s = 0, 0.0
        self._lock = threading.Lock()  # guards _death against a command that is just being put
        self._death: EngineDead | None = None
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vllm-steps", daemon=True)
        self._thread.start()

    # -- the protocol

    @property
    def version(self) -> int:
        """Policy version of the loaded weights, as last read back from the engine."""
        return self._version

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[RawReply]:
        """Yield every (prompt, index) once, as it finishes. stop token included.

        ValueError: a prompt that does not fit, a grammar that was not loaded. EngineDead, WeightsBroken.
        Leaving the iterator early frees what still runs.
        """
        check_fits(prompts, sampling, self._config.max_length)
        if sampling.grammar and not self._config.grammar:
            raise ValueError("sampling.grammar needs an engine that was started with grammar=true")
        call = next(self._calls)
        wanted = {f"{call}/{p}/{i}": (prompt, i) for p, prompt in enumerate(prompts) for i in range(sampling.group_size)}
        mailbox = _Mailbox(asyncio.get_running_loop())
        try:
            await self._ask(lambda: self._add(wanted, sampling, mailbox))
            while wanted:
                output = await mailbox.get()
                prompt, index = wanted.pop(output.request_id)
                yield _raw(prompt, index, output.outputs[0])
        finally:
            if wanted:
                left = list(wanted)
                self._tell(lambda: self._drop(left))

    async def pause(self) -> None:
        """Stop stepping once the step under way is over."""
        await self._ask(lambda: self._set_paused(True))

    async def resume(self) -> None:
        """Step again."""
        await self._ask(lambda: self._set_paused(False))

    async def update_weights(self, manifest: WeightManifest, payload: Any) -> int:
        """Check everything, load between two steps, return the version read back from vLLM's worker.

        Running replies keep their tokens and go on under the new weights, their caches computed again.
        ValueError (nothing was touched): layout, size, digest or a non-finite tensor. Any failure later leaves the
        engine refusing to generate (WeightsBroken) until a full update succeeds.
        """
        check_layout(manifest, self._layout, self._optional)
        await asyncio.to_thread(_check_payload, manifest, payload)  # hashing runs beside the steps
        return await self._ask(lambda: self._load(manifest, payload))

    async def transfer(self, call: TransferCall, info: dict[str, Any] | None = None, version: int | None = None) -> None:
        """One control call of vLLM's own transports (``transfer`` = ipc or nccl), see ``rollout.vllm_transfer``.

        Between start and finish nothing is stepped; ``finish`` takes the version that was sent.
        """
        await self._ask(lambda: self._transfer(call, info, version))

    def health(self) -> Mapping[str, float]:
        """running (replies), tokens (generated, finished replies), busy_s (inside steps). EngineDead when it is."""
        if self._death is not None:
            raise self._death
        return {"running": float(len(self._mailboxes)), "tokens": float(self._tokens), "busy_s": self._busy_s}

    def close(self) -> None:
        """Stop the thread and free the engine; whoever still waits gets EngineDead."""
        self._commands.put(None)
        self._thread.join()

    # -- asyncio side

    def _put(self, run: Callable[[], Any]) -> "Future[Any]":
        command = _Command(run, Future())
        with self._lock:
            if self._death is not None:
                raise self._death
            self._commands.put(command)
        return command.result

    async def _ask(self, run: Callable[[], T]) -> T:
        return cast(T, await asyncio.wrap_future(self._put(run)))

    def _tell(self, run: Callable[[], Any]) -> None:
        if self._death is None:
            self._commands.put(_Command(run, Future()))

    # -- step thread

    def _run(self) -> None:
        reason: BaseException | None = None
        try:
            self._loop()
        except BaseException as error:  # whatever it is, the waiters must hear of it
            reason = error
        self._die(reason)
        self._engine.engine_core.shutdown()

    def _loop(self) -> None:
        while True:
            idle = self._paused or self._loading or not self._engine.has_unfinished_requests()
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                return
            command.execute()

    def _step(self) -> None:
        began = time.monotonic()
        outputs = self._engine.step()
        self._busy_s += time.monotonic() - began
        for output in outputs:
            assert isinstance(output, RequestOutput)
            if output.finished and (mailbox := self._mailboxes.pop(output.request_id, None)) is not None:
                self._tokens += len(output.outputs[0].token_ids)
                mailbox.put(output)

    def _die(self, reason: BaseException | None) -> None:
        why = "it was closed" if reason is None else f"{type(reason).__name__}: {reason}"
        death = EngineDead(f"the vLLM engine is gone: {why}")
        death.__cause__ = reason
        with self._lock:
            self._death = death
        for mailbox in set(self._mailboxes.values()):
            mailbox.put(death)
        while not self._commands.empty():
            if (command := self._commands.get()) is not None and command.result.set_running_or_notify_cancel():
                command.result.set_exception(death)

    def _set_paused(self, paused: bool) -> None:
        self._paused = paused

    def _add(self, wanted: Mapping[str, tuple[Prompt, int]], sampling: Sampling, mailbox: "_Mailbox") -> None:
        if self._broken is not None:
            raise WeightsBroken(self._broken)
        for request, (prompt, index) in wanted.items():
            params = sampling_params(self._config, sampling, seed_of(sampling.seed, prompt.id, index))
            self._engine.add_request(request, {"prompt_token_ids": list(prompt.ids)}, params)
            self._mailboxes[request] = mailbox

    def _drop(self, requests: list[str]) -> None:
        self._engine.abort_request(requests)
        for request in requests:
            self._mailboxes.pop(request, None)

    def _load(self, manifest: WeightManifest, payload: Any) -> int:
        self._transfer("start", None, manifest.version)
        self._transfer("update", {"manifest": manifest, "payload": payload}, manifest.version)
        self._transfer("finish", None, manifest.version)
        return self._version

    def _transfer(self, call: TransferCall, info: dict[str, Any] | None, version: int | None) -> None:
        try:
            if call == "init":
                self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": info})
            elif call == "start":
                if self._broken is not None:
                    self._engine.collective_rpc("wavgate_repair")
                self._broken, self._loading = "a weight load has begun and not finished", True
                self._engine.collective_rpc("start_weight_update")
            elif call == "update":
                self._engine.collective_rpc("update_weights", kwargs={"update_info": info})
            else:
                assert version is not None, "finish takes the version that was sent"
                self._engine.collective_rpc("finish_weight_update")
                self._commit(version)
        except Exception as error:
            self._broken, self._loading = f"weight transfer failed at {call}: {type(error).__name__}: {error}", False
            broken = WeightsBroken(self._broken)
            self._evict(broken)
            raise broken from error

    def _commit(self, version: int) -> None:
        """New weights are in: label what is sampled from now on, forget every cached key and value."""
        if self._config.transfer == BACKEND:  # vLLM's own transports carry no version
            held = set(self._engine.collective_rpc("wavgate_version"))
            if held != {version}:
                raise RuntimeError(f"workers must hold version {version}: they report {held}")
        self._engine.set_weight_version(str(version))
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM could not reset its prefix cache")
        self._version = int(self._engine.get_weight_version())
        self._broken, self._loading = None, False

    def _evict(self, error: Exception) -> None:
        """Running replies cannot go on: tell their waiters."""
        for mailbox in set(self._mailboxes.values()):
            mailbox.put(error)
        self._drop(list(self._mailboxes))


class _Mailbox:
    """Where one ``generate`` call waits, on its own event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()

    def put(self, item: RequestOutput | Exception) -> None:
        """From the step thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def get(self) -> RequestOutput:
        """The next finished reply; raises what was put as an exception."""
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item


@dataclass(slots=True)
class _Command:
    """Something to do between two steps."""

    run: Callable[[], Any]
    result: "Future[Any]"

    def execute(self) -> None:
        """Run it; what it raises belongs to who asked."""
        if not self.result.set_running_or_notify_cancel():
            return
        try:
            self.result.set_result(self.run())
        except Exception as error:
            self.result.set_exception(error)


def _check_payload(manifest: WeightManifest, payload: Any) -> None:
    check(manifest, payload)
    check_finite(manifest, payload)


def _raw(prompt: Prompt, index: int, output: CompletionOutput) -> RawReply:
    logprobs, spans = output.logprobs, output.weight_versions or []
    assert isinstance(logprobs, FlatLogprobs)
    ids = tuple(output.token_ids)
    versions = tuple(int(span.version) for span in spans for _ in range(span.start, span.end))
    assert tuple(logprobs.token_ids) == ids and len(versions) == len(ids), "one log-prob and one version per sampled id"
    if output.finish_reason not in get_args(Finish):
        raise EngineDead(f"vLLM ended reply {prompt.id!r}/{index} with {output.finish_reason!r}")
    finish = cast(Finish, output.finish_reason)
    return RawReply(prompt_id=prompt.id, index=index, ids=ids, logps=tuple(logprobs.logprobs), versions=versions, finish=finish)
