"""The API panel against a real endpoint on loopback: axes, the user's audio, comparisons, a second opinion."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.endpoints import ApiConfig, SecondConfig
from conf.judging import JudgeConfig
from judge.agreement import RatedReply
from judge.llm.build import build_api_panel, probe_endpoints
from judge.llm.calibration import fit_calibration, save_calibrations
from judge.llm.pairwise import add_floor_wins, compute_win_rates, score_unopposed
from judge.llm.panel import ApiPanel, SecondJudge
from judge.types import MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict
from tests.helpers.judge_builders import CONFIG, SCALE, WORLD, recorded, reply, speech, spoken, task, value
from tests.helpers.judge_server import MODEL, JudgeServer, recordings, said
from tests.helpers.processes import HANG_S

TEXT = "the answer is twelve"
OTHER = "after monday comes tuesday"
QUESTION = (WORLD / "data" / "bank" / "slt" / "cold.flac", WORLD / "data" / "bank" / "slt" / "day.flac")


def config_of(server: JudgeServer, *, second: JudgeServer | None = None, **changes: Any) -> JudgeConfig:
    api = {"base_url": server.base_url, "model": MODEL, **changes.pop("api", {})}
    more: dict[str, Any] = {"semantic_by": "api", "acoustic_by": "api", "api": ApiConfig(**api), **changes}
    if second is not None:
        more["second"] = SecondConfig(base_url=second.base_url, model=second.model, share=0.5)
    return CONFIG.model_copy(update=more)


async def panel_of(config: JudgeConfig, log: Path | None = None) -> ApiPanel:
    return build_api_panel(config, WORLD / "data", WORLD / "base", await probe_endpoints(config), log=log)


def last_word(body: dict[str, Any]) -> float:
    """Level 5 for the right answer, 2 for another; of two transcripts the right one wins."""
    matches = re.findall(r"<transcript(?: [AB])? \w+>\n(.*)\n", said(body))
    right = [text.endswith("twelve") for text in matches]
    if len(right) == 2:
        return 0.5 + (right[0] - right[1]) / 2
    return 5.0 if right == [True] else 2.0


def test_the_holistic_axis_hears_the_users_own_audio_at_its_own_rate() -> None:
    async def scenario() -> tuple[ReplyJudgement, list[dict[str, Any]]]:
        async with JudgeServer(last_word) as server:
            panel = await panel_of(config_of(server, semantic=0.0, acoustic=0.0, holistic=1.0))
            server.bodies.clear()
            asked = replace(task(TEXT), user_audio=QUESTION)
            judged = await panel.score(reply(TEXT), speech(spoken(TEXT)), asked)
            return judged, server.bodies

    judged, bodies = asyncio.run(asyncio.wait_for(scenario(), HANG_S))
    assert value(judged.reward) == value(judged.axes["holistic"]) == 5.0
    (body,) = bodies
    (user, rate), (answer, _) = recordings(body)
    clips = [recordings_of(path) for path in QUESTION]
    assert rate == clips[0][1] and len(user) == sum(len(wave) for wave, _ in clips)
    assert len(answer) == len(spoken(TEXT))


def recordings_of(path: Path) -> tuple[np.ndarray, int]:
    import soundfile

    wave, rate = soundfile.read(path, dtype="float32")
    return wave, rate


def test_a_group_is_compared_and_what_cannot_be_judged_loses_by_rule() -> None:
    async def scenario(compare: str) -> list[ReplyJudgement]:
        async with JudgeServer(last_word if compare == "pairwise" else ranked) as server:
            panel = await panel_of(config_of(server, acoustic_by="local", api={"compare": compare}))
            group = [(TEXT, "stop"), (OTHER, "stop"), (TEXT, "abort"), ("", "stop")]
            replies = [
                replace(reply(text, finish=finish), index=i)  # type: ignore[arg-type]
                for i, (text, finish) in enumerate(group)
            ]
            sounds = [speech(spoken(text or TEXT)) for text, _ in group]
            return await panel.compare(replies, sounds, task(TEXT))

    for compare in ("pairwise", "ranking"):
        right, wrong, aborted, silent = asyncio.run(asyncio.wait_for(scenario(compare), HANG_S))
        # Of the two that can be judged one wins; both beat the reply without words, which earns the floor.
        assert value(right.axes["semantic"]) == pytest.approx(SCALE.hi)
        assert value(wrong.axes["semantic"]) == pytest.approx(SCALE.at(1 / 2))
        assert isinstance(aborted.reward, MissingVerdict) and aborted.reward.kind == "aborted"
        assert value(silent.reward) == SCALE.lo
        assert value(right.axes["acoustic"]) > 4, "the local axis is scored by itself"


def ranked(body: dict[str, Any]) -> Any:
    matches = re.findall(r"<transcript (\d+) \w+>\n(.*)\n", said(body))
    if not matches:
        return 3.0
    return [int(n) for n, text in sorted(matches, key=lambda pair: not pair[1].endswith("twelve"))]


def test_the_only_judgeable_reply_of_a_group_beats_the_floor_and_is_missing_without_one() -> None:
    async def scenario() -> tuple[list[ReplyJudgement], list[ReplyJudgement]]:
        async with JudgeServer(last_word) as server:
            panel = await panel_of(config_of(server, acoustic=0.0, api={"compare": "pairwise"}))
            sounds = [speech(spoken(TEXT))] * 2
            floored = await panel.compare([reply(TEXT), reply("")], sounds, task(TEXT))
            aborted = await panel.compare([reply(TEXT), reply(TEXT, finish="abort")], sounds, task(TEXT))
            return floored, aborted

    floored, aborted = asyncio.run(asyncio.wait_for(scenario(), HANG_S))
    assert [value(item.reward) for item in floored] == [SCALE.hi, SCALE.lo]
    assert isinstance(aborted[0].reward, MissingVerdict) and aborted[0].reward.kind == "nothing_to_check"


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=10, max_size=10),
    st.integers(2, 5),
    st.integers(0, 4),
)
def test_floors_count_as_replies_that_lose_every_pair(wins: list[float], count: int, floors: int) -> None:
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    beats = dict(zip(pairs, wins, strict=False))
    chances = {**beats, **{(b, a): 1 - won for (a, b), won in beats.items()}}
    everyone = count + floors
    whole = {
        (a, b): chances.get((a, b), 1.0 if b >= count > a else 0.0 if a >= count > b else 0.5)
        for a in range(everyone)
        for b in range(everyone)
        if a != b
    }
    scale = Scale(2.0, 4.0)
    alone: list[Verdict] = [
        ScoredVerdict(value=scale.at(rate.share), judge="j", spread=rate.spread)
        for _, rate in sorted(compute_win_rates(chances, count).items())
    ]
    beside = add_floor_wins(alone, floors, scale)
    expected = compute_win_rates(whole, everyone)
    for index, verdict in enumerate(beside):
        assert value(verdict) == pytest.approx(scale.at(expected[index].share))
    assert isinstance(score_unopposed(floors, scale), ScoredVerdict) == (floors > 0)


def test_a_second_judge_is_asked_about_a_share_and_changes_no_reward(tmp_path: Path) -> None:
    async def scenario() -> list[ReplyJudgement]:
        async with JudgeServer(last_word) as server, JudgeServer(lambda body: 1.0, model="other") as other:
            panel = await panel_of(config_of(server, second=other), tmp_path / "calls.jsonl")
            replies = [replace(reply(TEXT), index=i) for i in range(40)]
            sound = speech(spoken(TEXT))
            return list(await asyncio.gather(*(panel.score(item, sound, task(TEXT)) for item in replies)))

    judged = asyncio.run(asyncio.wait_for(scenario(), HANG_S))
    assert all(value(item.reward) == pytest.approx(value(judged[0].reward)) for item in judged)
    asked = [item for item in judged if item.second]
    assert 8 <= len(asked) <= 32, "about half, by the hash of the reply"
    for item in asked:
        assert {axis: value(verdict) for axis, verdict in item.second.items()} == {
            "semantic": 1,
            "acoustic": 1,
        }
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert {call["case"] for call in calls} == {f"p/{i} v1" for i in range(40)}, "the log names the reply"
    assert {call["case"] for call in calls if call["model"] == "other"} == {f"p/{item.index} v1" for item in asked}
    again = SecondJudge(judge=None, share=0.5)  # type: ignore[arg-type]
    assert {item.index for item in asked} == {
        i for i in range(40) if again.is_asked_about(replace(reply(TEXT), index=i))
    }


def test_a_second_judge_that_fails_is_missing_in_the_opinion_alone() -> None:
    async def scenario() -> ReplyJudgement:
        async with JudgeServer(last_word) as server, JudgeServer(model="other") as other:
            config = config_of(server, second=other)
            panel = await panel_of(
                config.model_copy(update={"second": config.second.model_copy(update={"share": 1.0})})
            )
            other.edit = lambda body, text: "five"
            return await panel.score(reply(TEXT), speech(spoken(TEXT)), task(TEXT))

    judged = asyncio.run(asyncio.wait_for(scenario(), HANG_S))
    assert isinstance(judged.reward, ScoredVerdict)
    assert all(isinstance(verdict, MissingVerdict) for verdict in judged.second.values()) and judged.second


def test_scores_go_through_the_calibration_of_exactly_this_judge(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"

    def write(judge: str) -> None:
        items = [RatedReply(prompt_id=str(i // 2), judge=1.0 + i, human=2.0 + i / 2) for i in range(5)]
        save_calibrations(path, {"semantic": fit_calibration(items, judge, Scale())}, "0" * 64)

    async def scenario() -> ReplyJudgement:
        async with JudgeServer(last_word) as server:
            config = config_of(server, acoustic_by="local", api={"calibration": path})
            return await (await panel_of(config)).score(reply(TEXT), speech(spoken(TEXT)), task(TEXT))

    write(f"openai({MODEL} semantic/1 logprobs)")
    semantic = asyncio.run(asyncio.wait_for(scenario(), HANG_S)).axes["semantic"]
    assert isinstance(semantic, ScoredVerdict) and semantic.judge.endswith("+calibrated")
    assert semantic.value == pytest.approx(2.0 + 4.0 / 2), "5 of the judge is 4 of people"
    write(f"openai({MODEL} semantic/0 logprobs)")
    with pytest.raises(ValueError, match=r"no map for openai\(loopback-judge semantic/1 logprobs\)"):
        asyncio.run(asyncio.wait_for(scenario(), HANG_S))


def test_the_recogniser_hears_each_reply_once_however_many_axes_are_asked() -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with JudgeServer(last_word) as server:
            panel = await panel_of(config_of(server, holistic=0.5))
            server.bodies.clear()
            judged = await panel.score(reply(TEXT), speech(recorded(TEXT)), task(TEXT))
            assert set(judged.axes) == {"semantic", "acoustic", "holistic"}
            return server.bodies

    bodies = asyncio.run(asyncio.wait_for(scenario(), HANG_S))
    assert sorted(len(recordings(body)) for body in bodies) == [0, 1, 1]
