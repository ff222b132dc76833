"""The probe asks what the run will ask; what it finds is about the endpoint, not about its bookkeeping."""

import asyncio
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from commands.cli import main
from conf.load import load_config
from judge.endpoint.address import endpoint_from_config
from judge.endpoint.chat import ChatAnswer, ask_endpoint
from judge.endpoint.http import new_client
from judge.endpoint.limits import Limiter
from judge.llm import build as api
from judge.llm.answers import AnswerMode, AnswerSampling
from judge.llm.caller import JudgeCaller
from judge.llm.pairwise import Candidate, Contest, compare_pairwise
from judge.llm.probe_questions import TrialPlan
from judge.llm.ranking import rank_candidates
from judge.llm.reply_judge import OpenAIJudge
from judge.llm.rubric import ACOUSTIC_RUBRIC, HOLISTIC_RUBRIC, RUBRICS, SEMANTIC_RUBRIC, Rubric
from judge.types import CallFailed, JudgeTask, Scale
from rollout.types import Speech
from tests.helpers.judge_builders import WORLD
from tests.helpers.judge_server import MODEL, Body, JudgeServer, limits, recordings

TASK = JudgeTask(task_type="t", question="Why?", match=None, answer=None, style=None)
LACKS: dict[AnswerMode, str] = {"logprobs": "", "schema": "logprobs", "tagged": "logprobs json_schema"}
Compare = Literal["none", "pairwise", "ranking"]


def tone(peak: float) -> Speech:
    return Speech(wave=np.asarray(peak * np.sin(np.arange(400) / 5), np.float32), sample_rate=8_000)


def judge_settings(server: JudgeServer, *more: str) -> Any:
    where = [f"judge.api.base_url={server.base_url}", f"judge.api.model={MODEL}", "judge.api.deadline_s=20"]
    return load_config(["judge=openai", *where, *more]).judge


def opinion(body: Body) -> Any:
    last = body["messages"][0]["content"].rpartition("\n\n")[2]
    if "ranking" in last:
        case = str(body["messages"][1])
        return list(range(1, max(case.count("<transcript "), case.count("'Reply ")) + 1))
    return 0.75 if "reply A" in last else 4.0


def shape(body: Body) -> tuple[str, int, tuple[str, ...], str]:
    """What a request asks for, whatever case it is about."""
    rest = {name: value for name, value in body.items() if name != "messages"}
    system, user = body["messages"]
    return (
        system["content"],
        len(recordings(body)),
        tuple(x["type"] for x in user["content"]),
        repr(sorted(rest.items())),
    )


async def asked_by_run(server: JudgeServer, config: Any, actual: Any, rubric: Rubric, size: int) -> None:
    """One score and one comparison, by what a run is made of."""
    endpoint = endpoint_from_config(config.api)
    caller = JudgeCaller(partial(ask_endpoint, new_client(), endpoint), MODEL, Limiter(limits()), outage_s=5)
    sampling = api.sampling_from_config(config.api)
    judge = OpenAIJudge(caller, actual, scale=Scale(), repeats=1, sampling=sampling)
    await judge.score(rubric, TASK, "because", tone(0.1), tone(0.5))
    contest = Contest(
        rubric=rubric,
        task=TASK,
        candidates=[Candidate(transcript="because", speech=tone(0.1 + i / 100)) for i in range(size)],
        user_audio=tone(0.5),
    )
    if config.api.compare == "pairwise":
        await compare_pairwise(caller, actual, contest, scale=Scale(), sampling=sampling)
    elif config.api.compare == "ranking":
        await rank_candidates(caller, actual, contest, scale=Scale(), repeats=1, sampling=sampling)


@pytest.mark.parametrize("mode", LACKS)
@pytest.mark.parametrize("rubric", RUBRICS.values(), ids=lambda rubric: rubric.name)
@pytest.mark.parametrize("compare", ["none", "pairwise", "ranking"])
def test_whatever_a_run_asks_the_probe_has_asked(compare: Compare, rubric: Rubric, mode: AnswerMode) -> None:
    weights = [f"judge.{name}={int(name == rubric.name)}" for name in RUBRICS]
    more = [f"judge.api.compare={compare}", "judge.api.max_tokens=900", "judge.api.reasoning_effort=low"]
    more += ["judge.api.max_tokens_field=max_completion_tokens", "judge.api.temperature=0.5"]

    async def test() -> tuple[list[Body], list[Body]]:
        async with JudgeServer(opinion, lacks=LACKS[mode]) as server:
            config = judge_settings(server, *weights, *more)
            judge = (await api.probe_endpoints(config, 3)).judge
            assert judge.mode == mode
            probe = list(server.bodies)
            server.bodies.clear()
            await asked_by_run(server, config, judge, rubric, 3)
            return probe, list(server.bodies)

    probe, run = asyncio.run(asyncio.wait_for(test(), 60))
    assert run and {shape(body) for body in run} <= {shape(body) for body in probe}
    for body in (*probe, *run):
        assert body["max_completion_tokens"] == 900 and body["reasoning_effort"] == "low"
        assert "max_tokens" not in body


