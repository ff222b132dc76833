"""The API judges of a run, put together from their settings: endpoints, limits, probe, panel.

Invariant: what is refused is refused by ``probe_endpoints``, before anything starts: an endpoint that cannot do what
the axes need, a calibration of another judge.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path

from conf.endpoints import ApiConfig, JudgeEndpointConfig
from conf.judging import JudgeConfig
from judge.endpoint.address import endpoint_from_config
from judge.endpoint.cache import VerdictCache
from judge.endpoint.chat import ask_endpoint
from judge.endpoint.http import new_client
from judge.endpoint.leases import TokenPrice
from judge.endpoint.limits import MINUTE, EndpointLimits, Limiter
from judge.llm.answers import AnswerSampling
from judge.llm.calibration import Calibrations, load_calibrations
from judge.llm.caller import JudgeCaller
from judge.llm.capabilities import Capabilities
from judge.llm.endpoint_judge import ContestJudge, EndpointJudge
from judge.llm.pairwise import compare_pairwise
from judge.llm.panel import ApiPanel, SecondJudge
from judge.llm.probe import probe_capabilities
from judge.llm.probe_questions import TrialPlan, build_smallest_body
from judge.llm.ranking import rank_candidates
from judge.llm.reply_judge import OpenAIJudge, format_judge_name
from judge.llm.rubric import RUBRICS, Rubric
from judge.panel import MAX_JUDGED_AUDIO_S, build_panel
from judge.rules.voice import NormsSource
from judge.types import Scale

BREAKER_FAILURES = 4  # attempts in a row, of two cases at least, that open the breaker: as many as a call has
BREAKER_REST_S = 5.0  # before the first probe of an endpoint that is down
MAX_VERDICT_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedEndpoints:
    """What the endpoints can do. ``second``: None where there is no second judge."""

    judge: Capabilities
    second: Capabilities | None

    @property
    def mode(self) -> str:
        """How the judge answers; verdicts of two modes are not put into one file."""
        return f"{self.judge.mode}{'/forced' * self.judge.forced}"

    def describe(self) -> list[str]:
        """A line each."""
        descriptions = [self.judge.describe()]
        return descriptions if self.second is None else [*descriptions, f"second opinion: {self.second.describe()}"]


def limits_from_config(endpoint: JudgeEndpointConfig) -> EndpointLimits:
    """What may be asked of this endpoint."""
    return EndpointLimits(
        concurrency=endpoint.concurrency,
        requests_per_minute=endpoint.requests_per_minute,
        audio_seconds_per_minute=endpoint.audio_seconds_per_minute,
        spend_cap=endpoint.spend_cap,
        breaker_failures=BREAKER_FAILURES,
        breaker_rest_s=BREAKER_REST_S,
    )


def select_rubrics(config: JudgeConfig) -> Mapping[str, Rubric]:
    """Axis -> what the endpoint is asked about it."""
    return {axis: RUBRICS[axis] for axis in config.api_axes}


def compares_replies(config: JudgeConfig, group_size: int) -> bool:
    """Whether the replies to one prompt are judged together."""
    return bool(config.api_axes) and config.api.compare != "none" and group_size > 1


def calls_per_group(config: JudgeConfig, group_size: int) -> int:
    """Calls, retries not counted, for the verdicts on all replies to one prompt."""
    calls_per_axis = config.api.repeats * group_size
    if compares_replies(config, group_size):
        calls_per_axis = group_size * (group_size - 1) if config.api.compare == "pairwise" else config.api.repeats
    return len(config.api_axes) * calls_per_axis


def calls_at_once(config: JudgeConfig, endpoint: JudgeEndpointConfig, group_size: int) -> int:
    """The most calls that may wait for an endpoint's limits or be on their way.

    It has ``concurrency`` replies or groups in hand, which can use all of it.
    """
    per_reply = len(config.api_axes) * endpoint.repeats
    compares = endpoint is config.api and compares_replies(config, group_size)
    return endpoint.concurrency * (max(per_reply, calls_per_group(config, group_size)) if compares else per_reply)


def compute_answer_deadline(config: JudgeConfig, endpoint: JudgeEndpointConfig, group_size: int) -> float:
    """Seconds that an endpoint has for the verdicts on a reply or a group once it has it in hand.

    The sum of: a call's deadline for each round of calls that the concurrency allows, and one more after an
    outage; what the rates make the last of all calls wait, at the longest clip; the longest outage.
    """
    calls = calls_at_once(config, endpoint, group_size)
    rounds = ceil(calls / endpoint.concurrency) + 1
    minutes = calls / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
    clips = sum(2 for rubric in select_rubrics(config).values() if rubric.hears_reply)
    if endpoint.audio_seconds_per_minute and clips:
        audio = MAX_JUDGED_AUDIO_S * clips * calls / len(config.api_axes)
        minutes = max(minutes, audio / endpoint.audio_seconds_per_minute)
    return rounds * endpoint.deadline_s + minutes * MINUTE + endpoint.outage_s


async def probe_endpoints(config: JudgeConfig, group_size: int = 1, *, user_audio: bool = True) -> ProbedEndpoints:
    """What the endpoints can do of what they will be asked.

    ``group_size``: replies to a prompt, which ``compare`` holds against each other; ``user_audio``: there are
    prompts that were spoken. ValueError: not what the axes need, one does not answer, or the calibration is
    not this judge's.
    """
    able = [
        await _probe_endpoint(
            endpoint_config,
            TrialPlan(
                rubrics=list(select_rubrics(config).values()),
                sampling=sampling_from_config(endpoint_config),
                compare=endpoint_config.compare if isinstance(endpoint_config, ApiConfig) else "none",
                group_size=group_size,
                user_audio=user_audio,
            ),
        )
        for endpoint_config in config.endpoints
    ]
    probed_endpoints = ProbedEndpoints(judge=able[0], second=able[1] if len(able) > 1 else None)
    if config.api.calibration is not None:
        maps, model = load_calibrations(config.api.calibration), endpoint_from_config(config.api).model
        scale, rubrics = Scale(config.scale_lo, config.scale_hi), select_rubrics(config).values()
        mapped = [
            maps.map_for_axis(rubric.name, format_judge_name(model, rubric.id, probed_endpoints.judge), scale)
            for rubric in rubrics
        ]
        if not any(mapped):
            axes = " and ".join(config.api_axes)
            raise ValueError(f"{config.api.calibration}: has no map for {axes}, which the endpoint judges")
    return probed_endpoints


async def _probe_endpoint(config: JudgeEndpointConfig, plan: TrialPlan) -> Capabilities:
    endpoint = endpoint_from_config(config)
    async with new_client() as client:
        capabilities = await probe_capabilities(partial(ask_endpoint, client, endpoint), endpoint.model, plan)
    if config.spend_cap is not None and not capabilities.usage:
        raise ValueError("spend_cap cannot be held: the endpoint does not say how many tokens a call takes")
    return capabilities


def sampling_from_config(endpoint: JudgeEndpointConfig) -> AnswerSampling:
    """How answers are drawn, by the settings."""
    return AnswerSampling(
        temperature=endpoint.temperature,
        max_tokens=endpoint.max_tokens,
        max_tokens_field=endpoint.max_tokens_field,
        reasoning_effort=endpoint.reasoning_effort,
    )


def build_api_panel(
    config: JudgeConfig,
    root: Path,
    voice: Path | NormsSource,
    probed_endpoints: ProbedEndpoints,
    *,
    log: Path | None,
    limiter: Limiter | None = None,
) -> ApiPanel:
    """The shipped panel with API judges on its axes, all in this process.

    ``root``, ``voice`` as in ``build_panel``; ``log``: of all calls; ``limiter``: of ``judge.api``, where more
    than this panel is under its limits.

    ValueError: a file of the recogniser is not there, or the cache or calibration cannot be used.
    """
    judge = build_endpoint_judge(config, config.api, probed_endpoints.judge, limiter, log=log)
    second = None
    if probed_endpoints.second is not None:
        other = build_endpoint_judge(config, config.second, probed_endpoints.second, log=log)
        second = SecondJudge(judge=other, share=config.second.share)
    return ApiPanel(build_panel(config, root, voice), judge, second)


def build_endpoint_judge(
    config: JudgeConfig,
    endpoint: JudgeEndpointConfig,
    able: Capabilities,
    limiter: Limiter | None = None,
    *,
    log: Path | None,
) -> EndpointJudge:
    """The judge at one endpoint. ValueError: its cache or calibration cannot be used."""
    caller = partial(_build_caller, endpoint, limiter or Limiter(limits_from_config(endpoint)), log=log)
    scale, api = Scale(config.scale_lo, config.scale_hi), endpoint if isinstance(endpoint, ApiConfig) else None
    maps = None if api is None or api.calibration is None else load_calibrations(api.calibration)
    judge = _build_judge(endpoint, caller(cached=True), able, scale, maps)
    fresh = _build_judge(endpoint, caller(cached=False), able, scale, maps)
    comparing = None if api is None else _build_comparer(api, judge)
    return EndpointJudge(judge, select_rubrics(config), fresh=fresh, comparing=comparing)


def _build_caller(config: JudgeEndpointConfig, limiter: Limiter, *, cached: bool, log: Path | None) -> JudgeCaller:
    endpoint, client = endpoint_from_config(config), new_client()
    prices = {"prompt": config.prompt_price, "completion": config.completion_price}
    return JudgeCaller(
        partial(ask_endpoint, client, endpoint),
        endpoint.model,
        limiter,
        outage_s=config.outage_s,
        price=TokenPrice(**{name: price for name, price in prices.items() if price is not None}),
        cache=VerdictCache(config.cache, MAX_VERDICT_CACHE_BYTES) if cached and config.cache is not None else None,
        log=log,
        endpoint=endpoint.base_url,
        ping=partial(
            ask_endpoint, client, replace(endpoint, attempts=1), build_smallest_body(sampling_from_config(config))
        ),
    )


def _build_judge(
    endpoint: JudgeEndpointConfig, caller: JudgeCaller, able: Capabilities, scale: Scale, maps: Calibrations | None
) -> OpenAIJudge:
    return OpenAIJudge(
        caller, able, scale=scale, repeats=endpoint.repeats, sampling=sampling_from_config(endpoint), maps=maps
    )


def _build_comparer(api: ApiConfig, judge: OpenAIJudge) -> ContestJudge | None:
    caller_and_capabilities = (judge.caller, judge.capabilities)
    scale, sampling = judge.scale, judge.sampling
    if api.compare == "pairwise":
        return partial(compare_pairwise, *caller_and_capabilities, scale=scale, sampling=sampling)
    if api.compare == "ranking":
        return partial(rank_candidates, *caller_and_capabilities, scale=scale, repeats=api.repeats, sampling=sampling)
    return None
