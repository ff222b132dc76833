"""What a chat endpoint sent back, read strictly: a completion, or CallFailed with the kind of failure.

Invariant: nothing half-said passes. A text is taken only from a whole JSON document that answers once, for
the model that was asked, to the model's own end, and was not refused. A thought is never part of the text.
Whether the text holds a score is not decided here.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from judge.endpoint.failures import decode_body, failure_from_error, make_failure, parse_document
from judge.endpoint.finish import failure_from_finish_reason, pick_deciding_reason

DATE_SUFFIX = r"([-@:]([0-9]{4,}|0[0-9]{2})([.-][0-9]+)*)?"
"""What an endpoint may add to the name that was asked for: a date or a build (-2025-08-28, -0613, -001), no
size (-405)."""

THOUGHT_ENDS = ("</think>", "</thinking>", "</thought>", "</reasoning>", "[/think]", "◁/think▷")
"""What stands between a thought and the answer where both come in one text, in lower case."""
END_OF_THOUGHT = re.compile("|".join(map(re.escape, THOUGHT_ENDS)), re.IGNORECASE | re.ASCII)
BEGIN_OF_THOUGHT = re.compile(END_OF_THOUGHT.pattern.replace("/", ""), re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The one answer of a completion. ``logprobs`` and ``thought`` as in ``judge.endpoint.chat.ChatAnswer``."""

    text: str
    logprobs: list[list[tuple[str, float]]]
    prompt_tokens: int
    completion_tokens: int
    audio_tokens: int = 0
    thought: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Option(_Part):
    token: str
    # Rounding may lift a certain token a little above log 1; anything more is no log-prob.
    logprob: float = Field(le=1e-3, allow_inf_nan=False)


class _Token(_Option):
    top_logprobs: list[_Option] | None = None


TOKEN_LOGPROB_LIST = TypeAdapter(list[_Token])


class _Message(_Part):
    content: str | list[dict[str, Any]] | None = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    tool_calls: Any = None
    function_call: Any = None
    error: Any = None


class _Choice(_Part):
    message: _Message | None = None
    finish_reason: str | None = None
    native_finish_reason: Any = None  # what a router was told by the endpoint behind it
    stop_reason: Any = None
    logprobs: Any = None
    error: Any = None

    @property
    def ended(self) -> str | None:
        """Why the model stopped."""
        return pick_deciding_reason(self.finish_reason, self.native_finish_reason, self.stop_reason)


class _Reply(_Part):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None


def read_completion(
    body: bytes,
    model: str,
    also: Collection[str] = (),
    *,
    settings: str = "judge.api",
    most: int | None = None,
) -> Completion:
    """The answer in the body of a success. CallFailed: there is none.

    ``model``: the name asked for; ``also``: others that stand for the same; ``settings``: what reasons name
    when a setting would help; ``most``: tokens that were allowed.
    """
    parsed_body = parse_document(body)
    try:
        reply = _Reply.model_validate(parsed_body)
    except ValidationError as broken:
        first, *_ = broken.errors(include_url=False, include_input=False)
        field = ".".join(map(str, first["loc"])) or "the whole"
        raise make_failure("malformed", f"not a chat completion: {field}: {first['msg']}") from None
    tokens = _count_billed_tokens(reply.usage)
    for candidate in reply.choices or ():  # before the name: what failed on its way may bear any
        _must_be_whole(candidate, tokens)
    if reply.model and not is_requested_model(reply.model, (model, *also)):
        mismatch = f"asked for {model}, answered by {reply.model}"
        raise make_failure(
            "wrong_model", f"{mismatch}; if it is the same: {settings}.also_named=[{reply.model}]", tokens
        )
    choice = _only_choice(reply, tokens, body)
    _must_have_answered(choice, tokens, _advise_on_length(settings, most))
    assert choice.message is not None
    text, thought = _split_message(choice.message, tokens)
    if not text.strip():
        thought_note = f", {len(thought)} characters of thought" if thought.strip() else ""
        raise make_failure("empty", f"no content, finish_reason {choice.finish_reason}{thought_note}", tokens)
    return Completion(
        text=text,
        logprobs=_read_alternatives(choice.logprobs, tokens),
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
        audio_tokens=_read_token_count(_prompt_token_details(reply.usage), "audio_tokens"),
        thought=thought,
    )


def is_requested_model(answered: str, names: Collection[str]) -> bool:
    """Whether the name that an endpoint gives is one of these, or one of these with a date or a build."""
    return any(re.fullmatch(re.escape(name) + DATE_SUFFIX, answered) for name in names)


