import asyncio
import json
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.endpoint.address import Endpoint
from judge.endpoint.cache import VerdictCache
from judge.endpoint.chat import ChatAnswer, ask_endpoint
from judge.endpoint.http import new_client
from judge.endpoint.limits import Limiter
from judge.llm.answers import AnswerMode, AnswerSampling
from judge.llm.caller import JudgeCaller
from judge.llm.pairwise import (
    Candidate,
    Contest,
    OrderedPair,
    compare_pairwise,
    compute_win_rates,
    select_fully_compared,
)
from judge.llm.ranking import order_candidates, parse_ranking, rank_candidates, read_ranking
from judge.llm.rubric import ACOUSTIC_RUBRIC, HOLISTIC_RUBRIC, SEMANTIC_RUBRIC, Rubric
from judge.types import CallFailed, JudgeTask, MissingVerdict, Scale, ScoredVerdict, Verdict
from rollout.types import Speech
from tests.helpers.judge_server import MODEL, Body, JudgeServer, able, limits, recordings
from tests.helpers.processes import HANG_S

TASK = JudgeTask(task_type="t", question="Why?", match=None, answer=None, style=None)
RATE = 8_000
SCALE = Scale()


def group(*peaks: float) -> list[Candidate]:
    wave = np.sin(np.arange(400) / 5)
    return [
        Candidate(
            transcript=f"words {peak}",
            speech=Speech(wave=np.asarray(peak * wave, np.float32), sample_rate=RATE),
        )
        for peak in peaks
    ]


def peaks_of(body: Body) -> list[float]:
    return [float(np.abs(wave).max()) for wave, _ in recordings(body)]


def caller(server: JudgeServer, cache: VerdictCache | None = None) -> JudgeCaller:
    endpoint = Endpoint(base_url=server.base_url, model=MODEL, key_env=None, deadline_s=HANG_S, attempts=1)
    return JudgeCaller(
        partial(ask_endpoint, new_client(), endpoint),
        MODEL,
        Limiter(limits(breaker_failures=99)),
        outage_s=5,
        cache=cache,
    )


async def paired(
    server: JudgeServer,
    mode: AnswerMode,
    rubric: Rubric,
    candidates: list[Candidate],
    cache: VerdictCache | None = None,
) -> list[Verdict]:
    contest = Contest(rubric=rubric, task=TASK, candidates=candidates)
    return await compare_pairwise(
        caller(server, cache), able(mode), contest, scale=SCALE, sampling=AnswerSampling(temperature=0.0)
    )


async def ranked(
    server: JudgeServer, mode: AnswerMode, rubric: Rubric, candidates: list[Candidate], *, repeats: int
) -> list[Verdict]:
    contest = Contest(rubric=rubric, task=TASK, candidates=candidates)
    return await rank_candidates(
        caller(server), able(mode), contest, scale=SCALE, repeats=repeats, sampling=AnswerSampling(temperature=0.0)
    )


def louder_wins(body: Body) -> float:
    first, second = peaks_of(body)[-2:]
    return 0.5 if abs(first - second) < 1e-3 else float(first > second)


def values(verdicts: Sequence[Verdict]) -> list[float]:
    assert all(isinstance(verdict, ScoredVerdict) for verdict in verdicts), verdicts
    return [round(verdict.value, 6) for verdict in verdicts if isinstance(verdict, ScoredVerdict)]


# --- arithmetic ---


@st.composite
def partial_chances(draw: st.DrawFn) -> tuple[dict[OrderedPair, float], int]:
    count = draw(st.integers(2, 6))
    pairs = list(permutations(range(count), 2))
    asked = {pair: draw(st.floats(0, 1)) for pair in pairs}
    lost = draw(st.sets(st.sampled_from(pairs), max_size=len(pairs)))
    return {pair: chance for pair, chance in asked.items() if pair not in lost}, count


@given(partial_chances())
def test_rates_are_those_of_the_survivors_alone(case: tuple[dict[OrderedPair, float], int]) -> None:
    chances, count = case
    left = select_fully_compared(chances, count)
    rates = compute_win_rates(chances, count)
    assert sorted(rates) == left and len(left) != 1
    place = {one: index for index, one in enumerate(left)}
    inner = {(place[a], place[b]): p for (a, b), p in chances.items() if a in place and b in place}
    alone = compute_win_rates(inner, len(left)) if left else {}
    assert {one: rates[one] for one in left} == {one: alone[place[one]] for one in left}
    for one in left:  # the plain definition
        beaten = [(chances[one, other] + 1 - chances[other, one]) / 2 for other in left if other != one]
        assert rates[one].share == pytest.approx(np.mean(beaten))
        assert 0 <= rates[one].share <= 1 and rates[one].spread >= 0
    if left:
        assert np.mean([rate.share for rate in rates.values()]) == pytest.approx(0.5)


