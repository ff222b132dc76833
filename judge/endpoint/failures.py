"""What a status or an error object of an endpoint means: CallFailed with its kind.

Invariant: an error is found wherever a gateway puts it (the status, the body of a success, a choice in it)
and means the same everywhere. Reasons may quote what was sent, uncut: who shows them cuts them.
"""

import re
from typing import Any

from judge.endpoint.strict_json import parse_strict_json
from judge.types import CallFailed, MissingKind

TRANSIENT_KINDS: frozenset[MissingKind] = frozenset({"deadline", "network", "rate_limited", "server", "not_json"})
"""Kinds that say something about the endpoint rather than about the call: another call may succeed."""

QUOTA_CODES = frozenset(
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

RATE_LIMIT_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "rate_limited", "resource_exhausted"})
"""Error codes of asking too often, where no status says so."""


def make_failure(kind: MissingKind, reason: str, tokens: tuple[int, int] = (0, 0)) -> CallFailed:
    """The failure of this kind, marked retryable when the kind is transient."""
    return CallFailed(kind, reason, retryable=kind in TRANSIENT_KINDS, tokens=tokens)


def parse_document(body: bytes) -> Any:
    """The JSON in the body of a success. CallFailed: it is none, or holds an error all the same."""
    try:
        parsed_body = parse_strict_json(body)
    except ValueError as broken:
        raise make_failure("not_json", f"{broken}: {decode_body(body)}") from None
    error = (parsed_body.get("error") or parsed_body.get("errors")) if isinstance(parsed_body, dict) else None
    if error or (isinstance(parsed_body, dict) and parsed_body.get("object") == "error"):
        raise failure_from_error(error or parsed_body, decode_body(body))
    return parsed_body


def failure_from_status(status: int, body: bytes) -> CallFailed:
    """The failure that an error status and its body mean."""
    reason = f"HTTP {status}: {decode_body(body)}"
    try:
        codes = _read_error_codes(parse_strict_json(body))
    except ValueError:  # error pages are HTML as often as not: the status says enough
        codes = set()
    if status == 402 or (400 <= status < 500 and QUOTA_CODES & codes):
        return make_failure("quota", reason)
    return make_failure(_status_to_kind(status), reason)


def failure_from_error(error: Any, reason: str) -> CallFailed:
    """The failure that an error inside a success means: some gateways send status 200 and put the status of
    the model behind them into the body. What has no status of HTTP's is the server's."""
    codes = _read_error_codes(error)
    status = next((int(code) for code in sorted(codes) if re.fullmatch("[45][0-9][0-9]", code)), None)
    if status == 402 or QUOTA_CODES & codes:
        return make_failure("quota", reason)
    if RATE_LIMIT_CODES & codes:
        return make_failure("rate_limited", reason)
    return (
        make_failure("server", reason)
        if status is None
        else make_failure(_status_to_kind(status), f"error {status}: {reason}")
    )


def decode_body(body: bytes) -> str:
    """A body as text, for a reason."""
    return body.decode(errors="replace") or "nothing"


def _status_to_kind(status: int) -> MissingKind:
    if status == 408:  # the request did not arrive in time
        return "network"
    if status == 429:
        return "rate_limited"
    return "server" if 500 <= status < 600 else "rejected"


def _read_error_codes(error: Any) -> set[str]:
    """The codes of an error object, lower case: bare, under "error" or, as Google sends it, in a list."""
    first = error[0] if isinstance(error, list) and error else error
    inner = first.get("error", first) if isinstance(first, dict) else None
    codes = [inner.get(key) for key in ("code", "type", "status")] if isinstance(inner, dict) else []
    return {str(code).lower() for code in codes if isinstance(code, str | int) and not isinstance(code, bool)}
