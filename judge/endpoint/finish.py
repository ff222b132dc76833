"""Why a model stopped: what ``finish_reason`` means, in the spellings of the endpoints that there are.

Invariant: only a model that came to its own end has answered. Every other reason, a name that nobody knows
included, is a failure with that name in it: half an answer may hold a whole score.
"""

from typing import Literal

from judge.endpoint.failures import make_failure
from judge.types import CallFailed

FinishReasons = frozenset[str]

# Compared in lower case, with "_" for "-", " " and ".", and without "finish_reason_" in front.
COMPLETE_REASONS: FinishReasons = frozenset(
    "stop end end_turn endturn eos eos_token eot eot_token stop_sequence stop_token "
    "stop_word im_end complete completed".split()
)
"""OpenAI and most; Anthropic; Together and text-generation-inference; what other servers say."""
CUT_OFF_REASONS: FinishReasons = frozenset(
    "length max_tokens max_token max_length max_output_tokens max_new_tokens max_completion_tokens "
    "model_length token_limit limit context_length context_length_exceeded model_context_window_exceeded "
    "incomplete".split()
)
WITHHELD_REASONS: FinishReasons = frozenset(
    "content_filter content_filtered contentfilter safety image_safety recitation blocklist blocked "
    "prohibited_content spii sensitive refusal refused guardrail guardrail_intervened language "
    "moderation".split()
)
"""Google's names, Anthropic's, Bedrock's, z.AI's."""
ERROR_REASONS: FinishReasons = frozenset(
    "error network_error server_error internal_error upstream_error provider_error abort aborted cancel "
    "cancelled canceled failed timeout insufficient_system_resource overloaded rate_limit other "
    "unspecified".split()
)
"""The server gave up: OpenRouter, vLLM, SGLang, z.AI, DeepSeek; without a reason: Google."""

FinishMeaning = Literal["own", "cut", "withheld", "broken", "unknown"]


def classify_finish_reason(reason: str | None) -> FinishMeaning:
    """What a finish_reason says; none, a blank one or "null" says nothing against the answer."""
    name = (reason or "").strip().lower().translate(dict.fromkeys(map(ord, "-. "), "_")).strip("_")
    name = name.removeprefix("finish_reason_").removeprefix("finishreason_")  # an enum's, as Python writes it
    if name in ("", "null") or name in COMPLETE_REASONS:
        return "own"
    if name in CUT_OFF_REASONS:
        return "cut"
    if name in WITHHELD_REASONS:
        return "withheld"
    return "broken" if name in ERROR_REASONS else "unknown"


def failure_from_finish_reason(reason: str | None, tokens: tuple[int, int], advice: str) -> CallFailed | None:
    """The failure that a finish_reason means; None: the model came to its own end.

    ``tokens``: (prompt, completion) as counted; ``advice``: what to do about an answer that was cut off.
    """
    end, named = classify_finish_reason(reason), f"finish_reason {reason!r}"
    if end == "own":
        return None
    if end == "cut":
        return make_failure("malformed", f"cut off after {tokens[1]} tokens ({named}){advice}", tokens)
    if end == "withheld":
        return make_failure("refusal", f"withheld by the endpoint: {named}", tokens)
    if end == "broken":
        return make_failure("server", f"the endpoint gave up: {named}", tokens)
    return make_failure("malformed", f"not the model's own end: {named}", tokens)


def pick_deciding_reason(reason: str | None, *upstream: object) -> str | None:
    """The reason that counts: the endpoint's own, or one of its ``upstream`` that was cut, withheld or broken
    where the endpoint says that all went well. What nobody knows is the upstream's own word for an end.
    """
    if classify_finish_reason(reason) != "own":
        return reason
    bad = (
        name for name in upstream if isinstance(name, str) and classify_finish_reason(name) not in ("own", "unknown")
    )
    return next(bad, reason)
