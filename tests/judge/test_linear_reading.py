"""Whatever a judge, a recogniser or a manifest says is read in a time that grows with its length alone.

A text of a few hundred kilobytes that is read in quadratic time takes minutes to hours; in linear time, a second.
"""

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.endpoint.chat import ChatAnswer
from judge.endpoint.completion import is_requested_model, read_completion, split_thought
from judge.endpoint.failures import failure_from_status
from judge.endpoint.http import PostRequest, new_client, parse_retry_after, send_post
from judge.endpoint.label import sum_label_probabilities
from judge.endpoint.limits import Limiter
from judge.endpoint.strict_json import parse_strict_json
from judge.llm.answers import (
    SCORE_FORM,
    check_english,
    count_tags,
    parse_tag_content,
    read_judge_answer,
    shorten_reason,
)
from judge.llm.caller import JudgeCaller, JudgeQuestion
from judge.llm.ranking import parse_ranking
from judge.llm.rubric import escape_markup
from judge.recognisers.endpoint import MAX_TRANSCRIPT_CHARS
from judge.recognisers.pocketsphinx import split_words
from judge.rules import verifiable
from judge.rules.choices import find_chosen_letters
from judge.types import CallFailed, JudgeTask
from speech.answers.expected import find_answer_problem, parse_option
from speech.answers.expressions import last_expression_equals, parse_expression
from speech.answers.numbers import parse_numbers, parse_single_number
from speech.answers.spelling import strip_accents
from speech.encoders.kaldi import read_shift_and_scale
from tests.helpers.judge_server import JudgeServer, limits
from tests.helpers.processes import HANG_S

LONG = 400_000  # characters: less than an answer may have
HEARD = MAX_TRANSCRIPT_CHARS  # of a transcript
WORK_S = 60.0  # a hundred times what the longest reading here takes
X = parse_expression("x + 1")


def held(match: str, answer: str) -> Callable[[str], Any]:
    task = JudgeTask(task_type="t", question="", match=match, answer=answer, style=None)
    return lambda text: verifiable.gives_answer(text, task)


