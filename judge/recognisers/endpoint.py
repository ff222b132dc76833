"""A recogniser behind an OpenAI-compatible /audio/transcriptions endpoint.

Invariant: what it returns was said by the endpoint in a whole and strict answer; anything else is CallFailed
with its kind, in time. One reply is on its way at a time: the panel that owns it hears one after another.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray

from judge.endpoint.address import Endpoint, read_endpoint_key, redact_key
from judge.endpoint.failures import make_failure, parse_document
from judge.endpoint.http import PostRequest, new_client, send_post
from judge.llm.rubric import encode_wav
from rollout.types import Speech

TRANSCRIPTIONS_PATH = "/audio/transcriptions"
MAX_TRANSCRIPT_CHARS = 20_000  # characters; the longest reply that is heard lasts two minutes


class EndpointRecogniser:
    """Sends each reply as a WAV at its true rate.

    Example:
        recogniser = EndpointRecogniser(endpoint_from_config(config.judge.asr), "en")
        recogniser.transcribe(wave, 24_000)  # "The answer is twelve."
    """

    def __init__(self, endpoint: Endpoint, language: str) -> None:
        """ValueError: the key's variable is not set."""
        read_endpoint_key(endpoint)  # said now, and not of every reply
        self._endpoint = endpoint
        self._fields = {"model": endpoint.model, "language": language}
        self._fields |= {"response_format": "json", "temperature": "0"}
        # A thread and a loop of its own: the caller may be inside another loop, where none can be started.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transcriber")
        self._loop = asyncio.Runner()
        self._client = new_client()  # keeps no connection, so there is nothing to close

    def transcribe(self, wave: NDArray[np.float32], sample_rate: int) -> str:
        """The words heard; nothing recorded, an empty string. Blocks, at most for the endpoint's deadline.

        CallFailed: why there is no transcript. ValueError: the key's variable is not set.
        """
        if not len(wave):
            return ""
        request = _build_upload(self._fields, encode_wav(Speech(wave=wave, sample_rate=sample_rate)))
        sent = send_post(self._client, self._endpoint, request)
        posted = self._thread.submit(self._loop.run, sent).result()
        return redact_key(read_endpoint_key(self._endpoint), posted.parsed)

    def close(self) -> None:
        """End the thread and its loop; a judge worker that lives as long as its process need not."""
        self._thread.submit(self._loop.close).result()
        self._thread.shutdown()


def read_transcript(body: bytes) -> str:
    """The text in the body of a success, blanks at its ends removed. CallFailed: there is none."""
    parsed_body: Any = parse_document(body)
    text = parsed_body.get("text") if isinstance(parsed_body, dict) else None
    if not isinstance(text, str):
        raise make_failure(
            "malformed", f"a transcription must be an object with a text: got {body.decode(errors='replace')}"
        )
    if len(text) > MAX_TRANSCRIPT_CHARS:
        raise make_failure(
            "too_large", f"a transcription must have at most {MAX_TRANSCRIPT_CHARS} characters: got {len(text)}"
        )
    return text.strip()


def _build_upload(fields: dict[str, str], audio: bytes) -> PostRequest[str]:
    """``multipart/form-data`` as httpx2 writes it; the address is never asked."""
    file = {"file": ("reply.wav", audio, "audio/wav")}
    form = httpx2.Request("POST", "http://unused", data=fields, files=file)
    return PostRequest(
        path=TRANSCRIPTIONS_PATH, content_type=form.headers["content-type"], content=form.read(), read=read_transcript
    )
