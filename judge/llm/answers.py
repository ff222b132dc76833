"""The three ways a judge can answer, each asked for in words and settings and read strictly.

    logprobs   one digit; the score is its expectation under the probabilities of the digits
    schema     a JSON object {reason, score} that the endpoint is made to keep to
    tagged     free text that ends in <score>n</score>

Invariant: a reading is a number the judge gave, or ``CallFailed`` says why there is none. Nothing is
repaired, nothing is guessed, and of two scores none is taken.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, sqrt
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from judge.endpoint.label import TokenLogprobs, find_label_alternatives, sum_label_probabilities
from judge.endpoint.strict_json import parse_strict_json
from judge.types import CallFailed, MissingKind

AnswerMode = Literal["logprobs", "schema", "tagged"]

MIN_LABEL_MASS = 0.5  # probability that must lie on the labels
CERTAIN = 0.99  # probability that leaves nothing to the other labels
TOP_LOGPROBS = 20  # alternatives asked for; the most that the usual endpoints give
LABEL_TOKENS = 8  # a label, a blank, an end: a judge that says more is cut off, and refused
REASON_TOKENS = 400
MAX_REASON_CHARS = 2000  # characters that are kept
COMMON_ENGLISH_WORDS = set(
    "the is and of to it that but with not was were are this answer reply speech user clear no in".split()
)
RANGE_ERROR_TYPES = {"greater_than_equal", "less_than_equal"}

_ReplyModel = TypeVar("_ReplyModel", bound=BaseModel)


class _StrictReply(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ScoreReply(_StrictReply):
    """What a judge returns for one case."""

    reason: str
    score: int = Field(ge=1, le=5)


class ChoiceReply(_StrictReply):
    """What a judge returns for two replies; T: they are equally good."""

    reason: str
    choice: Literal["A", "B", "T"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What is asked: the field, its labels with the number each stands for, and the shape of the JSON."""

    field: str
    means: str
    numbers: Mapping[str, float]
    reply: type[BaseModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSampling:
    """How an answer is drawn, as ``conf.endpoints.JudgeEndpointConfig`` has it. ValueError: no such temperature."""

    temperature: float = 1.0
    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    reasoning_effort: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must lie in [0, 2]: got {self.temperature}")

    def fields(self, mode: AnswerMode) -> dict[str, Any]:
        """Of the request. For token probabilities greedy: the draw is not used, its distribution is."""
        default_tokens = LABEL_TOKENS if mode == "logprobs" else REASON_TOKENS
        body: dict[str, Any] = {self.max_tokens_field: self.max_tokens or default_tokens}
        body["temperature"] = 0 if mode == "logprobs" else self.temperature
        effort = self.reasoning_effort
        return body if effort is None else body | {"reasoning_effort": effort}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one call said. ``own_std``: of the judge's own distribution; None when it shows none."""

    number: float
    own_std: float | None
    reason: str


SCORE_FORM = AnswerForm(
    field="score",
    means="the level, a whole number from 1 to 5",
    numbers={str(level): float(level) for level in range(1, 6)},
    reply=ScoreReply,
)
CHOICE_FORM = AnswerForm(
    field="choice",
    means="A when reply A is better, B when reply B is better, T when neither is",
    numbers={"A": 1.0, "B": 0.0, "T": 0.5},
    reply=ChoiceReply,
)


def write_answer_instructions(form: AnswerForm, mode: AnswerMode) -> str:
    """The words that tell the judge how to answer."""
    if mode == "logprobs":
        return f"Answer with a single character and nothing else: {form.means}."
    if mode == "schema":
        return (
            'Answer with one JSON object of two fields in this order: "reason", one or two English '
            f'sentences, then "{form.field}", {form.means}.'
        )
    return (
        "Give your reason in one or two English sentences. Then end your answer with "
        f"<{form.field}>n</{form.field}>, once, where n is {form.means}."
    )


def build_answer_settings(
    form: AnswerForm, mode: AnswerMode, sampling: AnswerSampling, *, forced: bool = False
) -> dict[str, Any]:
    """The request fields of a mode. ``forced``: only a label can be said (vLLM's option)."""
    body = sampling.fields(mode)
    if mode == "logprobs":
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body | (constrain_to_labels(form) if forced else {})
    return body if mode == "tagged" else body | constrain_to_schema(form.field, build_answer_schema(form))


def constrain_to_schema(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request field that makes the answer keep to a JSON schema."""
    shape = {"name": name, "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": shape}}


def constrain_to_labels(form: AnswerForm) -> dict[str, Any]:
    """vLLM's request field that lets nothing be said but a label."""
    return {"structured_outputs": {"choice": list(form.numbers)}}


def build_answer_schema(form: AnswerForm) -> dict[str, Any]:
    """Written out: an enum is understood by endpoints that know no bounds."""
    labels: list[Any] = [int(label) if label.isdigit() else label for label in form.numbers]
    kind = "integer" if all(isinstance(label, int) for label in labels) else "string"
    return {
        "type": "object",
        "properties": {"reason": {"type": "string"}, form.field: {"type": kind, "enum": labels}},
        "required": ["reason", form.field],
        "additionalProperties": False,
    }


def read_judge_answer(
    form: AnswerForm, mode: AnswerMode, text: str, logprobs: TokenLogprobs, thought: str = ""
) -> Reading:
    """The judge's answer as a number. ``thought``: what it thought before, where that came apart.

    CallFailed: malformed, out_of_range, language, unsure.
    """
    if mode == "logprobs":
        return read_expected_number(form, text, logprobs, thought)
    if mode == "schema":
        fields = parse_json_reply(form.reply, text).model_dump()
        label, reason = str(fields[form.field]), str(fields["reason"])
    else:
        label, reason = parse_tag_content(form.field, text)
        if label not in form.numbers:
            _refuse_label(form, label)
    check_english(reason)
    return Reading(number=form.numbers[label], own_std=None, reason=shorten_reason(reason))


def read_expected_number(form: AnswerForm, text: str, logprobs: TokenLogprobs, thought: str = "") -> Reading:
    """Mean and deviation of the numbers that the labels stand for, at the token that is the answer.

    The text must be a label by itself: of "4.5", "45" and "4 of 10" the first token would say 4.
    CallFailed unsure: the labels have less than half the probability.
    """
    answer = text.strip()
    if answer not in form.numbers:
        _refuse_label(form, answer)
    options = find_label_alternatives(answer, logprobs, thought)
    if len(options) == 1 and exp(options[0][1]) < CERTAIN:
        raise CallFailed("malformed", f"the answer {answer!r} came without the probabilities of the others")
    weights = sum_label_probabilities(form.numbers, options)
    mass = sum(weights.values())
    if mass < MIN_LABEL_MASS:
        raise CallFailed("unsure", f"the labels must have a probability of at least {MIN_LABEL_MASS}: got {mass:.3f}")
    if not weights[answer] or mass > 1.01:
        raise CallFailed("malformed", f"the probabilities are not those of the answer {answer!r}: {weights}")
    shares = {name: weight / mass for name, weight in weights.items()}
    mean = sum(share * form.numbers[name] for name, share in shares.items())
    mean = min(max(mean, min(form.numbers.values())), max(form.numbers.values()))  # rounding
    variance = sum(share * (form.numbers[name] - mean) ** 2 for name, share in shares.items())
    shown_shares = " ".join(f"{name}:{share:.2f}" for name, share in shares.items() if share >= 0.005)
    return Reading(number=mean, own_std=sqrt(variance), reason=f"probabilities {shown_shares}")


def parse_json_reply(shape: type[_ReplyModel], text: str) -> _ReplyModel:
    """One JSON object of the shape's fields, in any order, none twice. CallFailed: what it is instead."""
    try:
        fields = parse_strict_json(text.encode())
    except ValueError as error:
        raise CallFailed("malformed", f"the answer must be a JSON object: {error}: {quote_answer(text)}") from error
    if not isinstance(fields, dict) or fields.keys() != shape.model_fields.keys():
        raise CallFailed("malformed", f"the answer must have {list(shape.model_fields)}: got {quote_answer(text)}")
    try:
        return shape.model_validate(fields)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        kind: MissingKind = "out_of_range" if first["type"] in RANGE_ERROR_TYPES else "malformed"
        raise CallFailed(kind, f"{first['msg']}: got {quote_answer(text)}") from error


def parse_tag_content(tag: str, text: str) -> tuple[str, str]:
    """(content, what stands before it) of the only <tag>, with which the text ends. CallFailed: malformed."""
    start, end, whole = f"<{tag}>", f"</{tag}>", text.rstrip()
    before, opened, content = whole.removesuffix(end).rpartition(start)
    if not opened or not whole.endswith(end) or set("<>") & set(content) or count_tags(tag, whole) != 2:
        rule = f"the answer must end with its only {start}...{end}"
        raise CallFailed("malformed", f"{rule}: got {quote_answer(text)}")
    return content.strip(), before


def count_tags(tag: str, text: str) -> int:
    """How often a tag opens or closes in a text, in any spelling: "< SCORE", "</ score>"."""
    heads = (piece.lstrip().removeprefix("/").lstrip() for piece in text.casefold().split("<")[1:])
    return sum(head.startswith(tag) and not _continues_word(head[len(tag) : len(tag) + 1]) for head in heads)


def _continues_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"


def check_english(reason: str) -> None:
    """CallFailed language: another script, or eight words and more without one common English word."""
    letters = [sign for sign in reason if sign.isalpha()]
    ascii_letters = sum(sign.isascii() for sign in letters)
    words = re.findall(r"[a-z']+", reason.lower())
    foreign = len(words) >= 8 and not COMMON_ENGLISH_WORDS & set(words)
    if ascii_letters < 0.8 * len(letters) or foreign:
        raise CallFailed("language", f"the reason must be English: got {quote_answer(reason)}")


def shorten_reason(reason: str) -> str:
    """A judge's reason, as much of it as people read: an answer may be a megabyte."""
    one_line = " ".join(reason.split())
    return one_line if len(one_line) <= MAX_REASON_CHARS else f"{one_line[:MAX_REASON_CHARS]}..."


def quote_answer(text: str) -> str:
    """The start of an answer, for a reason that people read."""
    return repr(text if len(text) <= 120 else f"{text[:120]}...")


def _refuse_label(form: AnswerForm, label: str) -> NoReturn:
    rule = f"{form.field} must be one of {' '.join(form.numbers)}: got {quote_answer(label)}"
    is_number = re.fullmatch(r"[+-]?[0-9]{1,9}(\.[0-9]+)?", label) is not None
    inside = is_number and min(form.numbers.values()) <= float(label) <= max(form.numbers.values())
    raise CallFailed("out_of_range" if is_number and not inside else "malformed", rule)