ANSWERS: dict[str, Callable[[str], Any]] = {
    "tags": partial(count_tags, "score"),
    "tag_content": partial(parse_tag_content, "score"),
    "tagged": lambda text: read_judge_answer(SCORE_FORM, "tagged", text, []),
    "schema": lambda text: read_judge_answer(SCORE_FORM, "schema", text, []),
    "alternatives": lambda text: sum_label_probabilities(["4"], [("4", -0.01 * i) for i in range(len(text) // 4)]),
    "label": lambda text: read_judge_answer(SCORE_FORM, "logprobs", text, [[("4", 0.0)]]),
    "ranking": lambda text: parse_ranking("tagged", f"Fine. <ranking>{text}</ranking>", 3),
    "english": check_english,
    "shortened": shorten_reason,
    "thought": split_thought,
    "completion": lambda text: read_completion(
        json.dumps({"choices": [{"message": {"content": text}}]}).encode(), "m"
    ),
    "model": lambda text: is_requested_model(text, ["gpt"]),
    "error": lambda text: failure_from_status(400, text.encode()),
    "json": lambda text: parse_strict_json(text.encode()),
    "retry-after": lambda text: parse_retry_after(text, 0.0),
    "escaped": escape_markup,
}
TRANSCRIPTS: dict[str, Callable[[str], Any]] = {
    "words": split_words,
    "letters": find_chosen_letters,
    "numbers": parse_numbers,
    "number": parse_single_number,
    "says": lambda text: last_expression_equals(text, X),
    "expression": parse_expression,
    "option": parse_option,
    "math": partial(find_answer_problem, "math"),
    "contains": held("contains", "one two"),
    "final": held("final", "one two"),
    "choice": held("choice", "B: Paris"),
}
PIECES = (
    "< </ <score> </score> <SCORE> </think> <think> <ranking> [ { \" \\ \\u \\ud8 [[], {\"a\": 1 1, 1., .1 -1 0 e 9,111 "
    "a a' -aa answer option choose the is not or and correct one hundred million point oh half over / ( ) √ ^ squared "
    "minus negative percent per cent twenty third ' ’ é ﷺ - -111 gpt- Mon, : . ; ! x"
).split()  # fmt: skip
SPACES = ["", " ", "\n", "\t", "\u00a0"]


@contextmanager
def no_hang() -> Iterator[None]:
    """Fails once this process has worked for longer than any linear reading does; the clock does not count."""

    def late(*_: object) -> None:
        raise AssertionError(f"still reading after {WORK_S} s of work")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, WORK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def reads(reader: Callable[[str], Any], text: str) -> None:
    with no_hang(), suppress(CallFailed, ValueError):
        reader(text)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("text", [
    "<" + " " * LONG + "x", "< " * (LONG // 2), "</" + "\n" * LONG, "<score>" * (LONG // 7),
    "<score>4</score>" + " " * LONG + "x", "<score>4</score> " * (LONG // 17), "1" + " " * LONG + ",x",
    "gpt" + "-111" * (LONG // 4) + "x", "[" * LONG, '{"a":' * (LONG // 5), '"' + "\\u0041" * (LONG // 6) + '"',
    "</think>" * (LONG // 8), "9" * LONG, " " * LONG,
], ids=lambda text: text[:9].replace(" ", "_"))  # fmt: skip
def test_an_answer_of_any_size_is_read_in_one_pass(name: str, text: str) -> None:
    reads(ANSWERS[name], text)


units = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(SPACES)), min_size=1, max_size=4)


def repeated(unit: list[tuple[str, str]], size: int, ends: tuple[str, str]) -> str:
    piece = "".join(part + space for part, space in unit)
    return ends[0] + piece * (size // len(piece)) + ends[1]


ends = st.tuples(*[st.sampled_from(["", "x", "<score>", "</score>", "answer ", "1", "("])] * 2)


@pytest.mark.parametrize("name", ANSWERS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(units, ends)
def test_an_answer_that_says_one_thing_over_and_over_is_read_in_one_pass(
    name: str, unit: list[tuple[str, str]], ends: tuple[str, str]
) -> None:
    reads(ANSWERS[name], repeated(unit, LONG // 4, ends))


@pytest.mark.parametrize("name", TRANSCRIPTS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(units, ends)
def test_the_longest_transcript_is_held_against_an_answer_in_one_pass(
    name: str, unit: list[tuple[str, str]], ends: tuple[str, str]
) -> None:
    reads(TRANSCRIPTS[name], repeated(unit, HEARD, ends))


@pytest.mark.parametrize("row", ["point ", "\u0301"], ids=["points", "accents"])
@pytest.mark.parametrize("start", ["a", "の", "five "])
def test_words_and_letters_of_one_row_are_read_in_one_pass(start: str, row: str) -> None:
    for reader in (split_words, strip_accents):
        reads(reader, start + row * (LONG // len(row)) + "oh")


def test_a_file_of_statistics_is_read_in_one_pass(tmp_path: Path) -> None:
    file = tmp_path / "am.mvn"
    file.write_text("<AddShift> " * (LONG // 11))
    with no_hang(), pytest.raises(ValueError, match="must hold"):
        read_shift_and_scale(file)


# --- off the event loop


def question(read_answer: Callable[[ChatAnswer], Any]) -> JudgeQuestion:
    return JudgeQuestion(about="", case="", judge="j", rubric="r/1", messages=[{"role": "user", "content": "?"}],
                    settings={}, clips=(), repeat=0, read=read_answer)  # fmt: skip


def test_other_calls_go_on_while_an_answer_is_read() -> None:
    """What is read waits for the loop here: on the loop it would wait for ever."""
    went_on = threading.Event()

    async def answered(body: dict[str, Any], under: Any = None) -> ChatAnswer:
        return ChatAnswer(text="4", logprobs=[], prompt_tokens=1, completion_tokens=1, seconds=0.1, attempts=1)

    def slow(answer: ChatAnswer) -> Any:
        assert went_on.wait(HANG_S), "the loop stood still while an answer was read"
        return (read_judge_answer(SCORE_FORM, "tagged", "Fine. <score>4</score>", []),)

    async def test() -> None:
        call = asyncio.create_task(JudgeCaller(answered, "m", Limiter(limits()), outage_s=5).call(question(slow)))
        while not call.done():
            await asyncio.sleep(0)
            went_on.set()
        assert (await call)[0].value == 4

    asyncio.run(test())


def test_other_calls_go_on_while_a_body_is_read() -> None:
    went_on = threading.Event()

    def slow(body: bytes) -> bool:
        return went_on.wait(HANG_S)

    async def test() -> None:
        from judge.endpoint.address import Endpoint

        async with JudgeServer(lambda body: 4.0) as server, new_client() as client:
            where = Endpoint(base_url=server.base_url, model="m", key_env=None, deadline_s=HANG_S)
            body = {"messages": [{"role": "system", "content": "score"}, {"role": "user", "content": []}]}
            request = PostRequest(
                path="/x", content_type="application/json", content=json.dumps(body).encode(), read=slow
            )
            call = asyncio.create_task(send_post(client, where, request))
            while not call.done():
                await asyncio.sleep(0.001)
                if server.bodies:
                    went_on.set()
            assert (await call).parsed

    asyncio.run(test())


def test_other_calls_go_on_while_an_error_page_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, went_on = threading.Event(), threading.Event()

    def slow(status: int, body: bytes) -> CallFailed:
        begun.set()
        assert went_on.wait(HANG_S / 10), "the loop stood still while an error page was read"
        return failure_from_status(status, body)

    monkeypatch.setattr("judge.endpoint.http.failure_from_status", slow)

    async def test() -> None:
        from judge.endpoint.address import Endpoint

        async with JudgeServer(lambda body: 4.0) as server, new_client() as client:
            server.down = True
            where = Endpoint(base_url=server.base_url, model="m", key_env=None, deadline_s=2 * HANG_S, attempts=1)
            request = PostRequest(path="/x", content_type="application/json", content=b"{}", read=lambda body: None)
            call = asyncio.create_task(send_post(client, where, request))
            while not call.done():
                await asyncio.sleep(0.001)
                if begun.is_set():
                    went_on.set()
            with pytest.raises(CallFailed, match="HTTP 503"):
                await call

    asyncio.run(test())
