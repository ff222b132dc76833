"""Answers as public reports show them: each is read for what it is, or named for what it is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.endpoint.completion import read_completion, split_thought
from judge.endpoint.failures import failure_from_error
from judge.endpoint.finish import classify_finish_reason
from judge.types import CallFailed, MissingKind

MODEL = "judge-1"


def body(choice: dict[str, Any] | None = None, message: dict[str, Any] | None = None, **fields: Any) -> bytes:
    first = {"index": 0, "message": {"role": "assistant", "content": "4"} | (message or {})}
    first |= {"finish_reason": "stop"} | (choice or {})
    return json.dumps({"model": MODEL, "choices": [first]} | fields).encode()


def failure_of(data: bytes, **how: Any) -> CallFailed:
    with pytest.raises(CallFailed) as failed:
        read_completion(data, MODEL, **how)
    return failed.value


@pytest.mark.parametrize(
    "reason",
    [None, *"|null|stop|STOP|stop | Stop\n|FINISH_REASON_STOP|end_turn|endturn|end-turn|END|eos|EOS|eos_token".split("|"),
     "stop_sequence", "stop sequence", "COMPLETE", "FinishReason.STOP"],
)  # fmt: skip
def test_a_model_that_came_to_its_own_end_has_answered_whatever_that_is_called(reason: str | None) -> None:
    assert read_completion(body({"finish_reason": reason}), MODEL).text == "4"


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("length", "malformed"),
        ("MAX_TOKENS", "malformed"),
        ("max_output_tokens", "malformed"),
        ("model_length", "malformed"),
        ("model_context_window_exceeded", "malformed"),
        ("content_filter", "refusal"),
        ("SAFETY", "refusal"),
        ("RECITATION", "refusal"),
        ("PROHIBITED_CONTENT", "refusal"),
        ("BLOCKLIST", "refusal"),
        ("SPII", "refusal"),
        ("sensitive", "refusal"),
        ("refusal", "refusal"),
        ("guardrail_intervened", "refusal"),
        ("error", "server"),
        ("ERROR", "server"),
        ("network_error", "server"),
        ("abort", "server"),
        ("cancelled", "server"),
        ("insufficient_system_resource", "server"),
        ("tool_calls", "malformed"),
        ("function_call", "malformed"),
        ("MALFORMED_FUNCTION_CALL", "malformed"),
        ("OTHER", "server"),
        ("FINISH_REASON_OTHER", "server"),
        ("FinishReason.MAX_TOKENS", "malformed"),
        ("FinishReason.SAFETY", "refusal"),
        ("failed", "server"),
        ("FINISH_REASON_UNSPECIFIED", "server"),
        ("pause_turn", "malformed"),
        ("repetition", "malformed"),
        ("nonstop", "malformed"),
        ("stop stop", "malformed"),
        (1, "malformed"),
        ({"type": "stop"}, "malformed"),
    ],
)
def test_whatever_else_ended_an_answer_there_is_no_answer_and_its_name_is_told(reason: Any, kind: MissingKind) -> None:
    failure = failure_of(body({"finish_reason": reason}))
    assert failure.kind == kind and failure.retryable == (kind == "server")
    assert not isinstance(reason, str) or reason in failure.reason


@given(st.text())
def test_an_end_that_nobody_knows_is_never_the_models_own(reason: str) -> None:
    assert classify_finish_reason(reason + " by our provider") == "unknown"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 502, "message": "Upstream overloaded", "metadata": {"raw": "x"}}, "server"),
        ({"code": "502", "message": "Upstream overloaded"}, "server"),
        ({"code": 503}, "server"),
        ({"code": 429, "message": "slow down"}, "rate_limited"),
        ({"code": "rate_limit_exceeded"}, "rate_limited"),
        ({"status": "RESOURCE_EXHAUSTED"}, "rate_limited"),
        ({"code": 402, "message": "credits"}, "quota"),
        ({"type": "insufficient_quota"}, "quota"),
        ({"code": 400, "message": "bad audio"}, "rejected"),
        ({"code": 408}, "network"),
        ({"code": 1302, "message": "a number of their own"}, "server"),
        ({"code": True}, "server"),
        ({"message": "upstream died"}, "server"),
        ("upstream died", "server"),
        (["upstream died"], "server"),
        (True, "server"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["in the choice", "in the message", "at the top", "at the top, several"])
@pytest.mark.parametrize("routed", [False, True], ids=["by its model", "by another name"])
def test_an_error_inside_a_success_is_what_it_is_outside_wherever_it_stands(
    error: Any, kind: MissingKind, where: str, routed: bool
) -> None:
    half = {"content": "<score>5</score>"}  # what was said before the upstream died is no answer
    data = {
        "in the choice": body({"error": error}, half),
        "in the message": body(message=half | {"error": error}),
        "at the top": body(message=half, error=error),
        "at the top, several": body(message=half, errors=[error]),
    }[where]
    failure = failure_of(data.replace(MODEL.encode(), b"a router") if routed else data)
    assert failure.kind == kind == failure_from_error(error, "").kind
    assert failure.retryable == (kind in ("server", "rate_limited", "network"))
    assert str(error["message"] if isinstance(error, dict) and "message" in error else "")[:9] in failure.reason


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"object": "error", "message": "engine died", "code": 503}, "server", "engine died"),
        (
            {"object": "error", "message": "too long", "type": "BadRequestError", "code": 400},
            "rejected",
            "too long",
        ),
        ({"code": "1305", "msg": "busy now", "success": False}, "empty", "busy now"),
        ({"detail": "not today"}, "empty", "not today"),
    ],
)
def test_an_error_in_a_form_of_its_own_is_told_in_its_words(data: Any, kind: MissingKind, message: str) -> None:
    failure = failure_of(json.dumps(data).encode())
    assert failure.kind == kind and message in failure.reason


@pytest.mark.parametrize("refusal", ["No.", ["No."], {"text": "No."}, True])
def test_a_refusal_of_any_form_is_one(refusal: Any) -> None:
    assert failure_of(body(message={"refusal": refusal})).kind == "refusal"


@pytest.mark.parametrize("named", ["native_finish_reason", "stop_reason"])
@pytest.mark.parametrize(
    ("reason", "kind"),
    [("MAX_TOKENS", "malformed"), ("max_tokens", "malformed"), ("SAFETY", "refusal"), ("error", "server")],
)
def test_what_the_endpoint_behind_a_router_cut_or_withheld_is_no_answer(
    named: str, reason: str, kind: MissingKind
) -> None:
    failure = failure_of(body({named: reason}))
    assert failure.kind == kind and reason in failure.reason


@pytest.mark.parametrize("reason", ["STOP", "completed", "its own word", None, 7, 128009])
def test_a_routers_note_that_is_no_failure_takes_nothing_from_an_answer(reason: Any) -> None:
    assert read_completion(body({"native_finish_reason": reason, "stop_reason": reason}), MODEL).text == "4"


TOOL = {"name": "grade", "arguments": "{}"}


@pytest.mark.parametrize(
    "message", [{"tool_calls": [{"type": "function", "function": TOOL}]}, {"function_call": TOOL}]
)
def test_a_tool_call_is_no_answer_whatever_words_stand_beside_it(message: dict[str, Any]) -> None:
    failure = failure_of(body(message=message))
    assert failure.kind == "malformed" and "called a tool" in failure.reason
    none: dict[str, Any] = {key: [] for key in message} | {"refusal": ""}
    assert read_completion(body(message=none), MODEL).text == "4"


def test_what_a_server_gave_up_is_its_failure_whatever_name_it_bears() -> None:
    failure = failure_of(body({"finish_reason": "error", "message": None}, model="other"))
    assert failure.kind == "server" and failure.retryable


def test_of_two_choices_none_is_taken() -> None:
    choice = {"message": {"content": "4"}, "finish_reason": "stop"}
    failure = failure_of(json.dumps({"choices": [choice, choice]}).encode())
    assert failure.kind == "malformed" and "one choice: got 2" in failure.reason


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "2?"}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "4"}], "4"),
        ([{"type": "output_text", "text": "4", "annotations": []}], "4"),
        ([THINKING, {"type": "text", "text": "4"}], "4"),
        ([{"type": "reasoning", "text": "2?"}, {"type": "text", "text": "4"}], "4"),
        ([{"type": "text", "text": "Fine. "}, {"type": "text", "text": "4"}], "Fine. 4"),
        ("<think>2? no</think>\n\n4", "\n\n4"),
        ("2? no</think>4", "4"),
        ("[THINK]2?[/THINK]4", "4"),
        ("<think></think>4", "4"),
        ("İİ</think>4.5", "4.5"),  # in lower case two characters each
        ('<think>İyi</THINK>{"score": 4}', '{"score": 4}'),
        ("<thin\u212a></thin\u212a>4", "<thin\u212a></thin\u212a>4"),  # the sign of kelvin, and no mark
    ],
)
def test_content_in_parts_and_thoughts_before_it_are_the_same_answer(content: Any, text: str) -> None:
    assert read_completion(body(message={"content": content}), MODEL).text == text


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"content": [THINKING]}, "empty"),
        ({"content": []}, "empty"),
        ({"content": None, "reasoning_content": "I give it <score>4</score>"}, "empty"),
        ({"content": "", "reasoning": "4"}, "empty"),
        ({"content": "<think>it is a 4"}, "empty"),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "refusal"),
        ({"content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "4"}]}, "malformed"),
        ({"content": [{"text": "4"}]}, "malformed"),
        ({"content": ["4"]}, "malformed"),
        ({"content": {"text": "4"}}, "malformed"),
        ({"content": 4}, "malformed"),
    ],
)
def test_a_thought_is_no_answer_and_neither_is_a_part_that_is_no_text(
    message: dict[str, Any], kind: MissingKind
) -> None:
    assert failure_of(body(message=message)).kind == kind


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_of_its_own_is_kept_apart(field: str) -> None:
    completion = read_completion(body(message={field: "2 words"}), MODEL)
    assert (completion.text, completion.thought) == ("4", "2 words")


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (0, 0)),
        ({}, (0, 0)),
        ({"prompt_tokens": None, "completion_tokens": None, "total_tokens": None}, (0, 0)),
        ({"prompt_tokens": 7, "completion_tokens": None}, (7, 0)),
        (
            {"prompt_tokens": 20, "completion_tokens": 168, "total_tokens": 736},
            (20, 716),
        ),  # a thought is billed
        ({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}, (20, 9)),
        ({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 0}, (20, 9)),
        ({"completion_tokens": 9, "total_tokens": 29}, (0, 9)),
        ({"prompt_tokens": 7.0, "completion_tokens": 2.5}, (7, 0)),
        ({"prompt_tokens": "7", "completion_tokens": True}, (0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 1 << 40}, (0, 0)),
        ({"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": None}, (7, 2)),
        ([], (0, 0)),
        ("none", (0, 0)),
    ],
)
def test_a_usage_that_does_not_count_takes_nothing_from_a_sound_answer(usage: Any, counts: tuple[int, int]) -> None:
    completion = read_completion(body(usage=usage), MODEL)
    assert (completion.text, completion.prompt_tokens, completion.completion_tokens) == ("4", *counts)


def test_audio_that_was_counted_is_known() -> None:
    usage = {"prompt_tokens": 30, "prompt_tokens_details": {"audio_tokens": 25, "cached_tokens": 5}}
    assert read_completion(body(usage=usage), MODEL).audio_tokens == 25


@pytest.mark.parametrize(
    ("named", "also", "ours"),
    [
        (MODEL, [], True),
        (f"{MODEL}-2025-08-28", [], True),
        ("gpt-audio-2025-08-28", [], False),
        ("gpt-audio-2025-08-28", ["gpt-audio"], True),
        ("gpt-audio", ["gpt-audio"], True),
        ("gpt-audio-mini", ["gpt-audio"], False),
        ("openai/gpt-audio", ["gpt-audio"], False),
        ("gptXaudio", ["gpt.audio"], False),
        ("gemini-2.0-flash-001", ["gemini-2.0-flash"], True),
        ("gpt-4-0613", ["gpt-4"], True),
        ("llama-3-405", ["llama-3"], False),  # a size
        ("qwen3:235", ["qwen3"], False),
        ("qwen3:235-2507", ["qwen3"], False),
    ],
)
def test_a_model_may_answer_by_a_name_that_the_user_gave_it_and_by_no_other(
    named: str, also: list[str], ours: bool
) -> None:
    if ours:
        assert read_completion(body(model=named), MODEL, also).text == "4"
    else:
        failure = failure_of(body(model=named), also=also)
        assert failure.kind == "wrong_model" and f"judge.api.also_named=[{named}]" in failure.reason


def test_an_answer_that_was_cut_off_names_the_settings_that_give_it_room() -> None:
    failure = failure_of(body({"finish_reason": "length"}), settings="judge.second", most=400)
    for part in ("of 400", "judge.second.max_tokens", "judge.second.reasoning_effort"):
        assert part in failure.reason


@given(st.text(st.sampled_from("<>/think[THINK]◁▷İ 4\n"), max_size=60))
def test_what_stands_behind_a_thought_is_the_end_of_the_text(text: str) -> None:
    answer, thought = split_thought(text)
    assert (thought + answer == text) or (answer == "" and thought == text)
    assert "</think>" not in answer.lower()


@pytest.mark.parametrize(
    ("logprobs", "tokens"),
    [
        (None, 0),
        ([], 0),
        ({}, 0),
        ({"content": None}, 0),
        ({"content": []}, 0),
        ({"tokens": ["4"], "token_logprobs": [-0.1], "top_logprobs": [{"4": -0.1}]}, 0),  # the older form
        ({"content": None, "refusal": []}, 0),
        ({"content": [{"token": "4", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}, 1),
        ({"content": [{"token": "4", "logprob": -0.1}]}, 1),
    ],
)
def test_probabilities_in_another_form_are_none_and_the_answer_stays(logprobs: Any, tokens: int) -> None:
    assert len(read_completion(body({"logprobs": logprobs}), MODEL).logprobs) == tokens


@pytest.mark.parametrize("logprob", [None, "0", 0.7, True, [], "-inf"])
def test_something_among_the_probabilities_that_is_none_is_told(logprob: Any) -> None:
    listed = [{"token": "4", "logprob": -0.1, "top_logprobs": [{"token": "5", "logprob": logprob}]}]
    failure = failure_of(body({"logprobs": {"content": listed}}))
    assert failure.kind == "malformed" and "token probabilities: 0.top_logprobs.0.logprob" in failure.reason


def test_the_token_that_was_taken_comes_first_and_once() -> None:
    top = [{"token": "5", "logprob": -3.0}, {"token": "4", "logprob": -0.1}]
    listed = [{"token": "4", "logprob": -0.1004, "top_logprobs": top}]
    completion = read_completion(body({"logprobs": {"content": listed}}), MODEL)
    assert completion.logprobs == [[("4", -0.1), ("5", -3.0)]]


@pytest.mark.parametrize("named", [None, ""])
def test_an_endpoint_that_does_not_name_its_model_is_believed(named: str | None) -> None:
    assert read_completion(body(model=named), MODEL).text == "4"
