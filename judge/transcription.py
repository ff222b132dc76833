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

from judge.endpoint import Endpoint, key_of, without_key
from judge.failures import document, failed
from judge.http import Post, new_client, post
from judge.rubric import wav_bytes
from rollout.types import Speech

PATH = "/audio/transcriptions"
LONGEST = 20_000  # characters; the longest reply that is heard lasts two minutes


class Transcriber:
    """Sends each reply as a WAV at its true rate.

    Example:
        listener = Transcriber(Endpoint(base_url="http://127.0.0.1:8000/v1", model="whisper-1", ...), "en")
        listener.transcribe(wave, 24_000)  # "The answer is twelve."
    """

    def __init__(self, endpoint: Endpoint, language: str) -> None:
        """ValueError: the key's variable is not set."""
        key_of(endpoint)  # said now, and not of every reply
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
        request = _form(self._fields, wav_bytes(Speech(wave=wave, sample_rate=sample_rate)))
        sent = post(self._client, self._endpoint, request)
        posted = self._thread.submit(self._loop.run, sent).result()
        return without_key(key_of(self._endpoint), posted.found)

    def close(self) -> None:
        """End the thread and its loop; a judge worker that lives as long as its process need not."""
        self._thread.submit(self._loop.close).result()
        self._thread.shutdown()


def read_transcript(body: bytes) -> str:
    """The text in the body of a success, blanks at its ends removed. CallFailed: there is none."""
    found: Any = document(body)
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise failed(
            "malformed", f"a transcription must be an object with a text: got {body.decode(errors='replace')}"
        )
    if len(text) > LONGEST:
        raise failed("too_large", f"a transcription must have at most {LONGEST} characters: got {len(text)}")
    return text.strip()


def _form(fields: dict[str, str], audio: bytes) -> Post[str]:
    """``multipart/form-data`` as httpx2 writes it; the address is never asked."""
    file = {"file": ("reply.wav", audio, "audio/wav")}
    form = httpx2.Request("POST", "http://unused", data=fields, files=file)
    return Post(path=PATH, content_type=form.headers["content-type"], content=form.read(), read=read_transcript)
