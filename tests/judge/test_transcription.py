"""The recogniser behind an endpoint: what it sends, and that every failure keeps its kind."""

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile

from conf.judging import AsrConfig
from judge.endpoint.address import Endpoint
from judge.recognisers.choose import build_recogniser
from judge.recognisers.endpoint import EndpointRecogniser, read_transcript
from judge.types import CallFailed, MissingKind, MissingVerdict
from tests.helpers.fault_schedules import FAULTS, SHORT, Fault
from tests.helpers.fault_server import GRACE, LONG, FaultServer, Plan, running
from tests.helpers.judge_builders import Broken, panel_hearing, reply, speech, spoken, task

WAVE = np.random.default_rng(0).normal(0, 0.1, 22_050).astype(np.float32)
TEXT = "the answer is twelve"


class Scribe(BaseHTTPRequestHandler):
    """Answers what it was told to, and remembers what it was sent."""

    said: list[tuple[int, object]]
    got: list[tuple[dict[str, str], dict[str, bytes]]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        form = message_from_bytes(head + body, policy=policy.HTTP)
        parts = {
            str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
            for part in form.iter_parts()  # type: ignore[attr-defined]
        }
        self.got.append(({":path": self.path} | {k.lower(): v for k, v in self.headers.items()}, parts))
        status, answer = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def scribe(*said: tuple[int, object]) -> Iterator[tuple[str, type[Scribe]]]:
    """The address of a server that gives these answers in turn, the last for ever."""
    handler = type("Handler", (Scribe,), {"said": list(said), "got": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def endpoint(base_url: str, key_env: str | None = None, deadline_s: float = 20.0) -> Endpoint:
    return Endpoint(base_url=base_url, model="scribe-1", key_env=key_env, deadline_s=deadline_s)


def test_the_wave_is_sent_at_its_true_rate_with_every_field_and_the_text_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCRIBE_KEY", "sk-canary-5")
    with scribe((200, {"text": " The answer is twelve.\n", "usage": {"type": "duration", "seconds": 1}})) as (
        url,
        server,
    ):
        heard = hearing(url, "SCRIBE_KEY")
    assert heard == "The answer is twelve."
    ((head, parts),) = server.got
    assert head[":path"] == "/v1/audio/transcriptions"
    assert head["authorization"] == "Bearer sk-canary-5"
    assert head["content-type"].startswith("multipart/form-data; boundary=")
    fields = {name: value.decode() for name, value in parts.items() if name != "file"}
    assert fields == {
        "model": "scribe-1",
        "language": "en",
        "response_format": "json",
        "temperature": "0",
    }
    sent, rate = soundfile.read(io.BytesIO(parts["file"]), dtype="float32")
    assert rate == 22_050
    assert np.abs(sent - WAVE).max() < 1e-4


def hearing(url: str, key_env: str | None = None) -> str:
    """One transcription by a listener of its own."""
    with closing(EndpointRecogniser(endpoint(url, key_env), "en")) as listener:
        return listener.transcribe(WAVE, 22_050)


def test_nothing_recorded_is_no_words_and_no_request() -> None:
    with scribe((500, {})) as (url, server):
        assert EndpointRecogniser(endpoint(url), "en").transcribe(np.zeros(0, np.float32), 16_000) == ""
    assert server.got == []


def test_silence_may_be_heard_as_no_words() -> None:
    assert read_transcript(b'{"text": "  "}') == ""


def test_a_retry_helps() -> None:
    with scribe((503, {"error": {"message": "loading"}}), (200, {"text": "yes"})) as (url, server):
        assert hearing(url) == "yes"
    assert len(server.got) == 2


def test_it_works_where_an_event_loop_runs_already() -> None:
    async def inside(url: str) -> str:
        return hearing(url)

    with scribe((200, {"text": "yes"})) as (url, _):
        assert asyncio.run(inside(url)) == "yes"


def test_a_key_that_is_not_set_is_told_before_the_first_reply() -> None:
    with pytest.raises(ValueError, match="SCRIBE_KEY must hold the key"):
        EndpointRecogniser(endpoint("http://127.0.0.1:1/v1", "SCRIBE_KEY"), "en")


def test_a_key_that_the_server_repeats_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIBE_KEY", "sk-canary-5")
    with scribe((200, {"text": "you said sk-canary-5"})) as (url, _):
        assert "canary" not in hearing(url, "SCRIBE_KEY")
    error_body = {"error": {"message": "bad key sk-canary-5"}}
    with scribe((400, error_body)) as (url, _), pytest.raises(CallFailed) as failed:
        hearing(url, "SCRIBE_KEY")
    assert failed.value.kind == "rejected" and "canary" not in str(failed.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"the answer is twelve", "not_json"),
        (b'{"text": "yes", "text": "no"}', "not_json"),
        (b'{"text": null}', "malformed"),
        (b'{"text": 4}', "malformed"),
        (b'["yes"]', "malformed"),
        (b"{}", "malformed"),
        (json.dumps({"text": "so " * 10_000}).encode(), "too_large"),
        (b'{"error": {"message": "busy", "code": 503}}', "server"),
        (b'{"error": {"message": "used up", "code": "insufficient_quota"}}', "quota"),
    ],
)
def test_a_body_without_a_transcript_is_a_failure_of_its_kind(body: bytes, kind: MissingKind) -> None:
    with pytest.raises(CallFailed) as failed:
        read_transcript(body)
    assert failed.value.kind == kind


OF_TRANSPORT = set("deadline network rate_limited quota server rejected redirect not_json too_large".split())


def test_every_fault_of_a_server_ends_as_its_kind_in_time_and_never_as_a_transcript() -> None:
    def heard(listener: EndpointRecogniser) -> tuple[str, float]:
        start = time.monotonic()
        try:
            actual = listener.transcribe(WAVE[:1600], 16_000)
        except CallFailed as failure:
            actual = failure.kind
        seconds = time.monotonic() - start
        listener.close()
        return actual, seconds

    async def one(server: FaultServer, name: str, fault: Fault) -> tuple[str, str, str, float]:
        server.plans[name] = Plan(fault=fault, faults=9, rng=Random(name), text="4")
        deadline = SHORT if fault.kind == "deadline" else LONG
        expected = fault.kind if fault.kind in OF_TRANSPORT else "malformed"  # no answer to a chat is a text
        listener = EndpointRecogniser(server.endpoint(name, deadline, attempts=1), "en")
        actual, seconds = await asyncio.to_thread(heard, listener)
        return name, str(expected), actual, seconds - deadline

    async def all_of_them() -> list[tuple[str, str, str, float]]:
        async with running() as server:
            actual = await asyncio.gather(*(one(server, name, fault) for name, fault in FAULTS.items()))
            assert server.trapped == 0
            return actual

    outcomes = asyncio.run(all_of_them())
    assert [(name, expected, kind) for name, expected, kind, _ in outcomes if kind != expected] == []
    assert max(over for *_, over in outcomes) < GRACE


def test_the_panel_keeps_kind_and_retryable_flag_of_a_failed_call() -> None:
    for failure in (CallFailed("rate_limited", "HTTP 429", retryable=True), CallFailed("quota", "used up")):
        panel = panel_hearing(Broken(failure, 1, TEXT))
        judged = panel.score(reply(TEXT), speech(spoken(TEXT)), task(TEXT))
        for verdict in (*judged.axes.values(), judged.reward):
            assert isinstance(verdict, MissingVerdict)
            assert (verdict.kind, verdict.retryable) == (failure.kind, failure.retryable)
            assert f"recogniser: {failure.reason}" in verdict.reason
        assert judged.transcript is None


def test_the_settings_lead_to_the_endpoint(tmp_path: Path) -> None:
    with scribe((200, {"text": "ja"})) as (url, server):
        config = AsrConfig(by="endpoint", base_url=url, model="scribe-2", language="de")
        assert build_recogniser(config, tmp_path).transcribe(WAVE, 16_000) == "ja"
    assert (server.got[0][1]["model"], server.got[0][1]["language"]) == (b"scribe-2", b"de")
