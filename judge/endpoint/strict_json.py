"""JSON that means one thing: UTF-8, no key twice, no NaN, no number without a value, no half characters.

Invariant: whatever is returned, two parsers would agree on. The time grows with the length alone.
"""

import json
import re
from math import isfinite
from typing import Any


def parse_strict_json(body: bytes) -> Any:
    """The document in UTF-8; a byte order mark means nothing.

    ValueError: not JSON, or JSON that two parsers may read in two ways.
    """
    text = body.decode("utf-8-sig")
    try:
        parsed = json.loads(
            text, object_pairs_hook=_build_unique_object, parse_constant=_refuse_constant, parse_float=_parse_finite
        )
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(parsed, ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    return parsed


def _build_unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("JSON with a key given twice")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _parse_finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"JSON number out of range: {digits}")
    return value
