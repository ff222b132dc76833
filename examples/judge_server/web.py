"""As much HTTP/1.1 as a judge needs: one request per connection, its body whole, one answer.

Invariant: whatever is sent, the connection ends with an answer or a hang-up, and nobody holds more than
``MOST_BODY`` bytes or ``READ_S`` seconds. Errors are JSON as OpenAI's are.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MOST_HEAD = 1 << 14  # bytes
MOST_BODY = 1 << 24  # bytes: a group of eight replies of half a minute each
READ_S = 60.0  # for a whole request
DRAIN_S = 2.0  # for what a refused client still has to say: it reads no answer before
AT_ONCE = 64  # requests; more wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, a JSON document unless ``kind`` says otherwise."""

    status: int
    body: Any
    kind: str = "application/json"

    def encoded(self) -> bytes:
        """Head and body."""
        data = json.dumps(self.body) if self.kind == "application/json" else str(self.body)
        content = data.encode()
        head = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\nContent-Type: {self.kind}\r\n"
        return f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content


class Refused(Exception):
    """The request cannot be answered; ``status`` says whose fault that is."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self) -> Response:
        """The error as the client sees it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return Response(self.status, {"error": {"message": str(self), "type": kind, "code": None}})


Handler = Callable[[Request], Awaitable[Response]]


async def listen(host: str, port: int, handler: Handler) -> asyncio.Server:
    """A server that accepts connections; port 0: any free one. OSError: the address cannot be had."""
    places = asyncio.Semaphore(AT_ONCE)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with places:
                response = await _answer(reader, handler)
            writer.write(response.encoded())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):  # the client hung up
            pass
        finally:
            writer.close()

    return await asyncio.start_server(connected, host, port, limit=MOST_HEAD, backlog=512)


async def _answer(reader: asyncio.StreamReader, handler: Handler) -> Response:
    try:
        async with asyncio.timeout(READ_S):
            request = await _read(reader)
    except TimeoutError:
        return Refused(408, f"no whole request within {READ_S:g} s").response()
    except Refused as refused:
        await _drain(reader)
        return refused.response()
    try:
        return await handler(request)
    except Refused as refused:
        return refused.response()
    except Exception as error:  # the border: a bug costs one answer and not the server
        logging.exception("the judge failed")
        return Refused(500, f"the judge failed: {type(error).__name__}").response()


async def _read(reader: asyncio.StreamReader) -> Request:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError:
        raise Refused(431, f"headers must not exceed {MOST_HEAD} bytes") from None
    first, *lines = head.rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(400, "not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or (name.lower() == "content-length" and name.lower() in headers):
            raise Refused(400, "malformed headers")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(_length(words[0], headers))
    return Request(method=words[0], path=words[1].partition("?")[0], headers=headers, body=body)


def _length(method: str, headers: Mapping[str, str]) -> int:
    length = headers.get("content-length", "0" if method == "GET" else "")
    if "transfer-encoding" in headers or not length:
        raise Refused(411, "a body must come with its Content-Length")
    if not (length.isascii() and length.isdigit()):
        raise Refused(400, "Content-Length must be a number")
    if len(length) > 12 or int(length) > MOST_BODY:
        raise Refused(413, f"a request must not exceed {MOST_BODY} bytes")
    return int(length)


async def _drain(reader: asyncio.StreamReader) -> None:
    """Read on for a moment: a connection that is closed over unread bytes takes the answer with it."""
    try:
        async with asyncio.timeout(DRAIN_S):
            for _ in range(2 * MOST_BODY // MOST_HEAD):
                if not await reader.read(MOST_HEAD):
                    return
    except TimeoutError:
        return
