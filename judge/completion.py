"""What a chat endpoint sent back, read strictly: a completion, or CallFailed with the kind of failure.

Invariant: nothing half-said passes. A text is taken only from a whole JSON document (no duplicate keys, no
NaN, valid UTF-8) that answers for the model that was asked, was not cut off and was not refused. Whether the
text holds a score is not decided here. Reasons may quote what was sent, uncut: who shows them cuts them.
"""

import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge.types import CallFailed, Kind

TRANSIENT: frozenset[Kind] = frozenset({"deadline", "network", "rate_limited", "server", "not_json"})
"""Kinds that say something about the endpoint rather than about the call: another call may succeed."""

OUT_OF_MONEY = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "quota_exceeded",
        "insufficient_balance",
        "payment_required",
    }
)
"""Error codes of a used-up account, which come with 429, 403 or 400: waiting does not help."""


DATED = r"([-@:][0-9]{3,}([.-][0-9]+)*)?"
"""What an endpoint may add to the name that was asked for: a date or a build, never another model's name."""


def failed(kind: Kind, reason: str, tokens: tuple[int, int] = (0, 0)) -> CallFailed:
    """The failure of this kind, marked retryable when the kind is transient."""
    return CallFailed(kind, reason, retryable=kind in TRANSIENT, tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The one answer of a completion. Log-probs as in ``chat.Answer``."""

    text: str
    logprobs: list[list[tuple[str, float]]]
    prompt_tokens: int
    completion_tokens: int


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Option(_Part):
    token: str
    # Rounding may lift a certain token a little above log 1; anything more is no log-prob.
    logprob: float = Field(le=1e-3, allow_inf_nan=False)


class _Token(_Option):
    top_logprobs: list[_Option] | None = None


class _Logprobs(_Part):
    content: list[_Token] | None = None


class _Message(_Part):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Part):
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


Count = Annotated[int, Field(ge=0, lt=1 << 31)]


class _Usage(_Part):
    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class _Reply(_Part):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None


def document(body: bytes) -> Any:
    """The JSON in the body of a success. CallFailed: it is none, or holds an error all the same."""
    try:
        found = strict_json(body)
    except ValueError as broken:
        raise failed("not_json", f"{broken}: {_shown(body)}") from None
    if isinstance(found, dict) and found.get("error"):
        # Some gateways send status 200 and put the status of the model behind them into the body.
        code = _error_of(found).get("code")
        raise status_failure(code if isinstance(code, int) else 500, body)
    return found


def read_completion(body: bytes, model: str) -> Completion:
    """The answer in the body of a success; ``model`` is the name asked for. CallFailed: there is none."""
    found = document(body)
    try:
        reply = _Reply.model_validate(found)
    except ValidationError as broken:
        first, *_ = broken.errors(include_url=False, include_input=False)
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise failed("malformed", f"not a chat completion: {where}: {first['msg']}") from None
    usage = reply.usage or _Usage()
    used = (usage.prompt_tokens, usage.completion_tokens)
    if reply.model is not None and not re.fullmatch(re.escape(model) + DATED, reply.model):
        raise failed("wrong_model", f"asked for {model}, answered by {reply.model}", used)
    choice = reply.choices[0] if reply.choices else None
    if choice is None or choice.message is None:
        raise failed("empty", "no choice in the answer", used)
    if choice.message.refusal:
        raise failed("refusal", choice.message.refusal, used)
    if choice.finish_reason == "content_filter":
        raise failed("refusal", "stopped by a content filter", used)
    if choice.finish_reason == "length":
        raise failed("malformed", f"cut off after {usage.completion_tokens} tokens", used)
    text = choice.message.content
    if text is None or not text.strip():
        raise failed("empty", f"no content, finish_reason {choice.finish_reason}", used)
    return Completion(
        text=text, logprobs=_alternatives(choice.logprobs), prompt_tokens=used[0], completion_tokens=used[1]
    )


def status_failure(status: int, body: bytes) -> CallFailed:
    """The failure that an error status and its body mean."""
    reason = f"HTTP {status}: {_shown(body)}"
    try:
        error = _error_of(strict_json(body))
    except ValueError:  # error pages are HTML as often as not: the status says enough
        error = {}
    if status == 402 or (400 <= status < 500 and not OUT_OF_MONEY.isdisjoint(error.values())):
        return failed("quota", reason)
    if status == 408:  # the request did not arrive in time
        return failed("network", reason)
    if status == 429:
        return failed("rate_limited", reason)
    return failed("server" if 500 <= status < 600 else "rejected", reason)


def strict_json(body: bytes) -> Any:
    """The document in UTF-8. ValueError: not JSON, or JSON that two parsers may read in two ways."""
    text = body.decode()
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("JSON with a key given twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"JSON number out of range: {digits}")
    return value


def _error_of(found: Any) -> dict[str, str | int]:
    """The codes of an error object: bare, under "error" or, as Google sends it, in a list."""
    first = found[0] if isinstance(found, list) and found else found
    inner = first.get("error", first) if isinstance(first, dict) else None
    codes = {key: inner.get(key) for key in ("code", "type", "status")} if isinstance(inner, dict) else {}
    return {key: code for key, code in codes.items() if isinstance(code, str | int)}


def _alternatives(logprobs: _Logprobs | None) -> list[list[tuple[str, float]]]:
    """Per token its top alternatives, and the token that was taken when it is not among them."""
    found = []
    for token in (logprobs.content if logprobs else None) or []:
        options = [(option.token, option.logprob) for option in token.top_logprobs or []]
        taken = [] if token.token in dict(options) else [(token.token, token.logprob)]
        found.append(options + taken)
    return found


def _shown(body: bytes) -> str:
    return body.decode(errors="replace") or "nothing"
