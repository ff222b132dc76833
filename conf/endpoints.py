"""The settings of OpenAI-compatible endpoints: where they are, what they may be asked, what is made of it."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from conf.fields import Fraction, NonNegativeFloat, PositiveInt, PositiveSeconds, StrictModel

PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
ENV_NAME_PATTERN = "[A-Z_][A-Z0-9_]*"
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")


class EndpointConfig(StrictModel):
    """An OpenAI-compatible endpoint."""

    base_url: str | None = None
    """Address up to and without /chat/completions; no user, query or fragment."""
    model: str | None = None
    """Name that the endpoint knows the model by."""
    key_env: str | None = None
    """Name of the environment variable that holds the key; none: the endpoint wants no key."""
    deadline_s: PositiveSeconds = 60.0
    """One call, its retries and their waits included; waiting for the limits is not."""

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        if self.base_url is not None and not _is_address(self.base_url):  # not shown: it may hold a key
            raise ValueError("base_url must be http(s)://host[:port][/path] without user, query or fragment")
        if self.key_env is not None and not re.fullmatch(ENV_NAME_PATTERN, self.key_env):
            raise ValueError(
                "key_env must be the NAME of an environment variable (A-Z, 0-9, _); what was given is not "
                "shown, it may be a key"
            )
        return self

    def missing(self) -> str | None:
        """The first field that must be set before anybody can be asked; None when all are."""
        return next((name for name in ("base_url", "model") if not getattr(self, name)), None)


class JudgeEndpointConfig(EndpointConfig):
    """A judge behind a chat endpoint, and what it may be asked."""

    repeats: PositiveInt = 1
    """Readings per axis and reply; the score is their mean, its spread is reported."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = 1.0
    """Of JSON and tagged answers; token probabilities are read at 0."""
    max_tokens: PositiveInt | None = None
    """Tokens of one answer; what a model thinks counts. None: 400, and 8 where the answer is one label."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The request's field for that; some models take the newer name alone."""
    reasoning_effort: Annotated[str, Field(pattern=r"^[a-z]+$")] | None = None
    """How long a model may think before it answers (``none``, ``low``, ...); none given: not sent."""
    also_named: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Other names by which this model may answer, as a deployment or a router does: ``[gpt-audio]``."""
    outage_s: PositiveSeconds = 600.0
    """Longest pause while the endpoint is down; then the verdicts that waited are missing."""
    concurrency: PositiveInt = 8
    """Calls on their way at once, over the whole run; also how many replies or groups are in hand."""
    requests_per_minute: PositiveFloat | None = None
    """Requests started in a minute, over the whole run, retries included."""
    audio_seconds_per_minute: PositiveFloat | None = None
    """Seconds of audio sent in a minute, over the whole run."""
    spend_cap: PositiveFloat | None = None
    """After this much no call starts, in the currency of the prices; a resumed run goes on counting."""
    prompt_price: NonNegativeFloat | None = None
    """Of a million prompt tokens."""
    completion_price: NonNegativeFloat | None = None
    """Of a million generated tokens."""
    cache: Path | None = None
    """SQLite file of verdicts that were paid for, on a disk of the machine; none: each call is paid for."""

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        for name in ("prompt_price", "completion_price"):
            if self.spend_cap is not None and getattr(self, name) is None:
                raise ValueError(f"{name} must be set when spend_cap is: got spend_cap={self.spend_cap:g}")
        return self


class ApiConfig(JudgeEndpointConfig):
    """The judge whose verdicts are rewards."""

    compare: Literal["none", "pairwise", "ranking"] = "none"
    """``none``: each reply is scored by itself. ``pairwise``: the replies of a group two by two, in both
    orders; ``ranking``: all in one call. The score then is the share of the others that a reply beats. One
    that is alone (held-out evaluation) is always scored by itself."""
    calibration: Path | None = None
    """Map from this judge's scores to people's, of ``wavgate judge calibrate``; none: as they come."""
    canary_every: Annotated[int, Field(ge=0)] = 20
    """Steps between checks with replies that deserve nothing; before the first step always. 0: only then."""
    canary_stop: bool = False
    """A judge that pays for such a reply ends the run instead of being reported."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.calibration is not None and self.compare != "none":
            raise ValueError(f"calibration maps scores, compare={self.compare} gives win rates: set one of them")
        return self


class SecondConfig(JudgeEndpointConfig):
    """A second opinion, held against the first in the report and never part of a reward."""

    share: Fraction = 0.1
    """Of the replies that it is asked about; which ones is settled by prompt, place and policy version."""
    outage_s: PositiveSeconds = 30.0
    """Longest pause while this endpoint is down; a run should not wait long for an opinion."""


def _is_address(url: str) -> bool:
    if not url.isprintable() or re.search(r"[\s@?#]", url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket or a port that is none
        return False
