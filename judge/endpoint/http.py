"""One POST to an OpenAI-compatible endpoint: what its JSON says, or CallFailed with its kind.

    send_post ── deadline_s over everything ───────────────────────────┐
    │  attempt ── fails: network, 408, 429, 5xx ── wait ── attempt ... │── PostResult | CallFailed
    └──────────────────────────────────────────────────────────────────┘

Invariant: no failure ends as an answer, none lasts longer than the deadline, and none shows the key. This is
the only layer that retries. While an attempt waits for its lease (``under``) the clock of the deadline stands
still. Every attempt has a connection of its own: on one that is kept alive, a server that says more than it was
asked answers the next call with what belongs to the last.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from tenacity.wait import wait_random_exponential

from judge.endpoint.address import Endpoint, read_endpoint_key, redact_key
from judge.endpoint.failures import failure_from_status, make_failure
from judge.types import CallFailed

_T = TypeVar("_T")
_S = TypeVar("_S")
AttemptCall = Callable[[], Awaitable[_T]]
AttemptRunner = Callable[[AttemptCall[_T]], Awaitable[_T]]  # runs an attempt once it has a lease

RETRIED_KINDS = frozenset({"network", "rate_limited", "server"})
FIRST_WAIT = 0.5  # seconds; the window of the first wait, doubled by every further one
MAX_WAIT_S = 8.0
MAX_REASON_LINE_CHARS = 200  # characters of a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PostRequest(Generic[_T]):
    """What is sent, and how the body of a success is read (CallFailed: it is no answer)."""

    path: str  # below the endpoint's address
    content_type: str
    content: bytes
    read: Callable[[bytes], _T]


@dataclass(frozen=True, slots=True, kw_only=True)
class PostResult(Generic[_T]):
    """What was read, and what it took."""

    parsed: _T
    seconds: float  # of the deadline: attempts and the waits between them
    attempts: int


def new_client(connections: int = 100) -> httpx2.AsyncClient:
    """The client that ``send_post`` needs; ``connections`` open at once, more wait within their deadline.

    Takes no proxy and no password from the environment, uses no connection twice and has no clock of its own.
    """
    # Its DEBUG lines show the headers of answers, where a server may repeat the key.
    logging.getLogger("httpcore2").setLevel(logging.INFO)
    return httpx2.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        timeout=None,
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=0),
        headers={"Connection": "close", "Accept": "application/json"},
    )


async def run_at_once(attempt: AttemptCall[_T]) -> _T:
    """The ``under`` of a call that waits for nobody."""
    return await attempt()


async def send_post(
    client: httpx2.AsyncClient, endpoint: Endpoint, request: PostRequest[_T], under: AttemptRunner[_T] = run_at_once
) -> PostResult[_T]:
    """Send, again if need be, until there is an answer or no time for one.

    ``client``: from ``new_client``; any number of calls may share it. ``under``: runs each attempt, may make
    it wait and sees its failure. CallFailed: why there is no answer. ValueError: the key's variable is unset.
    """
    key = read_endpoint_key(endpoint)
    headers = {"Content-Type": request.content_type}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    call = _RetriedPost(
        client, endpoint, headers, request, under, lambda reason: _to_printable_line(redact_key(key, reason))
    )
    failure: CallFailed
    try:
        parsed: _T = await _build_retry_policy(call, endpoint)(call.run_attempt)
    except CallFailed as last:
        failure = last
    else:
        return PostResult(parsed=parsed, seconds=endpoint.deadline_s - call.left_s, attempts=call.attempts)
    # Raised here and not in the handlers: what is chained to a failure holds the request and so the key.
    wait_note = f", asked to wait {call.after_s:g} s" if call.after_s else ""
    attempts = f"attempt {call.attempts} of {endpoint.attempts}{wait_note}"
    reason = f"{failure.reason} ({attempts})"
    raise CallFailed(failure.kind, reason, retryable=failure.retryable, tokens=failure.tokens)


class _RetriedPost(Generic[_T]):
    """The attempts of one request, and what the latest of them left behind."""

    def __init__(
        self,
        client: httpx2.AsyncClient,
        endpoint: Endpoint,
        headers: dict[str, str],
        request: PostRequest[_T],
        under: AttemptRunner[_T],
        shown: Callable[[str], str],
    ) -> None:
        self._client, self._endpoint, self._under, self._shown = client, endpoint, under, shown
        self._headers, self._request = headers, request
        self._url = endpoint.base_url.rstrip("/") + request.path
        self.attempts = 0
        self.left_s = endpoint.deadline_s
        self.after_s = 0.0  # what the server asked to wait
        self._last: CallFailed | None = None

    async def run_attempt(self) -> _T:
        self.attempts += 1
        self.after_s = 0.0
        try:
            return await self._under(self._timed)
        except CallFailed as failure:
            self._last = failure
            raise

    async def rest_between_attempts(self, seconds: float) -> None:
        """Between two attempts."""
        await self._count_elapsed(asyncio.sleep(seconds))

    async def _timed(self) -> _T:
        try:
            async with asyncio.timeout(self.left_s):
                return await self._count_elapsed(self._post())
        except TimeoutError:
            before = f", before that {self._last}" if self._last else ""
            raise make_failure("deadline", f"no whole answer within {self._endpoint.deadline_s:g} s{before}") from None
        except CallFailed as failure:  # the limiter keeps the reason: it must not hold the key either
            raise CallFailed(
                failure.kind,
                self._shown(failure.reason),
                retryable=failure.retryable,
                tokens=failure.tokens,
            ) from None

    async def _count_elapsed(self, doing: Awaitable[_S]) -> _S:
        start = time.monotonic()
        try:
            return await doing
        finally:
            self.left_s -= time.monotonic() - start

    async def _post(self) -> _T:
        most = self._endpoint.max_bytes
        try:
            async with self._client.stream(
                "POST",
                self._url,
                content=self._request.content,
                headers=self._headers,
                follow_redirects=False,
            ) as response:
                if 300 <= response.status_code < 400:
                    location = response.headers.get("location", "nowhere")
                    raise make_failure("redirect", f"HTTP {response.status_code} to {location}")
                body = await _read_body(response, most)
        except httpx2.DecodingError as broken:
            raise make_failure("not_json", f"compressed wrongly: {broken}") from None
        except httpx2.TransportError as broken:
            raise make_failure("network", f"{type(broken).__name__}: {broken}") from None
        if not response.is_success:
            self.after_s = parse_retry_after(response.headers.get("retry-after"), time.time())
            raise await asyncio.to_thread(failure_from_status, response.status_code, body)
        if len(body) > most:
            raise make_failure("too_large", f"more than {most} bytes")
        kind = response.headers.get("content-type", "no content-type").partition(";")[0].strip().lower()
        if not re.fullmatch(r"application/([\w.-]+\+)?json", kind):
            text = body.decode(errors="replace")
            raise make_failure("not_json", f"HTTP {response.status_code} with {kind}: {text}")
        return await asyncio.to_thread(self._request.read, body)  # a megabyte keeps no other call waiting


def _build_retry_policy(call: _RetriedPost[_T], endpoint: Endpoint) -> AsyncRetrying:
    """Full jitter, never sooner than the server asked, and no wait that would end after the deadline.

    Four attempts wait for less than half of the deadline, however short it is.
    """
    jitter = wait_random_exponential(multiplier=min(FIRST_WAIT, endpoint.deadline_s / 16), max=MAX_WAIT_S)

    def wait(state: RetryCallState) -> float:
        return max(jitter(state), call.after_s)

    def over(state: RetryCallState) -> bool:
        return call.attempts >= endpoint.attempts or state.upcoming_sleep >= call.left_s

    return AsyncRetrying(
        sleep=call.rest_between_attempts,
        retry=retry_if_exception(lambda error: isinstance(error, CallFailed) and error.kind in RETRIED_KINDS),
        wait=wait,
        stop=over,
        reraise=True,
    )


async def _read_body(response: httpx2.Response, most: int) -> bytes:
    """The unpacked body; of one longer than ``most`` bytes a part that is longer, too."""
    body = bytearray()
    async with aclosing(response.aiter_bytes()) as parts:  # unpacks at most 1 MiB at once
        async for part in parts:
            body += part
            if len(body) > most:
                break
    return bytes(body)


def parse_retry_after(header: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for; 0 for none, garbage or the past. ``now``: Unix time."""
    wanted = (header or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", wanted):
        return float(wanted)
    try:
        date = parsedate_to_datetime(wanted)
    except (ValueError, OverflowError):
        date = None
    if date is None:
        return 0.0
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)


def _to_printable_line(text: str) -> str:
    """At most ``MAX_REASON_LINE_CHARS`` printable characters of it, on one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 20 * MAX_REASON_LINE_CHARS]).split())
    return line if len(line) <= MAX_REASON_LINE_CHARS else line[: MAX_REASON_LINE_CHARS - 1] + "…"
