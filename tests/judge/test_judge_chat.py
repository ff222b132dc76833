import asyncio
import json
import logging
import socket
import traceback
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate
from math import isfinite
from random import Random
from typing import Any, TypeVar, get_args

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.endpoint.address import Endpoint
from judge.endpoint.chat import ChatAnswer, ask_endpoint
from judge.endpoint.completion import read_completion
from judge.endpoint.http import new_client, parse_retry_after
from judge.endpoint.strict_json import parse_strict_json
from judge.types import CallFailed, MissingKind
from tests.helpers.fault_schedules import (
    FAULTS,
    MODEL,
    Fault,
    Handler,
    completion,
    error,
    hang,
    message,
    says,
    two_answers,
)
from tests.helpers.fault_server import FaultServer, Plan, running, storm
from tests.helpers.processes import HANG_S

KEY = "sk-canary-7f3a9b"
BODY = {"messages": [{"role": "user", "content": "?"}], "model": "another"}
Found = TypeVar("Found")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried soon."""
    monkeypatch.setattr("judge.endpoint.http.FIRST_WAIT", 0.02)


def plan(server: FaultServer, handler: Handler, faults: int = 1, text: str = "good", name: str = "plan") -> Plan:
    """What calls to ``name`` meet from now on."""
    fault = Fault(handler=handler, kind=None)
    server.plans[name] = Plan(fault=fault, faults=faults, rng=Random(0), text=text)
    return server.plans[name]


def with_server(work: Callable[[FaultServer, httpx2.AsyncClient], Awaitable[Found]], connections: int = 100) -> Found:
    async def whole() -> Found:
        async with running() as server, new_client(connections) as client:
            return await work(server, client)

    return asyncio.run(whole())


def one(
    handler: Handler, faults: int = 1, deadline_s: float = HANG_S, **fields: Any
) -> tuple[ChatAnswer | CallFailed, Plan]:
    """One call that meets ``handler``: how it ended, and what the server saw."""

    async def work(server: FaultServer, client: httpx2.AsyncClient) -> tuple[ChatAnswer | CallFailed, Plan]:
        met = plan(server, handler, faults)
        answer: ChatAnswer | CallFailed
        try:
            answer = await ask_endpoint(client, server.endpoint("plan", deadline_s, **fields), BODY)
        except CallFailed as failure:
            answer = failure
        return answer, met

    return with_server(work)


def failure_of(handler: Handler, faults: int = 1, deadline_s: float = HANG_S, **fields: Any) -> CallFailed:
    actual, _ = one(handler, faults, deadline_s, **fields)
    assert isinstance(actual, CallFailed), actual
    return actual


# --- every fault


def test_every_fault_ends_as_its_own_kind_in_time_and_never_as_an_answer() -> None:
    outcomes = asyncio.run(storm(FAULTS, schedules=3, seed=0, concurrency=16))
    assert len(outcomes) == 3 * len(FAULTS)
    assert [outcome for outcome in outcomes if outcome.wrong] == []
    assert any(outcome.kind is None and FAULTS[outcome.name].again for outcome in outcomes), "a retry that helped"


def test_there_is_a_fault_for_every_kind_that_a_call_can_end_as() -> None:
    elsewhere = {
        "nothing_to_check",
        "aborted",
        "recogniser",
        "out_of_range",
        "language",
        "unsure",
        "spend_cap",
        "breaker",
    }
    assert {fault.kind for fault in FAULTS.values()} - {None} == set(get_args(MissingKind)) - elsewhere
    assert len(FAULTS) >= 25


def test_a_storm_sees_a_client_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "planted", Fault(handler=FAULTS["refusal"].handler, kind="quota"))
    monkeypatch.setitem(FAULTS, "asked_twice", Fault(handler=FAULTS["status_500"].handler, kind="server"))
    outcomes = asyncio.run(storm(["planted", "asked_twice"], schedules=2, seed=0))
    assert all(outcome.wrong for outcome in outcomes)


# --- retries and the clock


def test_a_retry_waits_as_long_as_the_server_asks() -> None:
    actual, met = one(says(429, b"", retry_after="1"))
    assert isinstance(actual, ChatAnswer)
    assert actual.attempts == 2
    assert actual.seconds >= 1
    assert met.times[1] - met.times[0] >= 1


def test_a_wait_that_would_pass_the_deadline_is_not_begun() -> None:
    actual, met = one(says(429, b"", retry_after=f"{HANG_S + 1:.0f}"), deadline_s=HANG_S)
    assert isinstance(actual, CallFailed)
    assert (actual.kind, actual.retryable, len(met.times)) == ("rate_limited", True, 1)
    assert f"asked to wait {HANG_S + 1:.0f} s" in actual.reason


def test_the_deadline_is_one_for_all_attempts() -> None:
    async def slow(request: Any) -> None:
        await asyncio.sleep(0.25)
        await says(500, b"")(request)

    actual, met = one(slow, faults=9, deadline_s=0.6, attempts=9)
    assert isinstance(actual, CallFailed)
    assert actual.kind in {"deadline", "server"}
    assert len(met.times) <= 3


def test_a_call_that_waits_for_a_connection_keeps_its_deadline_and_gives_the_connection_back() -> None:
    async def work(server: FaultServer, client: httpx2.AsyncClient) -> list[ChatAnswer | BaseException]:
        stuck_at = plan(server, hang, faults=99)
        endpoint = server.endpoint("plan", 0.5)
        stuck = await asyncio.gather(
            *(ask_endpoint(client, endpoint, BODY) for _ in range(20)), return_exceptions=True
        )
        assert len(stuck_at.heads) < 10, "they waited for one connection, not one after the other"
        plan(server, hang, faults=0)
        return [*stuck, await ask_endpoint(client, server.endpoint("plan", HANG_S), BODY)]

    *stuck, healthy = with_server(work, connections=1)
    assert [failure.kind for failure in stuck if isinstance(failure, CallFailed)] == ["deadline"] * 20
    assert isinstance(healthy, ChatAnswer)


async def asked_at(port: int, deadline_s: float) -> ChatAnswer:
    where = Endpoint(base_url=f"http://127.0.0.1:{port}", model=MODEL, key_env=None, deadline_s=deadline_s)
    async with new_client() as client:
        return await ask_endpoint(client, where, BODY)


def test_the_deadline_covers_the_connecting() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # the queue of the listener is full: nobody else gets an answer to SYN
            each.setblocking(False)
            each.connect_ex(address)

        with pytest.raises(CallFailed) as failure:
            asyncio.run(asked_at(address[1], 0.3))
        for each in waiting:
            each.close()
    assert failure.value.kind == "deadline"


def test_nobody_there_is_a_network_failure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening

        with pytest.raises(CallFailed) as failure:
            asyncio.run(asked_at(taken.getsockname()[1], HANG_S))
    assert (failure.value.kind, failure.value.retryable) == ("network", True)


def test_a_call_that_is_cancelled_from_outside_is_cancelled() -> None:
    async def work(server: FaultServer, client: httpx2.AsyncClient) -> None:
        plan(server, hang)
        task = asyncio.create_task(ask_endpoint(client, server.endpoint("plan", 5.0), BODY))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_server(work)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        (" 0.5 ", 0.5),
        ("-3", 0),
        ("+3", 0),
        ("1e3", 0),
        ("NaN", 0),
        ("inf", 0),
        ("٣", 0),
        ("1, 2", 0),
        ("soon", 0),
        (formatdate(1_800_000_060, usegmt=True), 60),
        (formatdate(1_800_000_060), 60),
        (formatdate(1_700_000_000, usegmt=True), 0),
        ("Mon, 99 Foo 2026 00:00:00 GMT", 0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0),
        ("Mon, 01 Jan 2024 00:00:00 +999999999", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_garbage_asks_for_nothing(header: str | None, seconds: float) -> None:
    assert parse_retry_after(header, now=1_800_000_000) == seconds


@given(st.one_of(st.text(), st.from_regex(r"\w{3}, \d{1,3} \w{3} \d{1,6} \d\d:\d\d:\d\d [-+]?\w{1,5}")))
def test_no_retry_after_header_breaks_the_client(header: str) -> None:
    assert parse_retry_after(header, now=1_800_000_000) >= 0


@given(st.datetimes(datetime(2027, 2, 1), datetime(2100, 1, 1)))
def test_any_date_to_come_is_waited_for(date: datetime) -> None:
    date = date.replace(tzinfo=UTC, microsecond=0)
    assert parse_retry_after(format_datetime(date, usegmt=True), now=1_800_000_000) == date.timestamp() - 1_800_000_000


# --- what is sent, and to whom


def test_the_endpoints_model_is_asked_with_the_key_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "old")
    bodies = []

    async def work(server: FaultServer, client: httpx2.AsyncClient) -> list[str]:
        met = plan(server, hang, faults=0)
        endpoint = server.endpoint("plan", HANG_S, key_env="JUDGE_KEY")
        monkeypatch.setenv("JUDGE_KEY", KEY)
        client.event_hooks["request"] = [lambda request: asyncio.sleep(0, bodies.append(request.content))]
        await ask_endpoint(client, endpoint, BODY)
        return met.heads

    (head,) = with_server(work)
    assert head.startswith("POST /plan/v1/chat/completions HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {KEY}\r\n" in head
    assert json.loads(bodies[0]) == BODY | {"model": MODEL}


def test_without_a_key_nothing_is_authorized() -> None:
    _, met = one(hang, faults=0)
    assert "authorization" not in met.heads[0].lower()


def test_proxies_and_passwords_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", str(netrc))
    actual, met = one(hang, faults=0)
    assert isinstance(actual, ChatAnswer)
    assert "authorization" not in met.heads[0].lower()


def test_a_surplus_answer_is_never_taken_for_that_of_the_next_call() -> None:
    async def second_text(client: httpx2.AsyncClient) -> str:
        async with running() as server, client:
            plan(server, two_answers, faults=9, text="mine")
            endpoint = server.endpoint("plan", HANG_S)
            await ask_endpoint(client, endpoint, BODY)
            return (await ask_endpoint(client, endpoint, BODY)).text

    assert asyncio.run(second_text(new_client())) == "mine"
    assert asyncio.run(second_text(httpx2.AsyncClient())) == "another's answer"  # what kept-alive connections do


# --- secrets


def test_the_key_is_in_no_exception_no_record_and_no_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    shown = []
    for handler in (
        FAULTS["echo"].handler,
        *(says(400, b"x" * before + KEY.encode()) for before in range(170, 200, 5)),  # a cut would halve it
        says(302, b"", location=f"https://elsewhere/?key={KEY}"),
        says(200, f"<html>{KEY}".encode(), content_type="text/html"),
        says(200, completion(None, message={"refusal": KEY})),
        says(200, completion(model=KEY)),
        says(500, error(KEY)),
        FAULTS["reset"].handler,
        hang,
    ):
        deadline_s = 0.5 if handler is hang else HANG_S
        failure = failure_of(handler, faults=9, deadline_s=deadline_s, key_env="JUDGE_KEY", attempts=2)
        while failure is not None:
            shown += [str(failure), repr(failure), failure.reason, *traceback.format_exception(failure)]
            assert failure.__context__ is None
            failure = failure.__cause__
    actual, _ = one(says(200, completion(f"your key is {KEY}")), key_env="JUDGE_KEY")
    assert isinstance(actual, ChatAnswer)
    assert actual.text == "your key is [key]"
    shown += [caplog.text, repr(actual)]
    assert "401" in "".join(shown)
    assert KEY[:4] not in "".join(shown)


def test_error_pages_are_quoted_short_and_printable() -> None:
    failure = failure_of(says(400, b"\x1b[31m\x00evil\r\n\xff\xe2\x80\xae" + b"long " * 1000))
    assert failure.reason.isprintable()
    assert "evil" in failure.reason
    assert len(failure.reason) < 250


@pytest.mark.parametrize("value", [None, "", "two words", "wrapped\n", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ValueError, match="JUDGE_KEY") as mistake:
        one(hang, key_env="JUDGE_KEY")
    assert not value or value.strip() not in str(mistake.value)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"base_url": "api.example.com/v1"}, "base_url must be"),
        ({"base_url": "ftp://api.example.com"}, "base_url must be"),
        ({"base_url": "https:///v1"}, "base_url must be"),
        ({"base_url": "https://host:port/"}, "base_url must be"),
        ({"base_url": f"https://me:{KEY}@host/v1"}, "no user"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "no user, query"),
        ({"model": ""}, "model must"),
        ({"key_env": KEY}, "key_env must be the name"),
        ({"key_env": "AIzaSyCanary"}, "key_env must be the name"),
        ({"deadline_s": 0.0}, "deadline_s must be positive"),
        ({"deadline_s": float("inf")}, "deadline_s must be positive"),
        ({"deadline_s": float("nan")}, "deadline_s must be positive"),
        ({"attempts": 0}, "attempts must be at least 1: got 0"),
        ({"max_bytes": 0}, "max_bytes must be at least 1: got 0"),
    ],
)
def test_an_endpoint_that_cannot_work_is_refused_without_showing_a_key(fields: dict[str, Any], rule: str) -> None:
    good = {"base_url": "https://host/v1", "model": MODEL, "key_env": None, "deadline_s": 1.0}
    with pytest.raises(ValueError, match=rule) as mistake:
        Endpoint(**good | fields)
    assert KEY not in str(mistake.value)
    assert "AIza" not in str(mistake.value)


# --- reading


def test_an_answer_brings_its_text_alternatives_and_costs() -> None:
    options = [
        {"token": "4", "logprob": -0.25},
        {"token": " 4", "logprob": -2},
        {"token": "5", "logprob": -9999.0},
    ]
    tokens = [
        {"token": "4", "logprob": -0.25, "bytes": [52], "top_logprobs": options},
        {"token": ".", "logprob": -7.5, "top_logprobs": [{"token": "!", "logprob": -0.1}]},
        {"token": "x", "logprob": 0, "top_logprobs": None},
    ]
    actual, _ = one(says(200, completion("4.x", model=f"{MODEL}-2026-11-22", logprobs={"content": tokens})))
    assert isinstance(actual, ChatAnswer)
    assert actual.text == "4.x"
    assert actual.logprobs == [
        [("4", -0.25), (" 4", -2.0), ("5", -9999.0)],
        [(".", -7.5), ("!", -0.1)],  # the token that was taken comes first, though it was not among the top
        [("x", 0.0)],
    ]
    assert (actual.prompt_tokens, actual.completion_tokens, actual.attempts) == (7, 2, 1)
    assert 0 < actual.seconds < HANG_S


def test_model_and_usage_may_be_absent() -> None:
    actual = read_completion(b'{"choices": [{"message": {"content": "4"}}], "usage": null}', MODEL)
    assert (actual.text, actual.logprobs, actual.prompt_tokens, actual.completion_tokens) == ("4", [], 0, 0)


@pytest.mark.parametrize("end", range(0, len(completion()), 7))
def test_no_beginning_of_an_answer_is_an_answer(end: int) -> None:
    with pytest.raises(CallFailed, match="not_json"):
        read_completion(completion()[:end], MODEL)


@given(st.binary())
def test_bytes_are_an_answer_or_a_named_failure(noise: bytes) -> None:
    with pytest.raises(CallFailed):
        read_completion(noise, MODEL)


@given(st.integers(0, len(completion()) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_a_damaged_answer_is_an_answer_with_finite_log_probs_or_a_named_failure(at: int, put: bytes, cut: int) -> None:
    whole = completion(logprobs={"content": [{"token": "4", "logprob": -0.5}]})
    try:
        actual = read_completion(whole[:at] + put + whole[at + cut :], MODEL)
    except CallFailed:
        return
    assert actual.text.strip()
    assert all(isfinite(value) and value < 0.01 for token in actual.logprobs for _, value in token)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(trees, st.booleans())
def test_whatever_json_can_say_is_read_as_it_was_said(tree: Any, ascii_only: bool) -> None:
    assert parse_strict_json(json.dumps(tree, ensure_ascii=ascii_only).encode()) == tree


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 1}', '{"b": [{"a": 1, "a": 2}]}', "NaN", "-Infinity", "[1e400]", "-1e400", '"\\udc00"', '"\\uD83d"', "[" * 99999, "9" * 5000, "", "{} {}"],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_json_that_can_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_strict_json(text.encode())


def test_a_bomb_is_not_unpacked() -> None:
    """32 MB arrive in less than 200 kB; the limit is 64 KiB, one step of unpacking 1 MiB."""

    async def work(server: FaultServer, client: httpx2.AsyncClient) -> int:
        plan(server, FAULTS["gzip_bomb"].handler)
        tracemalloc.start()
        try:
            with pytest.raises(CallFailed, match="too_large"):
                await ask_endpoint(client, server.endpoint("plan", HANG_S, max_bytes=1 << 16), BODY)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert with_server(work) < 8 << 20


def test_an_answer_of_exactly_the_allowed_size_is_read() -> None:
    body = completion()
    assert isinstance(one(says(200, body), max_bytes=len(body))[0], ChatAnswer)
    assert failure_of(says(200, body), max_bytes=len(body) - 1).kind == "too_large"


def test_googles_list_of_errors_is_understood() -> None:
    listed = json.dumps([{"error": {"code": 429, "status": "insufficient_quota"}}]).encode()
    assert failure_of(says(429, listed)).kind == "quota"


def test_the_server_speaks_the_http_that_it_means() -> None:
    assert message(200, b"{}", x_a="1") == (
        b"HTTP/1.1 200 Because\r\ncontent-type: application/json\r\ncontent-length: 2\r\nx-a: 1\r\n\r\n{}"
    )
