"""The decision of a step: what a missing verdict changes (its own reply), and what it does not (everything else)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.algorithm import AlgoConfig
from conf.schema import Config
from judge.types import MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict
from learner.decide import ReplyGroup, StepDecision, decide_step
from learner.gate import build_lambda_source
from rollout.types import Prompt, Reply

SCALE = Scale(1.0, 5.0)
REWARDS = st.lists(st.lists(st.one_of(st.none(), st.floats(1, 5)), min_size=2, max_size=6), min_size=1, max_size=5)


def group(name: str, rewards: list[float | None]) -> ReplyGroup:
    def reply(index: int) -> Reply:
        return Reply(
            prompt_id=name, index=index, ids=(7, 3), logps=(-0.5, -0.1), channels="TE", sampled=(True, True),
            versions=(0, 0), finish="stop", text="one", well_formed=True,
        )  # fmt: skip

    def judged(index: int, reward: float | None) -> ReplyJudgement:
        verdict: Verdict = (
            MissingVerdict(judge="x", reason="broken", kind="server")
            if reward is None
            else ScoredVerdict(value=reward, judge="x")
        )
        return ReplyJudgement(prompt_id=name, index=index, axes={"semantic": verdict}, reward=verdict, transcript=None)

    replies = tuple((reply(i), judged(i, reward)) for i, reward in enumerate(rewards))
    return ReplyGroup(prompt=Prompt(id=name, ids=(1, 2)), replies=replies)


def settings(**algo: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"path": "x", "max_length": 512},
            "data": {"train": "x", "validation": "x", "test": "x"},
            "rollout": {"max_new_tokens": 160},
            "judge": {"semantic": 1.0, "acoustic": 0.0},
            "algo": algo,
        }
    )


def decided(groups: list[ReplyGroup], **algo: Any) -> StepDecision:
    config = settings(**algo)
    return decide_step(1, groups, (), build_lambda_source(config.algo, SCALE), config)


@given(REWARDS)
def test_any_failures_leave_what_the_survivors_alone_would_give(rewards: list[list[float | None]]) -> None:
    names = [f"p{i}" for i in range(len(rewards))]
    decision = decided([group(name, row) for name, row in zip(names, rewards, strict=True)])
    kept = [
        (n, r) for n, r in zip(names, rewards, strict=True) if sum(x is not None for x in r) >= max(2, -(-len(r) // 2))
    ]
    alone = decided([group(name, [x for x in row if x is not None]) for name, row in kept])
    assert decision.batch.weight == alone.batch.weight
    assert decision.reading == alone.reading
    assert [row.advantage for row in decision.batch.rollouts] == [row.advantage for row in alone.batch.rollouts]
    assert decision.metrics["groups/kept"] == len(kept)


@given(REWARDS)
def test_every_reply_is_taught_or_dropped_with_a_reason(rewards: list[list[float | None]]) -> None:
    groups = [group(f"p{i}", row) for i, row in enumerate(rewards)]
    decision = decided(groups)
    keys = {reply.key for g in groups for reply, _ in g.replies}
    assert set(decision.advantages) | set(decision.dropped) == keys
    assert not set(decision.advantages) & set(decision.dropped)
    assert {row.key for row in decision.batch.rollouts} == set(decision.advantages)
    assert all(decision.dropped.values())


def test_a_group_with_too_few_rewards_does_not_touch_the_gate() -> None:
    gate = build_lambda_source(AlgoConfig(), SCALE)
    first = decide_step(1, [group("a", [1.0, 5.0])], (), gate, settings()).batch.weight
    assert decide_step(2, [group("b", [5.0, None, None, 1.0, None])], (), gate, settings()).batch.weight == first


def test_a_penalty_keeps_its_own_size_where_the_judges_told_no_reply_from_another() -> None:
    """Divided by their own deviation, penalties of 1e-5 points would be advantages of size one."""
    penalties = {("a", 0): 1e-5, ("a", 1): 3e-5, ("b", 0): 1e-5, ("b", 1): 3e-5}
    config = settings(kl_in="reward")
    groups = [group("a", [3.0, 3.0, None]), group("b", [2.0, 4.0])]
    step = decide_step(1, groups, (), build_lambda_source(config.algo, SCALE), config, penalties=penalties)
    advantages = [step.advantages[key].whole for key in penalties]
    assert advantages == pytest.approx([1e-5, -1e-5, -1.0, 1.0], rel=1e-4)


def test_fixed_mix_ignores_the_rewards() -> None:
    assert decided([group("a", [1.0, 5.0])], mix="fixed", fixed_lambda=0.3).batch.weight == 0.3
