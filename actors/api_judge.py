"""API judges on Ray: one limiter per endpoint for a whole run, judges that have several replies in hand.

Invariant: a request is on its way only under a lease of the endpoint's one limiter. An acquire that is
cancelled leaves no lease behind. The limiter is never restarted, what has been spent would be forgotten with
it: when it dies the run ends, and a resumed one goes on counting from the log of its calls.
"""

import asyncio
import json
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import RunError
from actors.handles import BaseActor, JudgingActor, get_own_actor_id
from actors.pool import WORKER_CALL_TIMEOUT_S
from conf.judging import JudgeConfig
from conf.schema import Config
from judge.endpoint.limits import EndpointLimits, Limiter, LimiterFigures
from judge.llm import build as api
from judge.llm.canary import CanaryResult
from judge.rules.voice import VoiceSample, measure_voice_sample
from judge.types import CallFailed, JudgeTask, ReplyJudgement
from judge.worker import save_reply_audio
from rollout.types import Reply, Speech
from speech.sound import audio

JUDGE_CALLS_FILE = "judge_calls.jsonl"  # in the run directory: every call, without audio and without headers
SPARE_CONCURRENCY = 100  # answers that the limiter gives while every call there can be waits for a lease


class LimiterActor(BaseActor):
    """``judge.endpoint.limits.Limiter`` for every judge of a run."""

    def __init__(self, limits: EndpointLimits, spent: float) -> None:
        self._limiter = Limiter(limits, spent=spent)

    async def acquire(self, audio_seconds: float, about: str | None, owner: str) -> int:
        """A lease. CallFailed (spend_cap)."""
        return await self._limiter.acquire(audio_seconds, about, owner)

    async def forget(self, owner: str) -> None:
        """A judge is gone."""
        await self._limiter.forget(owner)

    async def release(self, lease: int, ok: bool | None, spent: float, why: str = "") -> None:
        """Give a lease back."""
        await self._limiter.release(lease, ok=ok, spent=spent, why=why)

    async def down_s(self) -> float:
        """For how long the breaker has held calls back."""
        return await self._limiter.down_s()

    async def cause(self) -> str:
        """Why the last call failed."""
        return await self._limiter.cause()

    async def state(self) -> LimiterFigures:
        """The figures as of now."""
        return self._limiter.state()


class RemoteLimiter:
    """The limiter actor as Permits. RunError, in every method: it is dead."""

    def __init__(self, limiter: Any, owner: str) -> None:
        self._limiter, self._owner = limiter, owner
        self._leaving: set[asyncio.Task[None]] = set()

    async def acquire(self, audio_seconds: float, about: str | None = None) -> int:
        """See ``Limiter.acquire``."""
        reference = self._limiter.acquire.remote(audio_seconds, about, self._owner)
        try:
            return cast(int, await _await_limiter(reference))
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

    async def release(self, lease: int, *, ok: bool | None, spent: float, why: str = "") -> None:
        """See ``Limiter.release``."""
        await _await_limiter(self._limiter.release.remote(lease, ok, spent, why))

    async def down_s(self) -> float:
        """See ``Permits.down_s``."""
        return cast(float, await _await_limiter(self._limiter.down_s.remote()))

    async def cause(self) -> str:
        """See ``Permits.cause``."""
        return cast(str, await _await_limiter(self._limiter.cause.remote()))

    async def _give_back(self, reference: Awaitable[int]) -> None:
        try:
            lease = await reference
        except (RayError, asyncio.CancelledError):  # cancelled in time: there is no lease
            return
        await self.release(lease, ok=None, spent=0.0)


async def _await_limiter(reference: Awaitable[Any]) -> Any:
    try:
        return await reference
    except RayActorError:
        raise RunError("the limiter of an API judge died: go on with `wavgate train resume=RUN`") from None


async def ask_limiter(reference: Awaitable[Any]) -> Any:
    """What a limiter says to the driver. RunError: it is dead, or says nothing in time."""
    try:
        return await asyncio.wait_for(_await_limiter(reference), WORKER_CALL_TIMEOUT_S)
    except TimeoutError:
        raise RunError(f"the limiter of an API judge gave no answer within {WORKER_CALL_TIMEOUT_S:g} s") from None


class ApiJudgeActor(JudgingActor):
    """One judge that leaves axes to the endpoint: has several replies or groups in hand."""

    def __init__(self, config: Config, run: Path, probed: api.ProbedEndpoints, limiters: Sequence[Any]) -> None:
        permits = [RemoteLimiter(limiter, get_own_actor_id()) for limiter in limiters]
        access = api.EndpointLimiters(judge=permits[0], second=permits[1] if len(permits) > 1 else None)
        self._max_seconds = config.data.max_seconds
        log = run / JUDGE_CALLS_FILE
        self._panel = api.build_api_panel(config.judge, Path.cwd(), lambda: self.voice, probed, access, log=log)

    async def sample_voice(self, text: str, speech: Speech) -> VoiceSample | None:
        """What a reply shows of its voice."""
        return await asyncio.to_thread(measure_voice_sample, text, speech)

    async def score(self, reply: Reply, speech: Speech, task: JudgeTask, path: Path | None) -> ReplyJudgement:
        """The verdicts on one reply; its audio is kept at ``path`` when given."""
        await asyncio.to_thread(save_reply_audio, speech, path)
        return await self._panel.score(reply, speech, task)

    async def compare(
        self, replies: Sequence[Reply], task: JudgeTask, paths: Sequence[Path | None], *speeches: Speech
    ) -> list[ReplyJudgement]:
        """The verdicts on all replies to one prompt, held against each other."""
        for speech, path in zip(speeches, paths, strict=True):
            await asyncio.to_thread(save_reply_audio, speech, path)
        return await self._panel.compare(replies, speeches, task)

    async def canaries(self, task: JudgeTask, transcript: str, clips: Sequence[Path]) -> list[CanaryResult]:
        """What the endpoint makes of replies that deserve nothing, made of one that says ``transcript``."""
        rate = audio.read_audio_header(clips[0]).sample_rate
        wave = await asyncio.to_thread(audio.read_clips, clips, rate, self._max_seconds)
        return await self._panel.canaries(task, transcript, Speech(wave=wave, sample_rate=rate))


def start_limiters(config: JudgeConfig, group_size: int, log: Path) -> list[Any]:
    """A limiter for the judge's endpoint, and one for the second's if there is one, on this machine.

    ``log``: of the calls so far, whose cost counts.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
    # As many at once as can ask: else a release could wait behind those who wait for it.
    options["max_concurrency"] = api.calls_at_once(config, group_size) + SPARE_CONCURRENCY
    kind: Any = ray.remote(LimiterActor)
    return [
        kind.options(**options).remote(
            api.limits_from_config(endpoint), sum_logged_spend(log, endpoint.base_url, endpoint.model)
        )
        for endpoint in config.asked
    ]


def sum_logged_spend(log: Path, endpoint: str | None, model: str | None) -> float:
    """What the calls of a log to this model cost. A line that a kill cut short is not counted."""
    spent = 0.0
    if log.is_file():
        with log.open("rb") as lines:
            for line in lines:
                try:
                    call = json.loads(line)
                except ValueError:
                    continue
                ours = isinstance(call, dict) and call.get("endpoint") == endpoint and call.get("model") == model
                spent += call["spent"] if ours else 0.0
    return spent
