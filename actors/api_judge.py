"""One actor per endpoint of API judges: its client, limits, breaker, cache, spend and log are in that process.

Invariant: nobody else asks the endpoint, so its limits need no other process. What must outlive the actor is
in files: the verdicts that were paid for in its cache, what has been spent in the log of its calls.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.answer_pool import AnswerLate, AnswerPool, build_late_verdict
from actors.errors import RunError, describe_error
from actors.handles import BaseActor
from actors.pool import WORKER_CALL_TIMEOUT_S
from conf.endpoints import JudgeEndpointConfig
from conf.schema import Config
from judge.endpoint.limits import Limiter, LimiterFigures
from judge.llm.build import ProbedEndpoints, build_endpoint_judge, compute_answer_deadline, limits_from_config
from judge.llm.canary import CanaryResult
from judge.llm.endpoint_judge import AxisVerdicts
from judge.types import JudgeTask
from rollout.types import Speech
from speech.sound import audio

JUDGE_CALLS_FILE = "judge_calls.jsonl"  # in the run directory: every call, without audio and without headers


class EndpointActor(BaseActor):
    """``judge.llm.endpoint_judge.EndpointJudge`` on Ray. ``place``: of the endpoint in ``config.judge.endpoints``."""

    def __init__(self, config: Config, place: int, probed: ProbedEndpoints, log: Path, restarted: bool) -> None:
        endpoint, able = config.judge.endpoints[place], (probed.judge, probed.second)[place]
        assert able is not None, "every endpoint was probed"
        spent = sum_logged_spend(log, endpoint.base_url, endpoint.model)
        self._limiter = Limiter(limits_from_config(endpoint), spent=spent, restarted=restarted)
        self._judge = build_endpoint_judge(config.judge, endpoint, able, self._limiter, log=log)
        self._max_seconds = config.data.max_seconds

    async def score(self, transcript: str, speech: Speech, task: JudgeTask, case: str) -> AxisVerdicts:
        """The verdicts on one reply."""
        return await self._judge.score(transcript, speech, task, case)

    async def compare(
        self, transcripts: Sequence[str], unjudgeable: int, task: JudgeTask, case: str, *speeches: Speech
    ) -> list[AxisVerdicts]:
        """The verdicts on replies to one prompt, held against each other."""
        return await self._judge.compare(transcripts, speeches, unjudgeable, task, case)

    async def canaries(self, task: JudgeTask, transcript: str, clips: Sequence[Path]) -> list[CanaryResult]:
        """What the endpoint makes of replies that deserve nothing, made of one that says ``transcript``."""
        rate = audio.read_audio_header(clips[0]).sample_rate
        wave = await asyncio.to_thread(audio.read_clips, clips, rate, self._max_seconds)
        return await self._judge.canaries(task, transcript, Speech(wave=wave, sample_rate=rate))

    async def state(self) -> LimiterFigures:
        """What it was asked so far."""
        return self._limiter.state()


class EndpointPool(AnswerPool):
    """The one actor of an endpoint and, when it dies or hangs, its replacement."""

    def __init__(self, *, axes: Sequence[str], **pool_arguments: Any) -> None:
        super().__init__("judge endpoint", 1, **pool_arguments)
        self._axes = axes

    async def score(self, transcript: str, speech: list[Any], task: JudgeTask, case: str) -> AxisVerdicts:
        """The verdicts, or Missing("deadline"). Errors but AnswerLate as in ``AnswerPool.ask``."""
        try:
            verdicts: AxisVerdicts = await self.ask(
                lambda actor: actor.score.remote(transcript, speech[0], task, case), case
            )
        except AnswerLate as late:
            return dict.fromkeys(self._axes, build_late_verdict(late))
        return verdicts

    async def compare(
        self, transcripts: Sequence[str], speeches: Sequence[list[Any]], unjudgeable: int, task: JudgeTask, case: str
    ) -> list[AxisVerdicts]:
        """The verdicts on all replies, in order. As in ``score``; they are late together."""
        try:
            verdicts: list[AxisVerdicts] = await self.ask(
                lambda actor: actor.compare.remote(
                    transcripts, unjudgeable, task, case, *(boxed[0] for boxed in speeches)
                ),
                case,
            )
        except AnswerLate as late:
            return [dict.fromkeys(self._axes, build_late_verdict(late)) for _ in speeches]
        return verdicts

    async def canaries(self, task: JudgeTask, transcript: str, clips: Sequence[Path]) -> list[CanaryResult]:
        """What the judge makes of replies that deserve nothing. RunError: no answer in time."""
        try:
            results: list[CanaryResult] = await self.ask(
                lambda actor: actor.canaries.remote(task, transcript, clips), "the canaries"
            )
        except AnswerLate as late:
            raise RunError(f"the judge's canaries were not judged: {late}") from None
        return results

    async def state(self) -> LimiterFigures:
        """What the actor was asked since it started. RunError: it keeps dying."""
        while True:
            actor = self.handles[0]
            try:
                figures: LimiterFigures = await asyncio.wait_for(actor.state.remote(), WORKER_CALL_TIMEOUT_S)
            except (RayError, TimeoutError) as error:
                await self.replace_once(0, actor, describe_error(error))
            else:
                return figures


def build_endpoint_pools(config: Config, probed: ProbedEndpoints, run: Path, **common: Any) -> list[EndpointPool]:
    """The judge's endpoint and, if there is one, the second's; each in an actor on this machine.

    ``run``: its directory, with the log of the calls so far, whose cost counts.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)

    def build_pool(place: int, endpoint: JudgeEndpointConfig) -> EndpointPool:
        # As many calls at once as are in hand, as many signs of life, and one question for the figures.
        actor: Any = ray.remote(EndpointActor).options(
            num_cpus=0, max_restarts=0, scheduling_strategy=here, max_concurrency=2 * endpoint.concurrency + 1
        )

        def create(_: int) -> Any:
            return actor.remote(config, place, probed, run / JUDGE_CALLS_FILE, pool.restarts > 0)

        pool = EndpointPool(
            axes=config.judge.api_axes,
            create=create,
            deadline=compute_answer_deadline(config.judge, endpoint, config.rollout.group_size),
            slots=endpoint.concurrency,
            alive_s=WORKER_CALL_TIMEOUT_S,
            **common,
        )
        return pool

    return [build_pool(place, endpoint_config) for place, endpoint_config in enumerate(config.judge.endpoints)]


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
                is_ours = isinstance(call, dict) and call.get("endpoint") == endpoint and call.get("model") == model
                spent += call["spent"] if is_ours else 0.0
    return spent
