"""The API judge on Ray: one limiter for the whole run, and judges that have several replies in hand.

Invariant: a call is on its way only under a lease of the run's one limiter. An acquire that is cancelled
leaves no lease behind. The limiter is never restarted: what has been spent would be forgotten with it.
"""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import UserError
from actors.handles import Actor
from conf.judging import JudgeConfig
from conf.schema import Config
from judge import api
from judge.limits import Figures, Limiter, Limits
from judge.probe import Capabilities
from judge.types import CallFailed, Judged, Task
from judge.worker import keep
from rollout.types import Reply, Speech

LOG = "judge_calls.jsonl"  # in the run directory: every call, without audio and without headers
SPARE = 100  # answers that the limiter gives while every call there can be waits for a lease


class LimiterActor(Actor):
    """``judge.limits.Limiter`` for every judge of a run."""

    def __init__(self, limits: Limits) -> None:
        self._limiter = Limiter(limits)

    async def acquire(self, audio_seconds: float) -> int:
        """A lease. CallFailed (spend_cap)."""
        return await self._limiter.acquire(audio_seconds)

    async def release(self, lease: int, ok: bool | None, spent: float) -> None:
        """Give a lease back."""
        await self._limiter.release(lease, ok=ok, spent=spent)

    async def is_open(self) -> bool:
        """Whether the breaker holds everybody back."""
        return await self._limiter.is_open()

    async def state(self) -> Figures:
        """The figures as of now."""
        return self._limiter.state()


class RemotePermits:
    """The limiter actor as Permits."""

    def __init__(self, limiter: Any) -> None:
        self._limiter = limiter
        self._leaving: set[asyncio.Task[None]] = set()

    async def acquire(self, audio_seconds: float) -> int:
        """See ``Limiter.acquire``. RayError: the limiter is gone."""
        reference = self._limiter.acquire.remote(audio_seconds)
        try:
            return cast(int, await reference)
        except asyncio.CancelledError:
            ray.cancel(reference)
            leaving = asyncio.create_task(self._give_back(reference))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            raise
        except RayTaskError as error:
            if isinstance(error.cause, CallFailed):
                raise error.cause from None
            raise

    async def release(self, lease: int, *, ok: bool | None, spent: float) -> None:
        """See ``Limiter.release``."""
        await self._limiter.release.remote(lease, ok, spent)

    async def is_open(self) -> bool:
        """See ``Permits.is_open``."""
        return cast(bool, await self._limiter.is_open.remote())

    async def _give_back(self, reference: Awaitable[int]) -> None:
        try:
            lease = await reference
        except (RayError, asyncio.CancelledError):  # cancelled in time: there is no lease
            return
        await self.release(lease, ok=None, spent=0.0)


class ApiJudgeActor(Actor):
    """One judge that leaves axes to the endpoint: scores several replies at a time."""

    def __init__(self, config: Config, capabilities: Capabilities, limiter: Any) -> None:
        log = config.run.root / config.run.name / LOG
        gate = RemotePermits(limiter)
        self._panel = api.api_panel(config.judge, Path.cwd(), config.model.path, capabilities, gate, log=log)

    async def score(self, reply: Reply, speech: Speech, task: Task, audio: Path | None) -> Judged:
        """The verdicts on one reply; its audio is kept at ``audio`` when given."""
        await asyncio.to_thread(keep, speech, audio)
        return await self._panel.score(reply, speech, task)


def start_limiter(config: JudgeConfig) -> Any:
    """The limiter of a run, on the driver's machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
    room = api.calls_at_once(config) + SPARE  # else a release could wait behind those who wait for it
    kind: Any = ray.remote(LimiterActor)
    return kind.options(max_concurrency=room, **options).remote(api.limits_of(config.api))


def probe_judge(config: JudgeConfig) -> Capabilities | None:
    """What the endpoint can do, asked before anything starts; None: no axis is judged by api.

    UserError: it does not answer, or cannot do what the axes need.
    """
    if not config.api_axes:
        return None
    try:
        return asyncio.run(api.probed(config))
    except ValueError as error:
        raise UserError(f"judge.api: {error}") from error