@given(partial_chances())
def test_nobody_leaves_a_group_whose_pairs_all_came(case: tuple[dict[OrderedPair, float], int]) -> None:
    chances, count = case
    whole = len(chances) == count * (count - 1)
    assert (select_fully_compared(chances, count) == list(range(count))) is whole


def test_one_broken_reply_costs_the_group_that_reply_only() -> None:
    chances = {pair: 0.5 for pair in permutations(range(4), 2) if 2 not in pair}
    assert select_fully_compared(chances, 4) == [0, 1, 3]


def test_a_judge_that_always_prefers_the_first_gives_ties_and_shows_it_as_spread() -> None:
    rates = compute_win_rates(dict.fromkeys(permutations(range(3), 2), 1.0), 3)
    assert [rate.share for rate in rates.values()] == [0.5] * 3
    assert all(rate.spread == pytest.approx(0.5 * 2**0.5 / 2) for rate in rates.values())


# --- pairs over HTTP ---


@pytest.mark.parametrize("mode", ["logprobs", "schema", "tagged"])
def test_the_better_reply_wins_in_either_order_and_equals_tie(mode: AnswerMode) -> None:
    async def test() -> list[Verdict]:
        async with JudgeServer(louder_wins) as server:
            actual = await paired(server, mode, ACOUSTIC_RUBRIC, group(0.2, 0.8, 0.2))
        assert len(server.bodies) == 6
        return actual

    assert values(asyncio.run(test())) == [2.0, 5.0, 2.0]


def test_a_failed_pair_leaves_the_rates_of_the_others_as_they_were(tmp_path: Path) -> None:
    async def test() -> None:
        cache = VerdictCache(tmp_path / "cache", 1 << 20)
        async with JudgeServer(louder_wins) as server:
            server.edit = lambda body, text: "Z" if max(peaks_of(body)) > 0.85 else text
            actual = await paired(server, "logprobs", ACOUSTIC_RUBRIC, group(0.2, 0.9, 0.5, 0.8), cache)
            assert isinstance(actual[1], MissingVerdict) and actual[1].kind == "malformed"
            survived = [actual[0], *actual[2:]]
            alone = await paired(server, "logprobs", ACOUSTIC_RUBRIC, group(0.2, 0.5, 0.8), cache)
            assert values(survived) == values(alone) == [1.0, 3.0, 5.0]
            assert len(server.bodies) == 12  # nothing was asked twice

    asyncio.run(test())


def test_a_group_without_a_whole_pair_is_missing() -> None:
    async def test() -> list[Verdict]:
        async with JudgeServer(louder_wins) as server:
            server.down = True
            return await paired(server, "schema", HOLISTIC_RUBRIC, group(0.2, 0.9, 0.5))

    actual = asyncio.run(test())
    assert [verdict.kind for verdict in actual if isinstance(verdict, MissingVerdict)] == ["server"] * 3


def test_a_comparison_shows_an_axis_what_it_judges_and_nothing_else() -> None:
    async def bodies(rubric_name: str) -> list[Body]:
        rubric = {"semantic": SEMANTIC_RUBRIC, "acoustic": ACOUSTIC_RUBRIC}[rubric_name]
        async with JudgeServer(lambda body: 0.5) as server:
            await paired(server, "schema", rubric, group(0.3, 0.4))
        return server.bodies

    for body in asyncio.run(bodies("semantic")):
        assert not recordings(body) and "words 0.3" in json.dumps(body) and TASK.question in json.dumps(body)
    for body in asyncio.run(bodies("acoustic")):
        assert len(recordings(body)) == 2 and "words 0.3" not in json.dumps(body["messages"])


# --- rankings ---


