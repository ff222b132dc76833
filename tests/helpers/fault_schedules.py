"""Every way in which a chat endpoint can fail, as functions that write bytes, with what each has to end as.

Bytes and not an HTTP library, so that a fault may reset, drip, lie about lengths or say nothing.
"""

import asyncio
import gzip
import json
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from random import Random
from typing import Any

from judge.types import MissingKind

MODEL = "judge-1"
SHORT = 0.3  # seconds: the deadline of calls that must meet it
Handler = Callable[["Request"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was read to its end, and the connection for the answer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rng: Random
    head: str
    good: bytes  # the answer that a healthy endpoint gives

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client hangs up."""
        await self.reader.read()

    def cut(self, data: bytes) -> bytes:
        """A beginning of ``data`` that lacks at least its last byte."""
        return data[: self.rng.randrange(1, len(data))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``kind``: how a call ends that meets nothing else; None: with an Answer."""

    handler: Handler
    kind: MissingKind | None
    again: bool = False  # the client tries again by itself


def completion(text: str | None = "4", model: str = MODEL, **choice: Any) -> bytes:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text} | choice.pop("message", {})
    first = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None} | choice
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return json.dumps({"object": "chat.completion", "model": model, "choices": [first], "usage": usage}).encode()


def message(status: int, body: bytes = b"", **headers: str | None) -> bytes:
    """An HTTP/1.1 response; a header given as None is left out, ``_`` in names stands for ``-``."""
    named = {"content_type": "application/json", "content_length": str(len(body))}
    lines = [f"{key.replace('_', '-')}: {value}" for key, value in (named | headers).items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status} Because", *lines, "", ""]).encode("latin-1") + body


def error(text: str, code: str | int | None = None) -> bytes:
    return json.dumps({"error": {"message": text, "type": code, "code": code}}).encode()


def says(status: int, body: bytes, **headers: str | None) -> Handler:
    async def handler(request: Request) -> None:
        await request.send(message(status, body, **headers))

    return handler


def packed(body: bytes, *codings: str) -> Handler:
    async def handler(request: Request) -> None:
        await request.send(message(200, body, content_encoding=", ".join(codings)))

    return handler


# --- the clock


async def hang(request: Request) -> None:
    await request.gone()


async def drip_headers(request: Request) -> None:
    await request.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await request.send(b"x")
        await asyncio.sleep(0.02)


async def drip_body(request: Request) -> None:
    whole = message(200, b" " * 900_000 + request.good)  # for a minute and a half
    for start in range(0, len(whole), 200):
        await request.send(whole[start : start + 200])
        await asyncio.sleep(0.02)


async def drip_interim(request: Request) -> None:
    while True:
        await request.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(0.02)


async def late(request: Request) -> None:
    await asyncio.sleep(SHORT + 0.2)
    await request.send(message(200, request.good))


async def never_ends(request: Request) -> None:
    """A whole answer, but more was announced: who reads JSON as it comes takes it."""
    await request.send(message(200, request.good, content_length=str(len(request.good) + 1)))
    await request.gone()


async def error_without_end(request: Request) -> None:
    await request.send(message(500, b"", content_length="10"))
    await request.gone()


# --- the connection


async def reset(request: Request) -> None:
    linger = struct.pack("ii", 1, 0)  # a close that sends RST
    request.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.writer.transport.abort()


