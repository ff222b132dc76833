"""The judge's routes, and the troubles that it can be told to have.

    GET  /v1/models                 its one model
    POST /v1/chat/completions       a case in, a score, a choice or a ranking out
    POST /v1/audio/transcriptions   a WAV in, the words that a recogniser for this world hears out

Invariant: what it does to a request depends on seed, request and how often the same one came before: two
servers that are asked the same things answer alike.
"""

import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from email import message_from_bytes
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

from examples.judge_server.case import Case, decoded_wav, read_case, read_chat
from examples.judge_server.opinion import SCALE, opinion
from examples.judge_server.web import Refused, Request, Response
from examples.judge_server.wording import (
    NO_SCORE,
    Worded,
    choice_chances,
    drawn,
    ranking,
    score_chances,
    worded,
)
from examples.tiny_world.build import DATA
from judge.recognisers.pocketsphinx import PocketsphinxRecogniser
from rollout.types import Speech

MODEL = "tiny-world-judge"
REMEMBERED = 100_000  # requests of which it is known how often they came
TOKENS_PER_CLIP = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Troubles:
    """What goes wrong on purpose. ``fail``: share of answers without a score; ``noise``: in levels."""

    fail: float = 0.0
    delay_s: float = 0.0
    down_file: Path | None = None  # while it is there, every request gets a 503
    noise: float = 0.0
    seed: int = 0


class Judge:
    """Answers requests.

    Example:
        server = await web.listen("127.0.0.1", 8001, Judge(Troubles()).answer)
    """

    def __init__(self, troubles: Troubles, *, model: str = MODEL, key_env: str | None = None) -> None:
        self.model, self._troubles, self._key_env = model, troubles, key_env
        self._asked: Counter[str] = Counter()
        self._recogniser: PocketsphinxRecogniser | None = None
        self._hearing = Lock()

    async def answer(self, request: Request) -> Response:
        """Whatever was asked. Refused: it cannot be answered."""
        await asyncio.sleep(self._troubles.delay_s)
        if self._troubles.down_file is not None and self._troubles.down_file.exists():
            raise Refused(503, "the judge is down")
        self._check_key(request)
        match request.method, request.path:
            case "GET", "/v1/models":
                model = {"id": self.model, "object": "model", "created": 0, "owned_by": "wavgate"}
                return Response(200, {"object": "list", "data": [model]})
            case "POST", "/v1/chat/completions":
                return await asyncio.to_thread(self._chat, request.body, self._random(request.body))
            case "POST", "/v1/audio/transcriptions":
                return await asyncio.to_thread(self._transcribe, request)
            case _, "/v1/models" | "/v1/chat/completions" | "/v1/audio/transcriptions":
                raise Refused(405, f"{request.method} is not for {request.path}")
        raise Refused(404, f"there is no {request.path[:100]}")

    def _check_key(self, request: Request) -> None:
        if self._key_env is None:
            return
        wanted = f"Bearer {os.environ[self._key_env]}"
        if not compare_digest(request.headers.get("authorization", "").encode("latin-1"), wanted.encode()):
            raise Refused(401, "a key is needed")

    def _chat(self, body: bytes, random: Random) -> Response:
        chat = read_chat(body)
        self._check_model(chat.model)
        case = read_case(chat)
        failing = random.random() < self._troubles.fail
        refusal: str | None = None
        found = Worded(NO_SCORE) if failing else self._judged(case, chat.temperature, chat.logprobs, random)
        if found is None:
            refusal = "I only know the tiny world, and this question is not one of its own."
        return Response(200, self._completion(chat, case, found, refusal))

    def _judged(self, case: Case, temperature: float, logprobs: bool, random: Random) -> Worded | None:
        opinions: dict[str, float] = {}
        for name, reply in case.replies.items():
            value = opinion(case, reply)
            if value is None:
                return None
            noisy = value + random.gauss(0.0, self._troubles.noise)
            opinions[name] = min(SCALE.hi, max(SCALE.lo, noisy))
        if case.field == "ranking":
            return worded("ranking", ranking(opinions), None, "schema" if case.style == "schema" else "tagged")
        chances = (
            score_chances(opinions[""]) if case.field == "score" else choice_chances(opinions["A"], opinions["B"])
        )
        label = drawn(chances, temperature, random)
        return worded(case.field, label, chances if logprobs else None, case.style)

    def _completion(self, chat: Any, case: Case, wording: Worded | None, refusal: str | None) -> dict[str, Any]:
        text = None if wording is None else wording.text
        message = {"role": "assistant", "content": text, "refusal": refusal}
        logprobs = None if wording is None else wording.logprobs
        written = sum(len(json.dumps(m.model_dump())) for m in chat.messages if isinstance(m.content, str))
        prompt, completion_tokens = written // 4 + TOKENS_PER_CLIP * case.clips, max(1, len(text or "") // 4)
        return {
            "id": "chatcmpl-tiny",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt + completion_tokens,
            },
        }

    def _transcribe(self, request: Request) -> Response:
        fields = multipart(request)
        self._check_model(fields.get("model", b"").decode(errors="replace"))
        if "file" not in fields:
            raise Refused(400, "file: must be given")
        speech = decoded_wav(fields["file"])
        text = self._heard(speech)
        kind = fields.get("response_format", b"json").decode(errors="replace")
        if kind == "text":
            return Response(200, text + "\n", "text/plain")
        if kind not in ("json", "verbose_json"):
            raise Refused(400, "response_format: must be json, verbose_json or text")
        more = {"task": "transcribe", "language": "english", "duration": speech.seconds}
        return Response(200, {"text": text} | (more if kind == "verbose_json" else {}))

    def _heard(self, speech: Speech) -> str:
        with self._hearing:  # the decoder has a state
            if self._recogniser is None:
                self._recogniser = PocketsphinxRecogniser(DATA / "asr.arpa", DATA / "asr.dict")
            return self._recogniser.transcribe(speech.wave, speech.sample_rate)

    def _check_model(self, asked: str) -> None:
        if asked != self.model:
            raise Refused(404, f"there is no model {asked[:100]!r}: this is {self.model}")

    def _random(self, body: bytes) -> Random:
        """Chance of this request, the n-th of its kind; a later one is judged anew, as by a model."""
        name = sha256(body).hexdigest()
        if len(self._asked) >= REMEMBERED:
            self._asked.clear()
        self._asked[name] += 1
        return Random(f"{self._troubles.seed} {self._asked[name]} {name}")


def multipart(request: Request) -> dict[str, bytes]:
    """The fields of a form. Refused: it is none."""
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise Refused(400, "the body must be multipart/form-data")
    form = message_from_bytes(b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n" + request.body)
    if not form.is_multipart():
        raise Refused(400, "the form cannot be read")
    fields: dict[str, bytes] = {}
    for part in form.get_payload():
        assert not isinstance(part, str)
        name, content = part.get_param("name", header="content-disposition"), part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content
    return fields
