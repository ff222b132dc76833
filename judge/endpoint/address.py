"""Where an OpenAI-compatible endpoint is and how it wants to be asked.

Invariant: the key is read from the environment when it is needed and kept nowhere.
"""

import os
import re
from dataclasses import dataclass

import httpx2

from conf.endpoints import ENV_NAME_PATTERN, EndpointConfig, JudgeEndpointConfig, SecondConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where and how to ask. ``key_env`` names the environment variable of the key: the key itself is nowhere.

    Raises ValueError: a field breaks its rule.
    """

    base_url: str  # up to and without /chat/completions or another path
    model: str
    key_env: str | None
    deadline_s: float  # over all attempts and the waits between them; waiting for a lease is not counted
    attempts: int = 4
    max_bytes: int = 1 << 20  # of an answer, unpacked
    also_named: tuple[str, ...] = ()  # other names by which the model may answer
    settings: str = "judge.api"  # where its settings are, for reasons that name one

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.base_url)
        except httpx2.InvalidURL as broken:
            raise ValueError(f"base_url must be a URL: {broken}") from None
        if url.userinfo or url.query or url.fragment:  # not shown: it may hold a key
            raise ValueError("base_url must have no user, query or fragment")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"base_url must be http(s)://host[:port][/path]: got {self.base_url!r}")
        if not self.model:
            raise ValueError("model must be named")
        if self.key_env is not None and not re.fullmatch(ENV_NAME_PATTERN, self.key_env):
            raise ValueError(
                "key_env must be the name of an environment variable (A-Z, 0-9, _); "
                "what was given is not shown, it may be a key"
            )
        if not 0 < self.deadline_s < float("inf"):
            raise ValueError(f"deadline_s must be positive and finite: got {self.deadline_s}")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1: got {self.attempts}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1: got {self.max_bytes}")


def endpoint_from_config(config: EndpointConfig) -> Endpoint:
    """Where to ask, by the settings. ValueError: not an address, or nothing to ask there."""
    return Endpoint(
        base_url=config.base_url or "",
        model=config.model or "",
        key_env=config.key_env,
        deadline_s=config.deadline_s,
        also_named=config.also_named if isinstance(config, JudgeEndpointConfig) else (),
        settings="judge.second" if isinstance(config, SecondConfig) else "judge.api",
    )


def read_endpoint_key(endpoint: Endpoint) -> str | None:
    """The key, from the environment; None: the endpoint wants none. ValueError: it is not set, or no key."""
    if endpoint.key_env is None:
        return None
    key = os.environ.get(endpoint.key_env)
    if not key:
        raise ValueError(f"environment variable {endpoint.key_env} must hold the key of {endpoint.base_url}")
    if not re.fullmatch("[!-~]+", key):
        raise ValueError(f"the key in {endpoint.key_env} must be printable ASCII without spaces or line ends")
    return key


def redact_key(key: str | None, text: str) -> str:
    """What an endpoint said, without the key if it repeats it."""
    return text if key is None else text.replace(key, "[key]")