async def reset_in_headers(request: Request) -> None:
    await request.send(request.cut(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"))
    await reset(request)


async def reset_in_body(request: Request) -> None:
    await request.send(message(200, request.cut(request.good), content_length=str(len(request.good))))
    await reset(request)


async def leave(request: Request) -> None:
    request.writer.close()


async def leave_in_body(request: Request) -> None:
    await request.send(message(200, request.cut(request.good), content_length=str(len(request.good))))


async def leave_in_chunks(request: Request) -> None:
    """Every byte of the answer, but not the chunk that says that this was all."""
    chunk = b"%x\r\n%s\r\n" % (len(request.good), request.good)
    await request.send(message(200, transfer_encoding="chunked", content_length=None) + chunk)


async def bad_chunks(request: Request) -> None:
    await request.send(message(200, transfer_encoding="chunked", content_length=None) + b"oops\r\n" + request.good)


async def not_http(request: Request) -> None:
    await request.send(b"SSH-2.0-OpenSSH_9.9\r\n")


async def two_lengths(request: Request) -> None:
    size = len(request.good)
    await request.send(message(200, request.good, content_length=f"{size}\r\nContent-Length: {size - 1}"))


async def huge_headers(request: Request) -> None:
    await request.send(message(200, request.good, x_filler="x" * 300_000))


# --- the body


async def truncated(request: Request) -> None:
    await request.send(message(200, request.cut(request.good)))


async def truncated_gzip(request: Request) -> None:
    data = gzip.compress(request.good)
    await request.send(message(200, data[: len(data) // 2], content_encoding="gzip"))


async def twice(request: Request) -> None:
    await request.send(message(200, request.good * 2))


async def wrong_type(request: Request) -> None:
    await request.send(message(200, request.good, content_type="text/plain"))


async def no_type(request: Request) -> None:
    await request.send(message(200, request.good, content_type=None))


async def events(request: Request) -> None:
    await request.send(message(200, b"data: " + request.good + b"\n\n", content_type="text/event-stream"))


async def duplicate_keys(request: Request) -> None:
    await request.send(message(200, request.good.replace(b'"choices"', b'"choices": [], "choices"')))


async def byte_order_mark(request: Request) -> None:
    await request.send(message(200, b"\xef\xbb\xbf" + request.good))


async def junk(request: Request) -> None:
    await request.send(message(200, request.good.replace(b'"4', b'"4\xff\xc0' + request.rng.randbytes(8))))


async def not_gzip(request: Request) -> None:
    await request.send(message(200, request.good, content_encoding="gzip"))


async def endless(request: Request) -> None:
    await request.send(message(200, transfer_encoding="chunked", content_length=None))
    while True:
        await request.send(b"10000\r\n" + b" " * 65536 + b"\r\n")


@cache
def bomb() -> bytes:
    """32 MB in less than 200 kB."""
    return gzip.compress(b" " * (32 << 20), 1)


async def gzip_bomb(request: Request) -> None:
    await packed(bomb(), "gzip")(request)


async def double_gzip_bomb(request: Request) -> None:
    await packed(gzip.compress(bomb()), "gzip", "gzip")(request)


# --- good answers in odd ways


async def keeps_open(request: Request) -> None:
    await request.send(message(200, request.good, connection="keep-alive"))
    await request.gone()


async def in_pieces(request: Request) -> None:
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in request.good) + b"0\r\n\r\n"
    await request.send(message(200, body, transfer_encoding="chunked", content_length=None))


async def compressed(request: Request) -> None:
    await packed(gzip.compress(request.good), "gzip")(request)


async def two_answers(request: Request) -> None:
    """The second would be taken for the answer to the next question on this connection."""
    await request.send(message(200, request.good) + message(200, completion("another's answer")))


async def echo(request: Request) -> None:
    """What some proxies do with an unknown key, in a page of its own."""
    await request.send(message(401, error("x" * 150 + " refused: " + " ".join(request.head.split()))))


def ends(kind: MissingKind | None, *named: Handler, again: bool = False, **others: Handler) -> dict[str, Fault]:
    """Faults that all end as ``kind``, by the names of their functions or by those given."""
    handlers = {handler.__name__: handler for handler in named} | others
    return {name: Fault(handler=handler, kind=kind, again=again) for name, handler in handlers.items()}


FAULTS: dict[str, Fault] = (
    ends("deadline", hang, drip_headers, drip_body, drip_interim, late, never_ends, error_without_end)
    | ends("network", reset, reset_in_headers, reset_in_body, leave, leave_in_body, again=True)
    | ends("network", leave_in_chunks, bad_chunks, not_http, two_lengths, huge_headers, again=True)
    | ends("network", status_408=says(408, b""), again=True)
    | ends(
        "rate_limited",
        again=True,
        limited=says(429, error("slow down", "rate_limit_exceeded")),
        limited_short=says(429, b"", retry_after="0.01"),
        limited_garbage=says(429, b"", retry_after="soon; or -1, NaN"),
        limited_past=says(429, b"", retry_after="Mon, 01 Jan 2024 00:00:00 GMT"),
        limited_inside_200=says(200, error("slow down", 429)),
    )
    | ends(
        "rate_limited",
        limited_long=says(429, b"", retry_after="86400"),
        limited_endless=says(429, b"", retry_after="9" * 400),
        limited_date=says(429, b"", retry_after=formatdate(time.time() + 86_400, usegmt=True)),
    )
    | ends(
        "quota",
        quota=says(429, error("You exceeded your current quota", "insufficient_quota")),
        status_402=says(402, b"pay"),
        billing=says(403, error("no card", "billing_not_active"), retry_after="0"),
    )
    | ends(
        "server",
        again=True,
        status_500=says(500, error("oops")),
        status_502=says(502, b"<html>Bad Gateway</html>", content_type="text/html"),
        status_503=says(503, b"", retry_after="0"),
        status_529=says(529, error("overloaded", "overloaded_error")),
        error_inside_200=says(200, error("upstream died")),
    )
    | ends("server", status_503_long=says(503, b"", retry_after="3600"))
    | ends(
        "rejected",
        echo,
        status_400=says(400, error("response_format is not supported", "invalid_request_error")),
        status_404=says(404, b"[" * 50_000),
        status_413=says(413, b"\x00\xff" * 300_000),
        status_418=says(418, error("teapot")),
        status_422=says(422, b'{"detail": [{"loc": ["body"]}]}'),
    )
    | ends(
        "redirect",
        redirect=says(307, b"", location="/trap/v1/chat/completions"),
        redirect_forever=says(302, b"", location=""),
        redirect_away=says(301, b"", location="http://169.254.169.254/latest/"),
        redirect_nowhere=says(303, b""),
        redirect_garbage=says(308, b"", location="http://[::1:x/"),
    )
    | ends("not_json", truncated, truncated_gzip, twice, wrong_type, no_type, events, duplicate_keys)
    | ends(
        "not_json",
        junk,
        not_gzip,
        html=says(200, b"<html>Sign in</html>", content_type="text/html; charset=utf-8"),
        invalid=says(200, b"{'choices': [],}"),
        nan=says(200, b'{"choices": [], "usage": NaN}'),
        overflow=says(200, b'{"choices": [], "created": 1e999}'),
        long_number=says(200, b'{"choices": [], "created": ' + b"9" * 5000 + b"}"),
        utf_16=says(200, completion().decode().encode("utf-16")),
        half_a_character=says(200, completion("\ud800 5")),
        deep=says(200, b"[" * 200_000),
        unknown_coding=says(200, b"\x1b\x00\x00junk", content_encoding="br"),
        nothing=says(200, b""),
        status_204=says(204, b"", content_length=None),
    )
    | ends("too_large", endless, gzip_bomb, double_gzip_bomb, huge=says(200, b" " * 2_000_000 + completion()))
    | ends(
        "empty",
        no_choices=says(200, json.dumps({"model": MODEL, "choices": []}).encode()),
        null_choices=says(200, b'{"choices": null}'),
        no_message=says(200, b'{"choices": [{"finish_reason": "stop"}]}'),
        null_content=says(200, completion(None)),
        blank_content=says(200, completion(" \n\t")),
    )
    | ends(
        "refusal",
        refusal=says(200, completion(None, message={"refusal": "I cannot judge this."})),
        refusal_beside_score=says(200, completion("5", message={"refusal": "No."})),
        filtered=says(200, completion("5", finish_reason="content_filter")),
    )
    | ends(
        "malformed",
        cut_off=says(200, completion("<score>5", finish_reason="length")),
        cut_off_before_content=says(200, completion(None, finish_reason="length")),
        a_number=says(200, b"5"),
        a_list=says(200, b"[]"),
        choices_as_text=says(200, b'{"choices": "5"}'),
        content_as_number=says(200, completion().replace(b'"4"', b"4")),
        sure_beyond_one=says(200, completion(logprobs={"content": [{"token": "4", "logprob": 800.0}]})),
    )
    | ends(
        "wrong_model",
        wrong_model=says(200, completion(model="cheaper-2")),
        shorter_model=says(200, completion(model=MODEL[:-1])),
    )
    | ends(None, keeps_open, in_pieces, compressed, two_answers, byte_order_mark)
)