@pytest.mark.parametrize("mode", ["logprobs", "tagged"])
@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_a_ranking_is_by_quality_whatever_the_order_shown(mode: AnswerMode, repeats: int) -> None:
    def opinion(body: Body) -> list[int]:
        peaks = peaks_of(body)
        return [place + 1 for place in sorted(range(len(peaks)), key=lambda place: -peaks[place])]

    async def test() -> list[Verdict]:
        async with JudgeServer(opinion) as server:
            actual = await ranked(server, mode, HOLISTIC_RUBRIC, group(0.4, 0.9, 0.1, 0.2, 0.6), repeats=repeats)
        assert len(server.bodies) == repeats
        return actual

    actual = asyncio.run(test())
    assert values(actual) == [3.0, 5.0, 1.0, 2.0, 4.0]
    assert all(isinstance(verdict, ScoredVerdict) and verdict.spread == 0 for verdict in actual)


def test_a_judge_that_ranks_by_place_shows_spread_and_not_merit() -> None:
    async def test() -> list[Verdict]:
        async with JudgeServer(lambda body: [1, 2, 3]) as server:
            return await ranked(server, "schema", ACOUSTIC_RUBRIC, group(0.4, 0.9, 0.1), repeats=2)

    actual = asyncio.run(test())
    assert values(actual) == [3.0, 3.0, 3.0]
    assert [verdict.spread for verdict in actual if isinstance(verdict, ScoredVerdict)] == [2.0, 0.0, 2.0]


def test_a_ranking_that_failed_is_missing_for_the_whole_group() -> None:
    async def test() -> list[Verdict]:
        async with JudgeServer(lambda body: [1, 1, 3]) as server:
            return await ranked(server, "schema", ACOUSTIC_RUBRIC, group(0.4, 0.9, 0.1), repeats=2)

    kinds = [verdict.kind for verdict in asyncio.run(test()) if isinstance(verdict, MissingVerdict)]
    assert kinds == ["malformed"] * 3


@given(st.integers(2, 9), st.integers(0, 30))
def test_every_repeat_shows_every_reply_once(count: int, repeat: int) -> None:
    assert sorted(order_candidates(count, repeat)) == list(range(count))
    assert order_candidates(count, 2 * repeat) == order_candidates(count, 2 * repeat + 1)[::-1]


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_shares_go_back_to_the_replies_they_belong_to(order: list[int], quality: list[int]) -> None:
    best_first = sorted(range(5), key=lambda place: -quality[order[place]])
    text = json.dumps({"reason": "It is.", "ranking": [place + 1 for place in best_first]})
    answer = ChatAnswer(text=text, logprobs=[], prompt_tokens=0, completion_tokens=0, seconds=0.1, attempts=1)
    readings = read_ranking("schema", order, answer)
    assert [reading.number for reading in readings] == pytest.approx([rank / 4 for rank in quality])


@pytest.mark.parametrize(
    ("mode", "text", "kind"),
    [
        ("schema", '{"reason": "r", "ranking": [1, 2]}', "malformed"),
        ("schema", '{"reason": "r", "ranking": [1, 2, 2]}', "malformed"),
        ("schema", '{"reason": "r", "ranking": [1, 2, 3, 3]}', "malformed"),
        ("schema", '{"reason": "r", "ranking": [1, 2, 4]}', "out_of_range"),
        ("schema", '{"reason": "r", "ranking": [0, 1, 2]}', "out_of_range"),
        ("schema", '{"reason": "r", "ranking": ["1", "2", "3"]}', "malformed"),
        ("schema", '{"reason": "r", "ranking": [1.0, 2, 3]}', "malformed"),
        ("schema", '{"reason": "r", "ranking": "1,2,3"}', "malformed"),
        ("schema", '{"ranking": [1, 2, 3]}', "malformed"),
        ("tagged", "r <ranking>1,2</ranking>", "malformed"),
        ("tagged", "r <ranking>1>2>3</ranking>", "malformed"),
        ("tagged", "r <ranking>1,2,9</ranking>", "out_of_range"),
        ("tagged", "r <ranking></ranking>", "malformed"),
        ("tagged", "<ranking>1,2,3</ranking> <ranking>3,2,1</ranking>", "malformed"),
    ],
)
def test_a_ranking_names_every_reply_once_or_is_none(mode: AnswerMode, text: str, kind: str) -> None:
    with pytest.raises(CallFailed) as failed:
        parse_ranking(mode, text, 3)
    assert failed.value.kind == kind


@pytest.mark.parametrize("replies", [0, 1])
def test_nothing_is_compared_with_nobody(replies: int) -> None:
    with pytest.raises(ValueError, match="at least two"):
        Contest(rubric=SEMANTIC_RUBRIC, task=TASK, candidates=group(0.4)[:replies])
