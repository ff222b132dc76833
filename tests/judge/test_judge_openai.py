import asyncio
import json
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from judge.endpoint.address import Endpoint
from judge.endpoint.cache import VerdictCache
from judge.endpoint.chat import ask_endpoint
from judge.endpoint.http import new_client
from judge.endpoint.leases import TokenPrice
from judge.endpoint.limits import Limiter
from judge.llm.answers import AnswerMode, AnswerSampling
from judge.llm.caller import JudgeCaller
from judge.llm.probe import probe_capabilities
from judge.llm.probe_questions import TrialPlan, build_smallest_body
from judge.llm.reply_judge import OpenAIJudge
from judge.llm.rubric import ACOUSTIC_RUBRIC, HOLISTIC_RUBRIC, SEMANTIC_RUBRIC, Rubric
from judge.types import CallFailed, JudgeTask, MissingVerdict, Scale, ScoredVerdict, Verdict
from rollout.types import Speech
from tests.helpers import clocks
from tests.helpers.clocks import now, put_forward
from tests.helpers.judge_server import MODEL, Body, JudgeServer, able, by_content, limits, recordings, said
from tests.helpers.processes import HANG_S

T = TypeVar("T")
TASK = JudgeTask(task_type="t", question="What is two plus two?", match=None, answer=None, style=None)
WAVE = (0.2 * np.sin(np.arange(11_025) / 9)).astype(np.float32)
SPEECH = Speech(wave=WAVE, sample_rate=11_025)
MODES: tuple[AnswerMode, ...] = ("logprobs", "schema", "tagged")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried soon."""
    monkeypatch.setattr("judge.endpoint.http.FIRST_WAIT", 0.02)


def run(test: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(test, HANG_S))


def endpoint(server: JudgeServer, **changes: Any) -> Endpoint:
    settings: dict[str, Any] = {"key_env": None, "deadline_s": HANG_S, "attempts": 1}
    return Endpoint(base_url=server.base_url, model=MODEL, **(settings | changes))


def judge_of(
    server: JudgeServer,
    mode: AnswerMode = "logprobs",
    *,
    repeats: int = 1,
    scale: Scale | None = None,
    limiter: Limiter | None = None,
    outage_s: float = 5.0,
    key_env: str | None = None,
    deadline_s: float = HANG_S,
    attempts: int = 1,
    **caller: Any,
) -> OpenAIJudge:
    where = endpoint(server, key_env=key_env, deadline_s=deadline_s, attempts=attempts)
    asks = partial(ask_endpoint, new_client(), where)
    return OpenAIJudge(
        JudgeCaller(asks, MODEL, limiter or Limiter(limits()), outage_s=outage_s, **caller),
        able(mode),
        scale=scale or Scale(),
        repeats=repeats,
        sampling=AnswerSampling(temperature=0.7),
    )


def asked(*rubrics: Rubric, **more: Any) -> TrialPlan:
    return TrialPlan(rubrics=rubrics, sampling=AnswerSampling(), **more)


def scored(verdict: Verdict) -> ScoredVerdict:
    assert isinstance(verdict, ScoredVerdict), verdict
    return verdict


async def score(
    judge: OpenAIJudge, rubric: Rubric = HOLISTIC_RUBRIC, heard: str = "four", speech: Speech = SPEECH
) -> Verdict:
    return await judge.score(rubric, TASK, heard, speech, None)


def tone(number: int) -> Speech:
    """A reply that no other number has."""
    return Speech(wave=WAVE * np.float32(1 - number / 100), sample_rate=SPEECH.sample_rate)


# --- verdicts ---


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rubric", [SEMANTIC_RUBRIC, ACOUSTIC_RUBRIC, HOLISTIC_RUBRIC], ids=lambda rubric: rubric.name)
def test_a_verdict_is_what_the_judge_said_in_every_mode(mode: AnswerMode, rubric: Rubric) -> None:
    async def test() -> None:
        async with JudgeServer(lambda body: 3.25) as server:
            verdict = scored(await score(judge_of(server, mode), rubric))
        assert verdict.value == pytest.approx(3.25 if mode == "logprobs" else 3.0)
        assert verdict.judge == f"openai({MODEL} {rubric.id} {mode})"
        assert verdict.spread == 0 and not verdict.cached and verdict.why

    run(test())


def test_the_judge_hears_the_reply_as_it_is_and_reads_what_was_recognised() -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            user = Speech(wave=WAVE[:4000], sample_rate=8_000)
            await judge_of(server).score(HOLISTIC_RUBRIC, TASK, "four", SPEECH, user)
        (body,) = server.bodies
        (first, user_rate), (second, rate) = recordings(body)
        assert (len(first), user_rate, len(second), rate) == (4000, 8_000, 11_025, 11_025)
        np.testing.assert_allclose(second, WAVE, atol=1e-4)
        assert "four" in said(body) and TASK.question in said(body)

    run(test())


def test_the_five_levels_are_stretched_over_the_scale() -> None:
    async def test() -> None:
        answers = iter([2.0, 4.0])
        async with JudgeServer(lambda body: next(answers)) as server:
            verdict = scored(await score(judge_of(server, repeats=2, scale=Scale(0.0, 1.0))))
        assert verdict.value == pytest.approx(0.5)
        assert verdict.spread == pytest.approx(0.25)  # one level of four

    run(test())


@pytest.mark.parametrize(("level", "end"), [(1.0, -1.0), (5.0, 7.0)])
def test_the_ends_of_the_levels_are_the_ends_of_the_scale(level: float, end: float) -> None:
    async def test() -> None:
        async with JudgeServer(lambda body: level) as server:
            assert scored(await score(judge_of(server, "schema", scale=Scale(-1.0, 7.0)))).value == end

    run(test())


def test_repeats_are_the_mean_and_the_population_spread_of_that_many_calls() -> None:
    async def test() -> None:
        answers = iter([1.0, 2.5, 4.0, 4.5])
        async with JudgeServer(lambda body: next(answers)) as server:
            verdict = scored(await score(judge_of(server, repeats=4)))
        assert len(server.bodies) == 4
        assert verdict.value == pytest.approx(3.0)
        assert verdict.spread == pytest.approx(np.std([1.0, 2.5, 4.0, 4.5]))

    run(test())


@pytest.mark.parametrize("failing", range(3))
def test_one_missing_repeat_makes_the_verdict_missing_and_the_others_are_kept(failing: int, tmp_path: Path) -> None:
    async def test() -> None:
        cache = VerdictCache(tmp_path / "cache", 1 << 20)
        async with JudgeServer(lambda body: 4.0) as server:
            count = iter(range(100))
            server.edit = lambda body, text: "9" if next(count) == failing else text
            judge = judge_of(server, repeats=3, cache=cache)
            verdict = await score(judge)
            assert isinstance(verdict, MissingVerdict)
            assert verdict.kind == "out_of_range" and not verdict.retryable
            assert scored(await score(judge)).value == 4.0
            assert len(server.bodies) == 4  # the failure was not cached, the two scores were

    run(test())


@pytest.mark.parametrize(
    ("mode", "said", "kind"),
    [
        ("logprobs", "I would say 4", "malformed"),
        ("schema", '{"reason": "Good.", "score": 9}', "out_of_range"),
        ("schema", "<html>busy</html>", "malformed"),
        ("tagged", "<score>5</score> or <score>4</score>", "malformed"),
        ("tagged", "答案是正确的，声音也很自然 <score>4</score>", "language"),
        ("tagged", " ", "empty"),
    ],
)
def test_what_cannot_be_read_is_missing_with_its_kind(mode: AnswerMode, said: str, kind: str) -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            server.edit = lambda body, text: said
            verdict = await score(judge_of(server, mode))
        assert isinstance(verdict, MissingVerdict) and verdict.kind == kind, verdict
        assert len(server.bodies) == 1  # nothing but an outage is asked again

    run(test())


def test_settings_of_the_judge_are_checked() -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            with pytest.raises(ValueError, match="repeats"):
                judge_of(server, repeats=0)
            with pytest.raises(ValueError, match="outage_s"):
                judge_of(server, outage_s=0.0)

    run(test())


# --- cache ---


def test_a_second_run_costs_nothing_and_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            verdicts = []
            for _ in range(2):
                cache = VerdictCache(tmp_path / "cache", 1 << 20)
                verdicts.append(scored(await score(judge_of(server, repeats=2, cache=cache))))
                cache.close()
        assert len(server.bodies) == 2
        assert [verdict.cached for verdict in verdicts] == [False, True]
        assert verdicts[0].value == verdicts[1].value and verdicts[0].why == verdicts[1].why

    run(test())


def test_anything_that_the_answer_depends_on_makes_another_entry(tmp_path: Path) -> None:
    async def test() -> None:
        cache = VerdictCache(tmp_path / "cache", 1 << 20)
        async with JudgeServer() as server:
            judge, other_mode = judge_of(server, cache=cache), judge_of(server, "schema", cache=cache)
            louder = Speech(wave=WAVE * np.float32(1.001), sample_rate=11_025)
            other_rate = Speech(wave=WAVE, sample_rate=11_026)
            asked = JudgeTask(task_type="t", question="Why?", match=None, answer=None, style=None)
            for call in (
                judge.score(HOLISTIC_RUBRIC, TASK, "four", SPEECH, None),
                judge.score(HOLISTIC_RUBRIC, TASK, "five", SPEECH, None),
                judge.score(HOLISTIC_RUBRIC, asked, "four", SPEECH, None),
                judge.score(HOLISTIC_RUBRIC, TASK, "four", louder, None),
                judge.score(HOLISTIC_RUBRIC, TASK, "four", other_rate, None),
                judge.score(HOLISTIC_RUBRIC, TASK, "four", SPEECH, SPEECH),
                judge.score(ACOUSTIC_RUBRIC, TASK, "four", SPEECH, None),
                judge.score(SEMANTIC_RUBRIC, TASK, "four", SPEECH, None),
                other_mode.score(HOLISTIC_RUBRIC, TASK, "four", SPEECH, None),
            ):
                assert not scored(await call).cached
            before = len(server.bodies)
            assert scored(await judge.score(ACOUSTIC_RUBRIC, TASK, "unread", SPEECH, None)).cached
            assert scored(await judge.score(SEMANTIC_RUBRIC, TASK, "four", louder, None)).cached
            assert len(server.bodies) == before

    run(test())


# --- limits and outages ---


def test_a_run_pauses_while_the_endpoint_is_down_and_resumes() -> None:
    async def test() -> None:
        limiter = Limiter(limits())
        async with JudgeServer(lambda body: 4.0) as server:
            judge = judge_of(server, limiter=limiter)
            server.down = True
            calls = [asyncio.create_task(score(judge, heard=str(i), speech=tone(i))) for i in range(6)]
            while limiter.state().opened < 5:
                await asyncio.sleep(0.01)
            asked, probes = len(server.bodies), limiter.state().opened
            server.down = False
            verdicts = await asyncio.gather(*calls)
        assert asked <= 6 + probes  # paused, not hammering: the first calls, and one whenever it may be up again
        lost = [verdict for verdict in verdicts if isinstance(verdict, MissingVerdict)]
        assert len(lost) <= 1 and all(verdict.kind == "server" for verdict in lost)  # before the breaker opened
        assert limiter.state().breaker == "closed" and limiter.state().in_flight == 0

    run(test())


def test_an_outage_longer_than_a_run_waits_is_missing_by_the_breaker() -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            server.down = True
            judge = judge_of(server, outage_s=0.3)
            calls = asyncio.gather(*(score(judge, heard=str(i), speech=tone(i)) for i in range(5)))
            verdicts = await calls
        kinds = [verdict.kind for verdict in verdicts if isinstance(verdict, MissingVerdict)]
        assert len(kinds) == 5 and kinds.count("breaker") >= 4
        assert all(isinstance(verdict, MissingVerdict) and verdict.retryable for verdict in verdicts)

    run(test())


class Looked(Limiter):
    looks = 0

    def down_s(self) -> float:
        self.looks += 1
        return super().down_s()


def test_calls_that_come_late_in_an_outage_do_not_wait_for_all_of_it_again() -> None:
    async def test() -> None:
        limiter = Looked(limits(concurrency=2, breaker_failures=2, breaker_rest_s=60))
        async with JudgeServer() as server:
            server.down = True
            judge = judge_of(server, limiter=limiter, outage_s=0.4)
            for wave in range(6):
                if wave == 1:
                    limiter.looks = 0
                calls = (score(judge, heard=str(i), speech=tone(2 * wave + i)) for i in range(2))
                results = await asyncio.gather(*calls)
                assert all(isinstance(verdict, MissingVerdict) for verdict in results)
        assert limiter.looks <= 5 * 2 * 2, "each call looks twice: the outage is as old as the breaker says"

    run(test())


def test_a_call_that_waits_behind_an_open_breaker_gives_up_too() -> None:
    async def test() -> None:
        slow = limits(concurrency=1, breaker_failures=1, breaker_rest_s=60)
        limiter = Limiter(slow)
        limiter.release(await limiter.acquire(1.0), ok=False, spent=0.0)
        async with JudgeServer() as server:
            verdict = await score(judge_of(server, limiter=limiter, outage_s=0.2))
        assert isinstance(verdict, MissingVerdict) and verdict.kind == "breaker"
        assert not server.bodies and limiter.state().waiting == 0

    run(test())


def test_one_failure_under_a_closed_breaker_is_missing_at_once() -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            server.down = True
            verdict = await score(judge_of(server))
        assert isinstance(verdict, MissingVerdict) and verdict.kind == "server" and verdict.retryable
        assert len(server.bodies) == 1

    run(test())


def test_answers_are_paid_for_and_the_cap_ends_the_calls() -> None:
    async def test() -> None:
        capped = limits(concurrency=1, spend_cap=0.003)
        limiter = Limiter(capped)
        async with JudgeServer() as server:
            server.edit = lambda body, text: text if len(server.bodies) > 1 else "no score, but paid for"
            judge = judge_of(server, limiter=limiter, price=TokenPrice(prompt=8.0, completion=20.0))
            verdicts = [await score(judge, SEMANTIC_RUBRIC, str(i)) for i in range(5)]
        assert len(server.bodies) == 3  # 1e-3 each
        assert limiter.state().spent == pytest.approx(0.003)
        assert [isinstance(verdict, MissingVerdict) for verdict in verdicts] == [True, False, False, True, True]
        assert [verdict.kind for verdict in verdicts[3:] if isinstance(verdict, MissingVerdict)] == ["spend_cap"] * 2

    run(test())


def test_every_attempt_has_a_lease_and_waiting_for_one_does_not_use_up_the_deadline() -> None:
    async def test() -> None:
        limiter = Limiter(limits(concurrency=1, requests_per_minute=0.01, breaker_failures=9), clock=now)
        async with JudgeServer() as server:
            server.down = True
            judge = judge_of(server, limiter=limiter, attempts=4)
            call = asyncio.create_task(score(judge))
            while not call.done():
                if limiter.state().waiting:
                    put_forward(6000.0)
                await asyncio.sleep(0.001)
        last = call.result()
        assert isinstance(last, MissingVerdict) and last.kind == "server", "three waits, each longer than the deadline"
        assert limiter.state().requests == len(server.bodies) == 4, "each attempt was one request"

    clocks.run(test())


def test_the_first_calls_of_an_outage_wait_for_its_end() -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            server.down = True
            limiter = Limiter(limits(breaker_failures=4))
            judge = judge_of(server, limiter=limiter, attempts=4)
            calls = asyncio.gather(*(score(judge, heard=str(i), speech=tone(i)) for i in range(3)))
            while limiter.state().opened < 2:
                await asyncio.sleep(0.01)
            server.down = False
            verdicts = await calls
        assert all(isinstance(verdict, ScoredVerdict) for verdict in verdicts)

    run(test())


def test_a_reply_that_fails_by_itself_is_missing_and_no_outage() -> None:
    async def test() -> None:
        limiter = Limiter(limits(breaker_failures=4, concurrency=4))
        async with JudgeServer() as server:
            server.down = True
            judge = judge_of(server, limiter=limiter, attempts=4, repeats=2)
            both = await asyncio.gather(*(score(judge, rubric) for rubric in (ACOUSTIC_RUBRIC, HOLISTIC_RUBRIC)))
        assert all(isinstance(verdict, MissingVerdict) and verdict.kind == "server" for verdict in both)
        assert limiter.state().opened == 0 and len(server.bodies) == 2 * 2 * 4

    run(test())


def test_two_replies_that_fail_by_themselves_keep_nobody_waiting() -> None:
    class Poisoned(JudgeServer):
        def _answer(self, body: Body) -> tuple[int, Body]:
            return (500, {"error": {}}) if "poison" in said(body) else super()._answer(body)

    async def test() -> None:
        limiter = Limiter(limits(breaker_failures=2, breaker_rest_s=0.02, concurrency=2))
        async with Poisoned() as server:
            asks = partial(ask_endpoint, new_client(), endpoint(server))
            judge = judge_of(
                server, limiter=limiter, outage_s=600.0, ping=partial(asks, build_smallest_body(AnswerSampling()))
            )
            cases = [score(judge, SEMANTIC_RUBRIC, f"poison {i}", tone(i)) for i in range(2)]
            bad = await asyncio.gather(*cases)
            good = await score(judge, SEMANTIC_RUBRIC, "four", tone(3))
        assert [verdict.kind for verdict in bad if isinstance(verdict, MissingVerdict)] == ["server", "server"]
        assert isinstance(good, ScoredVerdict) and limiter.state().opened and limiter.down_s() == 0

    run(test())


def test_while_an_endpoint_is_down_it_is_asked_something_small_and_no_reply_is_lost() -> None:
    async def test() -> None:
        limiter = Limiter(limits(breaker_failures=2, breaker_rest_s=0.02))
        async with JudgeServer() as server:
            server.down = True
            ping = partial(ask_endpoint, new_client(), endpoint(server), build_smallest_body(AnswerSampling()))
            judge = judge_of(server, limiter=limiter, outage_s=60.0, attempts=2, ping=ping)
            calls = asyncio.gather(*(score(judge, ACOUSTIC_RUBRIC, speech=tone(i)) for i in range(4)))
            while limiter.state().opened < 6:
                await asyncio.sleep(0.01)
            server.down = False
            asked = [bool(recordings(body)) for body in server.bodies]
            verdicts = await calls
        assert all(isinstance(verdict, ScoredVerdict) for verdict in verdicts)
        assert asked.count(True) <= 4 * 2, "two attempts each, and from then on nothing with a reply in it"
        assert asked.count(False) >= 3

    run(test())


def test_an_answer_of_no_use_is_paid_for() -> None:
    async def test() -> None:
        limiter = Limiter(limits(spend_cap=1.0))
        async with JudgeServer(model="another-model") as server:
            verdict = await score(judge_of(server, limiter=limiter, price=TokenPrice(prompt=8.0, completion=20.0)))
        assert isinstance(verdict, MissingVerdict) and verdict.kind == "wrong_model"
        assert limiter.state().spent == pytest.approx((8.0 * 150 + 20.0 * 10) / 1e6)

    run(test())


@pytest.mark.parametrize("when", ["waiting", "in flight"])
def test_a_cancelled_call_gives_its_lease_back(when: str) -> None:
    async def test() -> None:
        item = limits(concurrency=1)
        limiter = Limiter(item)
        async with JudgeServer() as server:
            judge = judge_of(server, limiter=limiter)
            held = await limiter.acquire(0.0) if when == "waiting" else None
            call = asyncio.create_task(score(judge))
            await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            if held is not None:
                limiter.release(held, ok=None, spent=0.0)
            assert limiter.state().in_flight == limiter.state().waiting == 0
            scored(await score(judge))

    run(test())


# --- log and secrets ---


def test_the_log_has_every_call_and_neither_audio_nor_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", "sk-canary-very-secret")

    async def test() -> None:
        log, cache = tmp_path / "judge.jsonl", VerdictCache(tmp_path / "cache", 1 << 20)
        async with JudgeServer(lambda body: 4.0) as server:
            server.edit = lambda body, text: text if len(server.bodies) != 2 else "9"
            judge = judge_of(server, log=log, cache=cache, key_env="CANARY_KEY")
            verdicts = [await score(judge, heard=heard) for heard in ("a", "b", "a")]
        assert "authorization: bearer sk-canary-very-secret" in server.heads[0].lower()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["kind"] for line in lines] == [None, "out_of_range"]
        assert [line["text"] for line in lines] == ["4", "9"]
        assert lines[0]["audio"][0]["seconds"] == 1.0 and len(lines[0]["audio"][0]["sha256"]) == 64
        assert lines[0]["model"] == MODEL and lines[0]["seconds"] > 0
        sent = server.bodies[0]["messages"][1]["content"][-1]["input_audio"]["data"]
        assert sent[100:150] not in log.read_text()
        for file in tmp_path.iterdir():
            assert b"canary-very-secret" not in file.read_bytes()
        assert "secret" not in repr(verdicts) + repr(vars(judge)) + repr(vars(judge.caller))

    run(test())


# --- probe ---


@pytest.mark.parametrize(
    ("lacks", "mode"),
    [
        ("", "logprobs"),
        ("json_schema choice", "logprobs"),
        ("logprobs", "schema"),
        ("logprobs json_schema", "tagged"),
        ("logprobs json_schema choice", "tagged"),
    ],
)
def test_the_probe_picks_the_best_way_that_works_and_says_why_not_the_others(lacks: str, mode: str) -> None:
    async def test() -> None:
        async with JudgeServer(lacks=lacks) as server:
            capabilities = await probe_capabilities(
                partial(ask_endpoint, new_client(), endpoint(server)), MODEL, asked(ACOUSTIC_RUBRIC)
            )
            assert scored(await score(judge_of(server, capabilities.mode))).value >= 1
        assert capabilities.mode == mode and capabilities.audio and not capabilities.forced
        for name in lacks.split():
            assert not getattr(capabilities, name)
            assert f"no {name} (rejected: " in capabilities.describe()
        assert "\n" not in capabilities.describe()

    run(test())


def test_a_chatty_judge_is_made_to_choose_where_the_endpoint_can() -> None:
    async def test() -> None:
        async with JudgeServer(lacks="json_schema") as server:
            server.edit = lambda body, text: text if "structured_outputs" in body else f"Sure: {text}"
            capabilities = await probe_capabilities(
                partial(ask_endpoint, new_client(), endpoint(server)), MODEL, asked(ACOUSTIC_RUBRIC)
            )
        assert capabilities.mode == "logprobs" and capabilities.forced and capabilities.choice

    run(test())


def test_a_choice_that_is_ignored_is_no_choice() -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            server.edit = lambda body, text: text if "logprobs" in body else f"It is fine. <score>{text}</score>"
            capabilities = await probe_capabilities(
                partial(ask_endpoint, new_client(), endpoint(server)), MODEL, asked(SEMANTIC_RUBRIC)
            )
        assert not capabilities.choice and "not enforced" in capabilities.lacks["choice"]

    run(test())


@pytest.mark.parametrize("lacks", ["audio", "hearing"])
def test_a_judge_that_cannot_hear_is_refused_where_an_axis_needs_it(lacks: str) -> None:
    async def test() -> None:
        async with JudgeServer(lacks=lacks) as server:
            asks = partial(ask_endpoint, new_client(), endpoint(server))
            with pytest.raises(ValueError, match="acoustic needs a model that takes input_audio"):
                await probe_capabilities(asks, MODEL, asked(SEMANTIC_RUBRIC, ACOUSTIC_RUBRIC))
            capabilities = await probe_capabilities(asks, MODEL, asked(SEMANTIC_RUBRIC))
        assert not capabilities.audio and capabilities.mode == "logprobs"

    run(test())


def test_a_judge_that_never_gives_a_score_is_refused() -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            server.edit = lambda body, text: "As a language model I cannot rate that."
            with pytest.raises(ValueError, match=r"no score in any mode.*tagged: malformed"):
                await probe_capabilities(
                    partial(ask_endpoint, new_client(), endpoint(server)), MODEL, asked(ACOUSTIC_RUBRIC)
                )

    run(test())


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_an_endpoint_that_does_not_answer_is_no_endpoint_without_abilities(when: str) -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            calls = 0

            async def failing(body: dict[str, Any]) -> Any:
                nonlocal calls
                calls += 1
                if when == "from the start" or calls > 3:
                    raise CallFailed("rate_limited", "HTTP 429", retryable=True)
                return await ask_endpoint(new_client(), endpoint(server), body)

            with pytest.raises(ValueError, match="does not answer: rate_limited"):
                await probe_capabilities(failing, MODEL, asked(ACOUSTIC_RUBRIC))

    run(test())


# --- the server itself ---


@pytest.mark.parametrize("mode", MODES)
def test_the_test_server_gives_the_opinion_that_it_holds(mode: AnswerMode) -> None:
    async def test() -> None:
        async with JudgeServer() as server:
            verdict = scored(await score(judge_of(server, mode)))
        opinion = by_content(server.bodies[0])
        assert abs(verdict.value - opinion) <= (1e-6 if mode == "logprobs" else 0.5)

    run(test())


def test_those_who_only_waited_for_an_outage_are_told_its_cause_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", "sk-canary-very-secret")

    async def test() -> None:
        limiter = Limiter(limits(concurrency=1, breaker_failures=1, breaker_rest_s=60))
        async with JudgeServer() as server:
            server.down = True
            first = judge_of(server, limiter=limiter, outage_s=0.3, key_env="CANARY_KEY")
            waited = judge_of(server, limiter=limiter, outage_s=0.3, key_env="CANARY_KEY")
            both = await asyncio.gather(score(first), score(waited, heard="five", speech=tone(1)))
        for verdict in both:
            assert isinstance(verdict, MissingVerdict) and verdict.kind == "breaker"
            assert verdict.reason.count("stayed down") == 1 and "last: server: HTTP 503" in verdict.reason
            assert "secret" not in verdict.reason
        assert len(server.bodies) == 1, "the other only waited"

    run(test())