class OneRecording(JudgeServer):
    most = 1

    def _answer(self, body: Body) -> tuple[int, Body]:
        if len(recordings(body)) > self.most:
            return 400, {"error": {"message": f"At most {self.most} audio(s) may be provided in one request."}}
        return super()._answer(body)


@pytest.mark.parametrize(
    ("rubric", "compare", "size", "user_audio", "count"),
    [
        (HOLISTIC_RUBRIC, "none", 1, True, 2),
        (HOLISTIC_RUBRIC, "none", 1, False, 1),
        (HOLISTIC_RUBRIC, "pairwise", 4, True, 3),
        (ACOUSTIC_RUBRIC, "none", 4, True, 1),
        (ACOUSTIC_RUBRIC, "pairwise", 4, True, 2),
        (ACOUSTIC_RUBRIC, "pairwise", 1, True, 1),
        (ACOUSTIC_RUBRIC, "ranking", 4, False, 4),
        (HOLISTIC_RUBRIC, "ranking", 4, True, 5),
        (SEMANTIC_RUBRIC, "ranking", 4, True, 0),
    ],
)
def test_an_endpoint_that_takes_one_recording_less_than_the_run_sends_is_refused(
    rubric: Rubric, compare: Compare, size: int, user_audio: bool, count: int
) -> None:
    weights = [f"judge.{name}={int(name == rubric.name)}" for name in RUBRICS]

    async def test() -> None:
        async with OneRecording(opinion) as server:
            config = judge_settings(server, *weights, f"judge.api.compare={compare}")
            server.most = count
            assert (await api.probe_endpoints(config, size, user_audio=user_audio)).judge.mode == "logprobs"
            if not count:
                return
            server.most = count - 1
            several = f", {count} recordings in one request" if count > 1 else ""
            with pytest.raises(ValueError, match=f"takes input_audio{several}, and this one did not: rejected"):
                await api.probe_endpoints(config, size, user_audio=user_audio)

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("compare", ["pairwise", "ranking"])
def test_a_judge_that_scores_and_cannot_compare_is_refused_before_anything_starts(compare: Compare) -> None:
    def edit(body: Body, text: str) -> str:
        last = body["messages"][0]["content"].rpartition("\n\n")[2]
        return "I like both." if "reply A" in last or "ranking" in last else text

    async def test() -> None:
        async with JudgeServer(opinion) as server:
            server.edit = edit
            config = judge_settings(server, f"judge.api.compare={compare}")
            assert await api.probe_endpoints(config, 1)
            with pytest.raises(ValueError, match=r"gave no (score in any mode|ranking)"):
                await api.probe_endpoints(config, 4)

    asyncio.run(asyncio.wait_for(test(), 60))


def answers(count: Callable[[int, int, bool], int], audio_tokens: int = 0) -> Callable[[Body], Any]:
    """An endpoint by its bookkeeping: (call, recordings, asked before) -> prompt tokens."""
    seen: list[str] = []

    async def asks(body: Body, under: Any = None) -> ChatAnswer:
        clips, start = len(recordings(body)), body["messages"][0]["content"][:100]
        tokens = count(len(seen), clips, start in seen)
        seen.append(start)
        text = "4" if "logprobs" in body else "Fine. <score>4</score>"
        return ChatAnswer(
            text=text,
            logprobs=[[("4", -0.1)]],
            prompt_tokens=tokens,
            completion_tokens=1,
            seconds=0.1,
            attempts=1,
            audio_tokens=audio_tokens * clips,
        )

    return asks


@pytest.mark.parametrize(
    "count",
    [
        lambda call, clips, known: 300 + 25 * clips,
        lambda call, clips, known: (12 if known else 300) + 25 * clips,  # without what was cached
        lambda call, clips, known: 12 + 25 * clips if call else 300,
        lambda call, clips, known: 0 if known else 300 + 25 * clips,
        lambda call, clips, known: 0,  # nothing is counted
    ],
)
def test_what_a_server_leaves_out_of_its_usage_makes_no_model_deaf(
    count: Callable[[int, int, bool], int],
) -> None:
    asked = TrialPlan(rubrics=[ACOUSTIC_RUBRIC], sampling=AnswerSampling())
    assert asyncio.run(api.probe_capabilities(answers(count), MODEL, asked)).audio


def test_audio_tokens_prove_that_a_recording_was_heard() -> None:
    asked = TrialPlan(rubrics=[ACOUSTIC_RUBRIC], sampling=AnswerSampling())
    assert asyncio.run(
        api.probe_capabilities(answers(lambda call, clips, known: 300, audio_tokens=25), MODEL, asked)
    ).audio


