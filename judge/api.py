"""The API judge of a run, put together from its settings: endpoint, limits, probe, panel.

Invariant: the axes that ``JudgeConfig.api_axes`` names are scored by the endpoint or are Missing; no local
rule stands in for it. What the local panel says of a reply that cannot be judged holds on every axis.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from time import perf_counter

from conf.judging import ApiConfig, JudgeConfig
from judge.cache import VerdictCache
from judge.caller import Caller, Gate, Price
from judge.chat import Endpoint, ask, new_client
from judge.limits import MINUTE, Limits
from judge.openai_judge import OpenAIJudge
from judge.panel import LONGEST, Panel, panel_from
from judge.probe import Capabilities, probe
from judge.rubric import RUBRICS, Rubric
from judge.types import Judged, Task, Verdict
from rollout.types import Reply, Speech

FAILURES = 5  # calls in a row without an answer that open the breaker
REST_S = 5.0  # before the first probe of an endpoint that is down
CACHE_BYTES = 1 << 30


def endpoint_of(api: ApiConfig) -> Endpoint:
    """Where to ask. ValueError: not an address, or nothing to ask there."""
    return Endpoint(
        base_url=api.base_url or "", model=api.model or "", key_env=api.key_env, deadline_s=api.deadline_s
    )


def limits_of(api: ApiConfig) -> Limits:
    """What all judge workers together may ask."""
    return Limits(
        concurrency=api.concurrency,
        requests_per_minute=api.requests_per_minute,
        audio_seconds_per_minute=api.audio_seconds_per_minute,
        spend_cap=api.spend_cap,
        breaker_failures=FAILURES,
        breaker_rest_s=REST_S,
        lease_s=10 * api.deadline_s,  # a call ends within its deadline
    )


def slots(config: JudgeConfig) -> int:
    """Replies that one judge worker has in hand at once: enough, over all workers, to use the concurrency."""
    return ceil(config.api.concurrency / config.workers) if config.api_axes else 1


def calls_at_once(config: JudgeConfig) -> int:
    """The most calls of one run that may wait for the limits or be on their way."""
    return config.workers * slots(config) * len(config.api_axes) * config.api.repeats


def verdict_deadline(config: JudgeConfig) -> float:
    """Seconds that a judge has for a verdict, once it has the reply.

    Locally ``deadline_s``. By API the sum of: ``deadline_s`` per reply that the worker has in hand (they
    share one recogniser); a call's deadline for each round of calls that the concurrency allows, and one
    more after an outage; what the rates make the last of all calls wait, at the longest clip; the longest
    outage.
    """
    if not config.api_axes:
        return config.deadline_s
    api, calls = config.api, calls_at_once(config)
    rounds = ceil(calls / api.concurrency) + 1
    minutes = calls / api.requests_per_minute if api.requests_per_minute else 0.0
    if api.audio_seconds_per_minute and "acoustic" in config.api_axes:
        audio = LONGEST * calls / len(config.api_axes)
        minutes = max(minutes, audio / api.audio_seconds_per_minute)
    return slots(config) * config.deadline_s + rounds * api.deadline_s + minutes * MINUTE + api.outage_s


async def probed(config: JudgeConfig) -> Capabilities:
    """What the endpoint can do. ValueError: not what the axes need, or it does not answer."""
    endpoint = endpoint_of(config.api)
    async with new_client() as client:
        return await probe(partial(ask, client, endpoint), endpoint.model, list(rubrics(config).values()))


def rubrics(config: JudgeConfig) -> Mapping[str, Rubric]:
    """Axis -> what the endpoint is asked about it."""
    return {axis: RUBRICS[axis] for axis in config.api_axes}


class ApiPanel:
    """A panel that leaves some axes to an API judge. Any number of replies may be scored at once.

    Example:
        panel = api_panel(config.judge, folder, model, await probed(config.judge), gate, log=None)
        judged = await panel.score(reply, speech, task)
    """

    def __init__(self, panel: Panel, judge: OpenAIJudge, asked: Mapping[str, Rubric]) -> None:
        self._panel, self._judge, self._asked = panel, judge, asked
        self._ear = asyncio.Lock()  # the panel hears one reply at a time

    async def score(self, reply: Reply, speech: Speech, task: Task) -> Judged:
        """Judge one reply: the local panel in a thread, then the endpoint with what was heard.

        ValueError: an unknown style, a cache or key that cannot be used. OSError: the log is not writable.
        """
        start = perf_counter()
        async with self._ear:
            local = await asyncio.to_thread(self._panel.score, reply, speech, task)
        if local.transcript is None:  # floor, cut off or not recognised: the same on every axis
            return local
        heard = local.transcript
        asked = (self._judge.score(rubric, task, heard, speech, None) for rubric in self._asked.values())
        found = await asyncio.gather(*asked)
        axes: dict[str, Verdict] = {**local.axes, **dict(zip(self._asked, found, strict=True))}
        return replace(
            local,
            axes=axes,
            reward=self._panel.reward(axes, local),
            figures={**local.figures, "latency_s": perf_counter() - start},
        )


def api_panel(
    config: JudgeConfig, root: Path, model: Path, capabilities: Capabilities, gate: Gate, *, log: Path | None
) -> ApiPanel:
    """The shipped panel with the API judge on its axes.

    ``root``, ``model`` as in ``panel_from``; ``log``: of all calls.

    ValueError: a file of the recogniser is not there, or the cache cannot be used.
    """
    api, endpoint = config.api, endpoint_of(config.api)
    prices = {"prompt": api.prompt_price, "completion": api.completion_price}
    caller = Caller(
        partial(ask, new_client(), endpoint),
        endpoint.model,
        gate,
        outage_s=api.outage_s,
        price=Price(**{name: price for name, price in prices.items() if price is not None}),
        cache=None if api.cache is None else VerdictCache(api.cache, CACHE_BYTES),
        log=log,
    )
    panel = panel_from(config, root, model)
    judge = OpenAIJudge(
        caller, capabilities, scale=panel.scale, repeats=api.repeats, temperature=api.temperature
    )
    return ApiPanel(panel, judge, rubrics(config))
