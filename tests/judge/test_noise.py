"""Noise for studies: on scores alone, the same for the same reply, and with a spread that tells its size."""

from statistics import fmean, pstdev

import pytest

from conf.judging import JudgeConfig, VetoConfig
from judge.noise import add_judge_noise
from judge.panel import FLOOR_JUDGE
from judge.rules import vetoes
from judge.types import MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict

CONFIG = JudgeConfig(noise=0.25, readings=2)


def judged(prompt: str, semantic: Verdict, reward: Verdict | None = None) -> ReplyJudgement:
    acoustic = ScoredVerdict(value=3.0, judge="acoustic/1")
    return ReplyJudgement(
        prompt_id=prompt,
        index=0,
        axes={"semantic": semantic, "acoustic": acoustic},
        reward=reward or semantic,
        transcript="",
    )


def scored(verdict: Verdict) -> ScoredVerdict:
    assert isinstance(verdict, ScoredVerdict)
    return verdict


def test_noise_has_the_size_that_was_asked_for_and_its_spread_tells_it() -> None:
    actual = [add_judge_noise(judged(f"p{i}", ScoredVerdict(value=3.0, judge="x")), CONFIG, 0) for i in range(2000)]
    rewards = [scored(item.reward) for item in actual]
    assert pstdev([reward.value for reward in rewards]) == pytest.approx(0.25, rel=0.05)
    noise = fmean(reward.spread**2 for reward in rewards)
    assert noise == pytest.approx(0.25**2, rel=0.1)  # what the gate subtracts is the reward's own variance
    values = [scored(item.axes["semantic"]).value for item in actual]
    for item in actual[:20]:
        axes = [scored(item.axes[name]).value for name in ("semantic", "acoustic")]
        assert scored(item.reward).value == pytest.approx(0.6 * axes[0] + 0.4 * axes[1])
    assert values[0] != scored(actual[0].axes["acoustic"]).value


def test_noise_is_that_of_the_reply_and_the_seed() -> None:
    judgement = judged("p", ScoredVerdict(value=3.0, judge="x"))
    assert add_judge_noise(judgement, CONFIG, 7) == add_judge_noise(judgement, CONFIG, 7)
    assert add_judge_noise(judgement, CONFIG, 7) != add_judge_noise(judgement, CONFIG, 8)


def test_scores_stay_on_the_scale_and_what_is_no_opinion_stays() -> None:
    loud = JudgeConfig(noise=50.0, readings=3)
    assert {
        scored(
            add_judge_noise(judged(f"p{i}", ScoredVerdict(value=1.0, judge="x")), JudgeConfig(noise=50.0), 0).axes[
                "semantic"
            ]
        ).value
        for i in range(20)
    } == {1.0, 5.0}
    gone = MissingVerdict(judge="x", reason="broken", kind="server")
    assert add_judge_noise(judged("p", gone), loud, 0).axes["semantic"] == gone
    assert isinstance(add_judge_noise(judged("p", gone), loud, 0).reward, MissingVerdict)
    floor = ScoredVerdict(value=1.0, judge=FLOOR_JUDGE, why="no audio")
    assert add_judge_noise(judged("p", floor), loud, 0).axes["semantic"] == floor
    rules = [VetoConfig(measure="loop", most=0.5)]
    veto = vetoes.judge_by_vetoes({"loop": 0.9}, {}, rules, Scale())
    assert veto is not None
    assert add_judge_noise(judged("p", ScoredVerdict(value=4.0, judge="x"), veto), loud, 0).reward == veto
