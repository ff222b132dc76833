"""The one thread that touches vLLM: it steps the engine, and between two steps it runs what others asked for.

    asyncio side                    step thread
    ask(command)  ──────────────►  ┌─ commands ─┐
                                   │    step    │ ──► mailbox of each generate call
                                   └────────────┘

Invariants: a command never meets a step; nobody waits for a dead engine: whatever ends the thread reaches
every waiter as ``EngineDead``, and every later call too.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from vllm.outputs import RequestOutput
from vllm.v1.engine.llm_engine import LLMEngine

from rollout.request import EngineDead

T = TypeVar("T")


class Mailbox:
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
class _StepCommand:
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


class StepThread:
    """Owns an ``LLMEngine``. ``mailboxes``, ``paused``, ``loading`` are for commands (on the thread).

    Example:
        steps = StepThread(engine)
        await steps.run_between_steps(lambda: engine.add_request(...))
        steps.close()
    """

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self.mailboxes: dict[str, Mailbox] = {}  # by vLLM request id, until the reply is finished
        self.paused = False
        self.loading = False  # the model is in pieces: no step
        self.tokens, self.busy_s = 0, 0.0
        self._lock = threading.Lock()  # no command is put while the thread says good-bye
        self._death: EngineDead | None = None
        self._commands: queue.SimpleQueue[_StepCommand | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="vllm-steps", daemon=True)
        self._thread.start()

    async def run_between_steps(self, run: Callable[[], T]) -> T:
        """Run between two steps; its result. EngineDead when the thread is gone or ends before."""
        return cast(T, await asyncio.wrap_future(self._put(run)))

    def schedule_between_steps(self, run: Callable[[], Any]) -> None:
        """Run between two steps, nobody waits. Nothing to do when the engine is dead."""
        with contextlib.suppress(EngineDead):
            self._put(run)

    def raise_if_dead(self) -> None:
        """EngineDead when it is."""
        if self._death is not None:
            raise self._death

    def abort_requests(self, requests: list[str]) -> None:
        """On the thread: these replies are not wanted any more."""
        self._engine.abort_request(requests)
        for request in requests:
            self.mailboxes.pop(request, None)

    def fail_running_replies(self, error: Exception) -> None:
        """On the thread: running replies cannot go on; their waiters get ``error``."""
        for mailbox in set(self.mailboxes.values()):
            mailbox.put(error)
        self.abort_requests(list(self.mailboxes))

    def close(self) -> None:
        """End the thread and free vLLM. Idempotent."""
        self._commands.put(None)
        self._thread.join()

    def _put(self, run: Callable[[], Any]) -> "Future[Any]":
        command = _StepCommand(run, Future())
        with self._lock:
            self.raise_if_dead()
            self._commands.put(command)
        return command.result

    def _run(self) -> None:
        reason: BaseException | None = None
        try:
            self._loop()
        except BaseException as error:  # whatever it is, the waiters must hear of it
            reason = error
        self._fail_all_waiters(reason)
        self._engine.engine_core.shutdown()

    def _loop(self) -> None:
        while True:
            idle = self.paused or self.loading or not self._engine.has_unfinished_requests()
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
        self.busy_s += time.monotonic() - began
        for output in outputs:
            assert isinstance(output, RequestOutput)
            if output.finished and (mailbox := self.mailboxes.pop(output.request_id, None)) is not None:
                self.tokens += len(output.outputs[0].token_ids)
                mailbox.put(output)

    def _fail_all_waiters(self, reason: BaseException | None) -> None:
        why = "it was closed" if reason is None else f"{type(reason).__name__}: {reason}"
        death = EngineDead(f"the vLLM engine is gone: {why}")
        death.__cause__ = reason
        with self._lock:
            self._death = death
        for mailbox in set(self.mailboxes.values()):
            mailbox.put(death)
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None and command.result.set_running_or_notify_cancel():
                command.result.set_exception(death)