@pytest.mark.parametrize("count", [lambda call, clips, known: 300, lambda call, clips, known: 12 if known else 300])
def test_recordings_that_cost_nothing_even_when_nothing_is_cached_were_dropped(
    count: Callable[[int, int, bool], int],
) -> None:
    with pytest.raises(ValueError, match="no more tokens than without"):
        asyncio.run(
            api.probe_capabilities(
                answers(count), MODEL, TrialPlan(rubrics=[ACOUSTIC_RUBRIC], sampling=AnswerSampling())
            )
        )


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            CallFailed("wrong_model", "asked for a, answered by b"),
            "does not answer: wrong_model: asked for a",
        ),
        (CallFailed("rejected", "HTTP 400: use max_completion_tokens"), "max_tokens_field"),
        (CallFailed("malformed", "cut off: raise judge.api.max_tokens"), "judge.api.max_tokens"),
    ],
)
def test_an_endpoint_that_cannot_be_used_as_it_is_is_told_with_what_would_help(
    failure: CallFailed, message: str
) -> None:
    async def failing(body: Body, under: Any = None) -> ChatAnswer:
        raise failure

    with pytest.raises(ValueError, match=message):
        asyncio.run(
            api.probe_capabilities(failing, MODEL, TrialPlan(rubrics=[SEMANTIC_RUBRIC], sampling=AnswerSampling()))
        )


class Thinking(JudgeServer):
    """Thought is billed against the limit: 600 tokens before the first word."""

    def _answer(self, body: Body) -> tuple[int, Body]:
        if max(body.get("max_tokens", 0), body.get("max_completion_tokens", 0)) > 600:
            return super()._answer(body)
        choice = {"message": {"content": None}, "finish_reason": "length"}
        return 200, {
            "model": MODEL,
            "choices": [choice],
            "usage": {"prompt_tokens": 300, "completion_tokens": 0},
        }


def test_a_judge_that_thinks_is_used_once_it_has_room_to() -> None:
    async def test() -> None:
        async with Thinking(opinion) as server:
            with pytest.raises(ValueError, match=r"of 400, thought included: raise judge\.api\.max_tokens"):
                await api.probe_endpoints(judge_settings(server))
            assert (
                await api.probe_endpoints(judge_settings(server, "judge.api.max_tokens=2000"))
            ).judge.mode == "logprobs"

    asyncio.run(asyncio.wait_for(test(), 60))


class Newer(JudgeServer):
    """Knows the newer name alone, and one temperature."""

    def _answer(self, body: Body) -> tuple[int, Body]:
        if "max_tokens" in body or body["temperature"] != 1:
            return 400, {"error": {"message": "Unsupported: use max_completion_tokens, and temperature 1"}}
        return super()._answer(body)


def test_a_model_with_the_newer_name_and_one_temperature_is_used_with_its_settings() -> None:
    async def test() -> None:
        async with Newer(opinion) as server:
            with pytest.raises(ValueError, match="max_tokens_field"):
                await api.probe_endpoints(judge_settings(server))
            config = judge_settings(server, "judge.api.max_tokens_field=max_completion_tokens")
            judge = (await api.probe_endpoints(config)).judge
            assert judge.mode == "schema" and "temperature" in judge.lacks["logprobs"]

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_deployment_that_answers_by_its_models_name_is_used_once_that_is_listed() -> None:
    async def test() -> None:
        async with JudgeServer(opinion, model="gpt-audio-2025-08-28") as server:
            with pytest.raises(ValueError, match=r"judge\.api\.also_named=\[gpt-audio-2025-08-28\]"):
                await api.probe_endpoints(judge_settings(server))
            endpoints = await api.probe_endpoints(judge_settings(server, "judge.api.also_named=[gpt-audio]"))
            assert endpoints.judge.mode == "logprobs"

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize(("spoken", "code"), [(False, 0), (True, 2)], ids=["typed", "spoken"])
def test_the_command_asks_with_the_users_voice_only_where_a_prompt_is_spoken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoken: bool, code: int
) -> None:
    shutil.copy(WORLD / "data/bank/rms/twelve.flac", tmp_path / "twelve.flac")
    typed = {
        "id": "typed", "messages": [{"role": "user", "content": "how many?"}], "question_text": "how many?",
        "task_type": "t", "answer": {"match": "final", "value": "twelve"}, "style": None, "audios": [],
        "sft_target_text": "twelve", "sft_target_audio": ["twelve.flac"],
    }  # fmt: skip
    heard = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": [["twelve.flac"]]}
    (tmp_path / "typed.jsonl").write_text(json.dumps(typed) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps(typed | heard if spoken else typed) + "\n")
    data = [f"data.{split}={tmp_path}/typed.jsonl" for split in ("train", "validation")]
    hears = ["judge.asr.by=pocketsphinx", f"judge.asr.language_model={WORLD}/data/asr.arpa"]
    hears += [f"judge.asr.dictionary={WORLD}/data/asr.dict"]
    axes = ["judge.semantic=0", "judge.acoustic=0", "judge.holistic=1"]

    async def probed() -> int:
        async with OneRecording(opinion) as server:
            where = ["judge=openai", f"judge.api.base_url={server.base_url}", f"judge.api.model={MODEL}"]
            collected = [*where, *axes, *hears, "data=manifest", *data, f"data.test={tmp_path}/test.jsonl"]
            return await asyncio.to_thread(main, ["judge", "probe", *collected])

    assert asyncio.run(asyncio.wait_for(probed(), 60)) == code
    assert ("At most 1 audio" in capsys.readouterr().err) == spoken
