"""What a status or an error object of an endpoint means: CallFailed with its kind.

Invariant: an error is found wherever a gateway puts it (the status, the body of a success, a choice in it)
and means the same everywhere. Reasons may quote what was sent, uncut: who shows them cuts them.
"""

import re
from typing import Any

from judge.strict_json import strict_json
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

TOO_FAST = frozenset({"rate_limit_exceeded", "rate_limit_error", "rate_limited", "resource_exhausted"})
"""Error codes of asking too often, where no status says so."""


def failed(kind: Kind, reason: str, tokens: tuple[int, int] = (0, 0)) -> CallFailed:
    """The failure of this kind, marked retryable when the kind is transient."""
    return CallFailed(kind, reason, retryable=kind in TRANSIENT, tokens=tokens)


def document(body: bytes) -> Any:
    """The JSON in the body of a success. CallFailed: it is none, or holds an error all the same."""
    try:
        found = strict_json(body)
    except ValueError as broken:
        raise failed("not_json", f"{broken}: {shown(body)}") from None
    error = (found.get("error") or found.get("errors")) if isinstance(found, dict) else None
    if error or (isinstance(found, dict) and found.get("object") == "error"):
        raise error_failure(error or found, shown(body))
    return found


def status_failure(status: int, body: bytes) -> CallFailed:
    """The failure that an error status and its body mean."""
    reason = f"HTTP {status}: {shown(body)}"
    try:
        codes = _codes(strict_json(body))
    except ValueError:  # error pages are HTML as often as not: the status says enough
        codes = set()
    if status == 402 or (400 <= status < 500 and OUT_OF_MONEY & codes):
        return failed("quota", reason)
    return failed(_kind(status), reason)


def error_failure(error: Any, told: str) -> CallFailed:
    """The failure that an error inside a success means: some gateways send status 200 and put the status of
    the model behind them into the body. What has no status of HTTP's is the server's."""
    codes = _codes(error)
    status = next((int(code) for code in sorted(codes) if re.fullmatch("[45][0-9][0-9]", code)), None)
    if status == 402 or OUT_OF_MONEY & codes:
        return failed("quota", told)
    if TOO_FAST & codes:
        return failed("rate_limited", told)
    return failed("server", told) if status is None else failed(_kind(status), f"error {status}: {told}")


def shown(body: bytes) -> str:
    """A body as text, for a reason."""
    return body.decode(errors="replace") or "nothing"


def _kind(status: int) -> Kind:
    if status == 408:  # the request did not arrive in time
        return "network"
    if status == 429:
        return "rate_limited"
    return "server" if 500 <= status < 600 else "rejected"


def _codes(found: Any) -> set[str]:
    """The codes of an error object, lower case: bare, under "error" or, as Google sends it, in a list."""
    first = found[0] if isinstance(found, list) and found else found
    inner = first.get("error", first) if isinstance(first, dict) else None
    codes = [inner.get(key) for key in ("code", "type", "status")] if isinstance(inner, dict) else []
    return {str(code).lower() for code in codes if isinstance(code, str | int) and not isinstance(code, bool)}