def split_thought(text: str) -> tuple[str, str]:
    """(the answer, the thought before it) of a text that may begin with a thought.

    A thought that does not end has no answer behind it: the answer is empty.
    """
    end = max((mark.end() for mark in END_OF_THOUGHT.finditer(text)), default=0)
    if end:
        return text[end:], text[:end]
    return ("", text) if BEGIN_OF_THOUGHT.match(text.lstrip()) else (text, "")


def _advise_on_length(settings: str, most: int | None) -> str:
    """What can be done about an answer that was cut off."""
    allowed = "" if most is None else f" of {most}"
    return f"{allowed}, thought included: raise {settings}.max_tokens or lower {settings}.reasoning_effort"


def _only_choice(reply: _Reply, tokens: tuple[int, int], body: bytes) -> _Choice:
    choices = reply.choices or []
    if len(choices) > 1:
        raise make_failure("malformed", f"the answer must hold one choice: got {len(choices)}", tokens)
    if not choices:
        raise make_failure("empty", f"no choice in the answer: {decode_body(body)}", tokens)
    return choices[0]


def _must_be_whole(choice: _Choice, billed: tuple[int, int]) -> None:
    """CallFailed: the choice holds an error, or the server gave it up."""
    error = choice.error or (choice.message and choice.message.error)
    if error:
        failure = failure_from_error(error, f"inside the answer: {error}")
        failure.tokens = billed
        raise failure
    stopped = failure_from_finish_reason(choice.ended, billed, "")
    if stopped is not None and stopped.kind == "server":
        raise stopped


def _must_have_answered(choice: _Choice, tokens: tuple[int, int], advice: str) -> None:
    """CallFailed: the choice was refused or is not the model's whole answer."""
    if choice.message is None:
        raise make_failure("empty", "no message in the answer", tokens)
    if choice.message.refusal:
        raise make_failure("refusal", str(choice.message.refusal), tokens)
    stopped = failure_from_finish_reason(choice.ended, tokens, advice)
    if stopped is not None:
        raise stopped
    if choice.message.tool_calls or choice.message.function_call:
        raise make_failure("malformed", "the model called a tool instead of answering", tokens)


def _split_message(message: _Message, tokens: tuple[int, int]) -> tuple[str, str]:
    """(answer, thought): whether they come in fields of their own, as parts or in one text."""
    fields = (message.reasoning_content, message.reasoning, message.thinking)
    thoughts = [field for field in fields if isinstance(field, str)]
    texts: list[str] = [message.content] if isinstance(message.content, str) else []
    for part in message.content if isinstance(message.content, list) else ():
        match part:
            case {"type": "text" | "output_text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking" | "reasoning" | "redacted_thinking" | "thought"}:
                thoughts.append(str(part))
            case {"type": "refusal"}:
                raise make_failure("refusal", str(part.get("refusal")), tokens)
            case _:
                raise make_failure("malformed", f"a part of the answer must be text: got {str(part)[:100]}", tokens)
    answer, leading_thought = split_thought("".join(texts))
    return answer, "\n".join([*thoughts, leading_thought] if leading_thought else thoughts)


def _count_billed_tokens(usage: Any) -> tuple[int, int]:
    """(prompt, completion) tokens that are billed: some endpoints count a thought in the total alone."""
    prompt, completion = _read_token_count(usage, "prompt_tokens"), _read_token_count(usage, "completion_tokens")
    return prompt, max(completion, _read_token_count(usage, "total_tokens") - prompt if prompt else completion)


def _read_token_count(usage: Any, name: str) -> int:
    """How many tokens a usage says; 0 where it says nothing that is a count: many gateways do not count."""
    value = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else 0


def _prompt_token_details(usage: Any) -> Any:
    return usage.get("prompt_tokens_details") if isinstance(usage, dict) else None


def _read_alternatives(logprobs: Any, tokens: tuple[int, int]) -> list[list[tuple[str, float]]]:
    """Per token the one that was taken, then its alternatives; none where they come in another form.

    CallFailed malformed: this form, with something in it that is no log-prob.
    """
    listed = logprobs.get("content") if isinstance(logprobs, dict) else None
    try:
        return [_order_alternatives(token) for token in TOKEN_LOGPROB_LIST.validate_python(listed or [])]
    except ValidationError as broken:
        first, *_ = broken.errors(include_url=False, include_input=False)
        field = ".".join(map(str, first["loc"]))
        raise make_failure("malformed", f"token probabilities: {field}: {first['msg']}", tokens) from None


def _order_alternatives(token: _Token) -> list[tuple[str, float]]:
    options = [(alternative.token, alternative.logprob) for alternative in token.top_logprobs or []]
    same = [option for option in options if option[0] == token.token]
    chosen = min(same, key=lambda option: abs(option[1] - token.logprob), default=(token.token, token.logprob))
    if same:
        options.remove(chosen)
    return [chosen, *options]
