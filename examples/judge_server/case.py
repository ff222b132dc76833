"""A chat request, read into the case that it puts: the request, the replies, how the answer must look.

Texts of a case stand between tags that carry one code, recordings follow a line that names them: that is how
``judge.llm.rubric`` and ``judge.llm.pairwise`` write them, and nothing else is taken for evidence.
"""

import base64
import io
import re
from dataclasses import dataclass
from html import unescape
from typing import Annotated, Any, Literal

import numpy as np
import soundfile
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from examples.judge_server.web import Refused
from judge.endpoint.strict_json import parse_strict_json
from rollout.types import Speech

BLOCK = re.compile(r"<([a-zA-Z0-9 ]{1,40}) ([0-9a-f]{16})>\n(.*?)\n</\1 \2>", re.DOTALL)
ONLY = "The assistant's reply"
NAMED = re.compile(r"(.{1,40}) \([0-9.]+ s\):")
MOST_TEXT, MOST_PARTS = 20_000, 64  # signs of a part, parts of a message: looking for tags takes its time
LONGEST = 120.0  # seconds of a recording
RATES = (8_000, 48_000)  # lowest and highest, in Hz

Style = Literal["label", "schema", "tagged"]
Asked = Literal["score", "choice", "ranking"]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Text(_Part):
    type: Literal["text"]
    text: str = Field(max_length=MOST_TEXT)


class _Clip(_Part):
    data: str
    format: Literal["wav"]


class _Audio(_Part):
    type: Literal["input_audio"]
    input_audio: _Clip


class _Message(_Part):
    role: str
    content: (
        str | Annotated[list[Annotated[_Text | _Audio, Field(discriminator="type")]], Field(max_length=MOST_PARTS)]
    )


class _Choices(_Part):
    choice: list[str] = Field(min_length=1, max_length=100)


class Chat(_Part):
    """The fields of a request that this judge heeds."""

    model: str
    messages: list[_Message] = Field(min_length=1, max_length=20)
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    logprobs: bool = False
    response_format: dict[str, Any] | None = None
    structured_outputs: _Choices | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What is shown of one reply; nothing: it was announced and did not come."""

    transcript: str | None
    speech: Speech | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is to be judged. ``replies``: "" names the only one, "A" and "B" a pair, "1", "2", ... a group."""

    question: str | None
    manner: str | None
    replies: dict[str, Reply]
    style: Style
    clips: int  # recordings, the user's included

    @property
    def field(self) -> Asked:
        """What is asked for."""
        return "score" if "" in self.replies else "choice" if "A" in self.replies else "ranking"


def read_chat(body: bytes) -> Chat:
    """Refused: not a chat request."""
    try:
        return Chat.model_validate(parse_strict_json(body))
    except ValidationError as broken:
        first, *_ = broken.errors(include_url=False, include_input=False)
        raise Refused(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as broken:
        raise Refused(400, f"the body must be JSON: {str(broken)[:100]}") from None


def read_case(chat: Chat) -> Case:
    """Refused: there is nothing to judge in it."""
    texts: dict[str, str] = {}
    waves: dict[str, Speech | None] = {}  # None: announced, and did not come
    for message in chat.messages:
        if message.role != "user" or isinstance(message.content, str):
            continue
        name: str | None = None
        for part in message.content:
            if isinstance(part, _Audio):
                if name is None:
                    raise Refused(400, "each recording needs a line of text that names it")
                waves[name], name = decoded(part.input_audio.data), None
                continue
            texts |= {found[1]: unescape(found[3]) for found in BLOCK.finditer(part.text)}
            named = NAMED.fullmatch(part.text)
            if named:
                name = named[1]
                waves[name] = None
    replies = _replies(texts, waves)
    if not replies:
        raise Refused(400, "no reply to judge: neither a transcript nor a recording of one")
    return Case(
        question=texts.get("request"),
        manner=texts.get("manner asked for"),
        replies=replies,
        style=_style(chat),
        clips=sum(wave is not None for wave in waves.values()),
    )


def _replies(texts: dict[str, str], waves: dict[str, Speech | None]) -> dict[str, Reply]:
    read = {
        name.removeprefix("transcript").strip(): text for name, text in texts.items() if name.startswith("transcript")
    }
    heard = {name.removeprefix("Reply "): wave for name, wave in waves.items() if name.startswith("Reply ")}
    if ONLY in waves:
        heard[""] = waves[ONLY]
    names = dict.fromkeys([*read, *heard])
    return {name: Reply(read.get(name), heard.get(name)) for name in names}


def _style(chat: Chat) -> Style:
    """How the answer must look; what the request enforces goes before what its words ask for."""
    if chat.structured_outputs is not None:
        return "label"
    if chat.response_format is not None and chat.response_format.get("type") == "json_schema":
        return "schema"
    system = [message.content for message in chat.messages if message.role == "system"]
    return "label" if "Answer with a single character" in str(system) else "tagged"


def decoded(data: str) -> Speech:
    """A base64 WAV. Refused: it is none, or too long, or of an odd rate."""
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise Refused(400, "input_audio.data must be base64") from None
    return decoded_wav(content)


def decoded_wav(content: bytes) -> Speech:
    """A WAV file's first channel. Refused: it is none, or too long, or of an odd rate."""
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.format not in ("WAV", "WAVEX") or not RATES[0] <= file.samplerate <= RATES[1]:
                raise Refused(400, f"audio must be WAV at {RATES[0]} to {RATES[1]} Hz")
            most = int(LONGEST * file.samplerate)
            wave = file.read(most + 1, dtype="float32", always_2d=True)[:, 0]
    except soundfile.SoundFileError as broken:
        raise Refused(400, f"audio cannot be read: {str(broken)[:100]}") from None
    if not 0 < len(wave) <= most or not np.isfinite(wave).all():
        raise Refused(400, f"a recording must have up to {LONGEST:g} s of finite samples: got {len(wave)} samples")
    return Speech(wave=wave, sample_rate=file.samplerate)
