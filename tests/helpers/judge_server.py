"""A judge on loopback that behaves: real HTTP, an opinion that the test gives, in the mode it is asked for."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from hashlib import sha256
from math import exp, floor, log
from types import TracebackType
from typing import Any

import numpy as np
import soundfile

from judge.endpoint.limits import EndpointLimits
from judge.llm.answers import AnswerMode
from judge.llm.capabilities import Capabilities

Body = dict[str, Any]
MODEL = "loopback-judge"


def limits(**changes: Any) -> EndpointLimits:
    """Hardly any, but for what a test changes."""
    none: dict[str, Any] = {"requests_per_minute": None, "audio_seconds_per_minute": None, "spend_cap": None}
    return EndpointLimits(**(none | {"concurrency": 8, "breaker_failures": 2, "breaker_rest_s": 0.05} | changes))


def able(mode: AnswerMode) -> Capabilities:
    """What a probe finds at an endpoint whose best way of answering this is."""
    return Capabilities(
        audio=True,
        json_schema=mode != "tagged",
        logprobs=mode == "logprobs",
        choice=False,
        forced=False,
        latency_s=0.1,
        mode=mode,
        ranking="tagged" if mode == "tagged" else "schema",
    )


def by_content(body: Body) -> float:
    """A level between 1 and 5 that depends on the case alone, not on how the answer is asked for."""
    case = json.dumps(body["messages"][1], sort_keys=True)
    return 1 + int(sha256(case.encode()).hexdigest()[:8], 16) % 401 / 100


def said(body: Body) -> str:
    """The text that the user message holds."""
    return "\n".join(part["text"] for part in body["messages"][1]["content"] if part["type"] == "text")


def recordings(body: Body) -> list[tuple[np.ndarray, int]]:
    clips = [part["input_audio"] for part in body["messages"][1]["content"] if part["type"] == "input_audio"]
    return [soundfile.read(io.BytesIO(base64.b64decode(clip["data"])), dtype="float32") for clip in clips]


class JudgeServer:
    """Start it with ``async with``. ``opinion``: body -> level (score), chance that A wins (choice), ranking.

    ``lacks``: what it refuses with status 400, of audio, json_schema, logprobs, choice; hearing: it drops audio
    without a word. ``down``: it answers 503.
    """

    def __init__(self, opinion: Callable[[Body], Any] = by_content, *, lacks: str = "", model: str = MODEL):
        self.opinion, self.lacks, self.model = opinion, lacks.split(), model
        self.down = False
        self.edit: Callable[[Body, str], str] = lambda body, text: text  # the last word on what is said
        self.bodies: list[Body] = []
        self.heads: list[str] = []

    async def __aenter__(self) -> "JudgeServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(x[15:]) for x in head.lower().split("\r\n") if x.startswith("content-length:"))
        body = json.loads(await reader.readexactly(length))
        self.heads.append(head)
        self.bodies.append(body)
        status, answer = self._answer(body)
        data = json.dumps(answer).encode()
        start = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        writer.write(f"{start}Connection: close\r\n\r\n".encode() + data)
        await writer.drain()
        writer.close()

    def _answer(self, body: Body) -> tuple[int, Body]:
        if self.down:
            return 503, {"error": {"message": "down"}}
        for name, used in {
            "audio": any(part["type"] == "input_audio" for part in body["messages"][1]["content"]),
            "json_schema": "response_format" in body,
            "logprobs": "logprobs" in body,
            "choice": "structured_outputs" in body,
        }.items():
            if used and name in self.lacks:
                return 400, {"error": {"message": f"{name} is not supported by this model"}}
        text, logprobs = spoken(body, self.opinion(body))
        message = {"role": "assistant", "content": self.edit(body, text)}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
        clips = 0 if "hearing" in self.lacks else len(recordings(body))
        usage = {"prompt_tokens": 100 + 50 * clips, "completion_tokens": 10}
        return 200, {"model": self.model, "choices": [choice], "usage": usage}


def spoken(body: Body, opinion: Any) -> tuple[str, Body | None]:
    """The text of the answer, and its log-probs where they were asked for."""
    last = body["messages"][0]["content"].rpartition("\n\n")[2]
    field = "ranking" if "ranking" in last else "choice" if "reply A" in last else "score"
    if field == "score":
        share = opinion - floor(opinion)
        chances = {str(floor(opinion)): 1 - share, str(floor(opinion) + 1): share}
    elif field == "choice":
        chances = {"A": opinion, "B": 1 - opinion}
        chances = {"T": 1.0} if opinion == 0.5 else chances
    else:
        chances = {json.dumps(opinion): 1.0}
    label = max(chances, key=lambda name: chances[name])
    if body.get("logprobs"):
        options = [{"token": name, "logprob": log(p)} for name, p in chances.items() if p > exp(-20)]
        taken = {"token": label, "logprob": log(chances[label]), "top_logprobs": options}
        return label, {"content": [taken]}
    if "structured_outputs" in body:
        return label, None
    if "response_format" in body:
        shown = json.dumps(label) if field == "choice" else label
        return f'{{"reason": "It is what was asked for.", "{field}": {shown}}}', None
    return f"It is what was asked for. <{field}>{label.strip('[]')}</{field}>", None
