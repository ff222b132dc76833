"""The judges' settings."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from conf.fields import Fraction, NonNegative, Positive, Seconds, Strict

By = Literal["local", "api"]
Axis = Literal["semantic", "acoustic", "holistic"]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class EndpointConfig(Strict):
    """An OpenAI-compatible endpoint."""

    base_url: str | None = None
    """Address up to and without /chat/completions; no user, query or fragment."""
    model: str | None = None
    """Name that the endpoint knows the model by."""
    key_env: str | None = None
    """Name of the environment variable that holds the key; none: the endpoint wants no key."""
    deadline_s: Seconds = 60.0
    """One call, its retries and their waits included; waiting for the limits is not."""

    @model_validator(mode="after")
    def _addressed(self) -> Self:
        if self.base_url is not None and not _is_address(self.base_url):  # not shown: it may hold a key
            raise ValueError("base_url must be http(s)://host[:port][/path] without user, query or fragment")
        if self.key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_env):
            raise ValueError(
                "key_env must be the NAME of an environment variable (A-Z, 0-9, _); what was given is not "
                "shown, it may be a key"
            )
        return self

    def missing(self) -> str | None:
        """The first field that must be set before anybody can be asked; None when all are."""
        return next((name for name in ("base_url", "model") if not getattr(self, name)), None)


class AskedConfig(EndpointConfig):
    """A judge behind a chat endpoint, and what it may be asked."""

    repeats: Positive = 1
    """Readings per axis and reply; the score is their mean, its spread is reported."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = 1.0
    """Of JSON and tagged answers; token probabilities are read at 0."""
    outage_s: Seconds = 600.0
    """Longest pause while the endpoint is down; then the verdicts that waited are missing."""
    concurrency: Positive = 8
    """Calls on their way at once, over all judge workers."""
    requests_per_minute: Rate | None = None
    """Requests started in a minute, over all judge workers, retries included."""
    audio_seconds_per_minute: Rate | None = None
    """Seconds of audio sent in a minute, over all judge workers."""
    spend_cap: Rate | None = None
    """After this much no call starts, in the currency of the prices; a resumed run goes on counting."""
    prompt_price: NonNegative | None = None
    """Of a million prompt tokens."""
    completion_price: NonNegative | None = None
    """Of a million generated tokens."""
    cache: Path | None = None
    """SQLite file of verdicts that were paid for, on a disk of the machine; none: each call is paid for."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        for name in ("prompt_price", "completion_price"):
            if self.spend_cap is not None and getattr(self, name) is None:
                raise ValueError(f"{name} must be set when spend_cap is: got spend_cap={self.spend_cap:g}")
        return self


class ApiConfig(AskedConfig):
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
            raise ValueError(
                f"calibration maps scores, compare={self.compare} gives win rates: set one of them"
            )
        return self


class SecondConfig(AskedConfig):
    """A second opinion, held against the first in the report and never part of a reward."""

    share: Fraction = 0.1
    """Of the replies that it is asked about; which ones is settled by prompt, place and policy version."""
    outage_s: Seconds = 30.0
    """Longest pause while this endpoint is down; a run should not wait long for an opinion."""


def _is_address(url: str) -> bool:
    if not url.isprintable() or re.search(r"[\s@?#]", url):
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket or a port that is none
        return False


class JudgeConfig(Strict):
    """Who scores replies and how the axes are put together."""

    workers: Positive = 2
    """Judge replicas."""
    semantic: NonNegative = 0.6
    """Weight of what was said, as heard."""
    acoustic: NonNegative = 0.4
    """Weight of how it sounded."""
    holistic: NonNegative = 0.0
    """Weight of the turn as a whole, heard with the user's own audio; only ``judge.api`` can judge it."""
    semantic_by: By = "local"
    """``local``: is the row's answer in what a recogniser heard? ``api``: ``judge.api`` reads that."""
    acoustic_by: By = "local"
    """``local``: measurements of the waveform; ``api``: ``judge.api`` hears it."""
    scale_lo: float = 1.0
    """Lowest score."""
    scale_hi: float = 5.0
    """Highest score."""
    language_model: Path | None = None
    """ARPA language model of the recogniser; none: the recogniser's own open model."""
    dictionary: Path | None = None
    """Pronunciations of the recogniser; none: its own."""
    deadline_s: Seconds = 60.0
    """A verdict must arrive within this, else it is missing; what ``judge.api`` may take comes on top."""
    max_missing: Fraction = 0.5
    """A step with a larger share of missing verdicts stops the run: nothing is learnt from an outage."""
    api: ApiConfig = ApiConfig()
    second: SecondConfig = SecondConfig()

    @model_validator(mode="after")
    def _has_axis(self) -> Self:
        if self.semantic + self.acoustic + self.holistic <= 0:
            raise ValueError(f"semantic must be positive when the other axes are 0: got {self.semantic}")
        if not self.scale_lo < self.scale_hi:
            raise ValueError(f"scale_lo must be below scale_hi: got [{self.scale_lo}, {self.scale_hi}]")
        absent = (
            self.api.missing() if "api" in (self.semantic_by, self.acoustic_by) or self.holistic else None
        )
        if absent is not None:
            raise ValueError(f"api.{absent} must be set when an axis is judged by api: got nothing")
        if (self.second.base_url is None) != (self.second.model is None):
            raise ValueError("second.base_url and second.model must be set together")
        if self.second.base_url is not None and not self.api_axes:
            raise ValueError("second needs an axis that is judged by api: set semantic_by or acoustic_by")
        return self

    @property
    def api_axes(self) -> tuple[Axis, ...]:
        """The axes that the endpoint is asked about; one of weight 0 is not worth a call."""
        axes: list[Axis] = []
        if self.semantic_by == "api" and self.semantic > 0:
            axes.append("semantic")
        if self.acoustic_by == "api" and self.acoustic > 0:
            axes.append("acoustic")
        if self.holistic > 0:
            axes.append("holistic")
        return tuple(axes)
