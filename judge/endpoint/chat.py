"""One question to an OpenAI-compatible chat endpoint: a whole answer, or CallFailed with its kind.

Invariant: half an answer is never a ``ChatAnswer``. Retries and the deadline are those of ``judge.endpoint.http``.
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2

from conf.endpoints import TOKEN_FIELDS
from judge.endpoint.address import Endpoint, read_endpoint_key, redact_key
from judge.endpoint.completion import Completion, read_completion
from judge.endpoint.http import AttemptRunner, PostRequest, run_at_once, send_post


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAnswer:
    """What the model said. Not blank, not cut off; whether it holds a score is for the rubric to say."""

    text: str
    logprobs: list[list[tuple[str, float]]]
    """Per generated token the one that was taken, then its alternatives: (token, natural log). [] if none."""
    prompt_tokens: int  # 0 when the endpoint does not say
    completion_tokens: int
    seconds: float  # of the deadline: attempts and the waits between them
    attempts: int
    audio_tokens: int = 0  # of the prompt; 0 when the endpoint does not say
    thought: str = ""  # what the model thought, where it came in a field of its own or before the text


async def ask_endpoint(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    body: dict[str, Any],
    under: AttemptRunner[Completion] = run_at_once,
) -> ChatAnswer:
    """Send ``body`` for the endpoint's model, again if need be, until there is an answer or no time for one.

    ``client``, ``under`` and errors as in ``judge.endpoint.http.send_post``.
    """
    request = PostRequest(
        path="/chat/completions",
        content_type="application/json",
        content=json.dumps(body | {"model": endpoint.model}).encode(),
        read=partial(
            read_completion,
            model=endpoint.model,
            also=endpoint.also_named,
            settings=endpoint.settings,
            most=next((body[name] for name in TOKEN_FIELDS if name in body), None),
        ),
    )
    posted, key = await send_post(client, endpoint, request, under), read_endpoint_key(endpoint)
    return ChatAnswer(
        text=redact_key(key, posted.parsed.text),
        logprobs=[
            [(redact_key(key, token), logprob) for token, logprob in options] for options in posted.parsed.logprobs
        ],
        prompt_tokens=posted.parsed.prompt_tokens,
        completion_tokens=posted.parsed.completion_tokens,
        seconds=posted.seconds,
        attempts=posted.attempts,
        audio_tokens=posted.parsed.audio_tokens,
        thought=redact_key(key, posted.parsed.thought),
    )
