"""What holds of every objective whatever its settings: what gets no gradient, and what changes nothing."""

from collections.abc import Iterator
from dataclasses import replace
from math import log, nextafter
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conf.algorithm import AlgoConfig, ChannelWeights
from conf.judging import JudgeConfig
from conf.schema import Config
from judge.types import ReplyJudgement, ScoredVerdict, Verdict
from learner.decide import ReplyGroup
from learner.types import Advantage, PreferencePair, StepBatch, TrainingReply
from rollout.types import Prompt, Reply
from tests.helpers.objective_draws import KINDS, Step, judged, steps
from tests.helpers.objective_world import Found, decided, product, sequences, sides
from tests.helpers.training_replies import written_reply
from tests.learner.test_objective_random import assert_equal

FEW = settings(max_examples=40, derandomize=True)
NO_AUDIO = {"text": 1.0, "audio": 0.0, "boundary": 0.5, "stop": 1.0}
NOTHING = dict.fromkeys(NO_AUDIO, 0.0)
HALF: dict[str, Any] = {"mix": "fixed", "fixed_lambda": 0.5}


def any_kind(**fixed: Any) -> st.SearchStrategy[Step]:
    return st.sampled_from(KINDS).flatmap(lambda kind: steps(kind, **fixed))


def learnt(step: Step) -> Found:
    return product(step, decided(step).batch)


def responses(step: Step) -> Iterator[tuple[int, int, str, bool]]:
    """(row, place that predicts it, channel, sampled) of every response position of the padded tensor."""
    rows = {name: i for i, name in enumerate(sequences(step))}
    replies = [(f"rollout {r.prompt_id}/{r.index}", g.prompt, r) for g in step.groups for r, _ in g.replies]
    written = [side for pair in step.pairs for side in sides(pair)] + [("anchor", anchor) for anchor in step.anchors]
    for name, prompt, reply in (*replies, *((f"{role} {r.prompt.id}", r.prompt, r.reply) for role, r in written)):
        for j, letter in enumerate(reply.channels):
            yield rows[name], len(prompt.ids) + j - 1, letter, reply.sampled[j]


@FEW
@given(any_kind(preference=NO_AUDIO, **HALF))
def test_preference_on_text_gives_audio_exactly_no_gradient(step: Step) -> None:
    assume(not step.algo.routed)  # which always prefers AUDIO too
    kept = {"kl": NOTHING, "kl_in": "loss", "entropy": NOTHING, "sft": NO_AUDIO}
    step.algo = AlgoConfig.model_validate(step.algo.model_dump() | kept)
    gradient = learnt(step).gradient
    assert not any(gradient[row, at].any() for row, at, letter, _ in responses(step) if letter == "A")


@FEW
@given(any_kind(**HALF))
def test_prompts_pad_and_forced_positions_get_exactly_no_gradient(step: Step) -> None:
    joined = {(row, at) for row, at, letter, drawn in responses(step) if letter != "P" and drawn}
    moved = {(int(row), int(at)) for row, at in learnt(step).gradient.abs().sum(-1).nonzero()}
    assert moved <= joined


@FEW
@given(any_kind(mix="fixed", fixed_lambda=0.0))
def test_lambda_0_gives_replies_exactly_no_gradient(step: Step) -> None:
    assume(step.algo.sft.any)  # else nothing is left to learn, and the draw takes another lambda
    actual = learnt(step)
    replies = [row for row, name in enumerate(sequences(step)) if not name.startswith("anchor")]
    assert not actual.gradient[replies].any()
    assert actual.losses["total"] == actual.losses["sft"]


@FEW
@given(any_kind(mix="fixed", fixed_lambda=1.0))
def test_lambda_1_gives_anchors_exactly_no_gradient(step: Step) -> None:
    anchors = [row for row, name in enumerate(sequences(step)) if name.startswith("anchor")]
    assert not learnt(step).gradient[anchors].any()


def rescored(group: ReplyGroup, change: Any) -> ReplyGroup:
    """The same group with every score, on every axis, changed alike."""

    def of(verdict: Verdict) -> Verdict:
        return replace(verdict, value=change(verdict.value)) if isinstance(verdict, ScoredVerdict) else verdict

    def seen(one: ReplyJudgement) -> ReplyJudgement:
        return replace(one, axes={name: of(v) for name, v in one.axes.items()}, reward=of(one.reward))

    return replace(group, replies=tuple((reply, seen(one)) for reply, one in group.replies))


@FEW
@given(any_kind(**HALF), st.sampled_from([0.25, -2.0, 100.0]))
def test_a_constant_added_to_every_reward_changes_nothing(step: Step, constant: float) -> None:
    shifted = [rescored(group, lambda value: value + constant) for group in step.groups]
    assert_equal(learnt(replace(step, groups=shifted)), learnt(step))


@FEW
@given(
    st.sampled_from(["grpo", "routed"]).flatmap(lambda kind: steps(kind, normalise="std", **HALF)),
    st.sampled_from([0.5, 16.0]),
)
def test_rewards_in_another_unit_change_nothing_with_std(step: Step, factor: float) -> None:
    stretched = [rescored(group, lambda value: value * factor) for group in step.groups]
    assert_equal(learnt(replace(step, groups=stretched)), learnt(step))


@FEW
@given(any_kind(), st.randoms(use_true_random=False))
def test_the_order_of_groups_pairs_and_anchors_changes_nothing(step: Step, random: Any) -> None:
    later = replace(step, groups=step.groups[:], pairs=step.pairs[:], anchors=step.anchors[:])
    for members in (later.groups, later.pairs, later.anchors):
        random.shuffle(members)
    assert_equal(learnt(later), learnt(step))


# -- by hand


def reply(index: int, channels: str) -> Reply:
    n = len(channels)
    return Reply(
        prompt_id="g", index=index, ids=tuple(range(n)), logps=(-1.0,) * n, channels=channels,
        sampled=(True,) * n, versions=(0,) * n, finish="stop", text="", well_formed=True,
    )  # fmt: skip


def step_of(algo: dict[str, Any], *replies: tuple[str, float]) -> Step:
    """One group of (channels, score) judged on one axis."""
    judge = JudgeConfig(semantic=1.0, acoustic=0.0)
    judged_replies = tuple(
        (reply(i, channels), judged(("g", i), {"semantic": score}, judge, spread=0.0, veto=False))
        for i, (channels, score) in enumerate(replies)
    )
    chosen = AlgoConfig.model_validate({"mix": "fixed", "fixed_lambda": 1.0, "kl": NOTHING, **algo})
    return Step(algo=chosen, judge=judge, groups=[ReplyGroup(prompt=Prompt(id="g", ids=(1,)), replies=judged_replies)])


@pytest.mark.parametrize(
    ("aggregation", "share"), [("sequence_mean", 0.5), ("token_mean", 1.0), ("sum", 0.5), ("constant", 0.5)]
)
def test_a_reply_without_preferred_tokens_counts_as_a_reply_and_not_as_tokens(aggregation: str, share: float) -> None:
    step = step_of({"aggregation": aggregation, "importance": "off"}, ("TTE", 5.0), ("AAB", 1.0))
    batch = decided(step).batch
    alone = product(step, replace(batch, rollouts=batch.rollouts[:1])).losses["po"]
    assert alone != 0 and product(step, batch).losses["po"] == pytest.approx(share * alone, rel=1e-12)


def test_a_mask_that_is_empty_everywhere_is_a_loss_of_exactly_zero() -> None:
    actual = learnt(step_of({}, ("AAB", 5.0), ("AB", 1.0)))
    assert actual.losses["total"] == 0.0 and not actual.gradient.any()


def test_a_pair_that_compares_with_nothing_adds_zero_and_still_counts() -> None:
    def written(name: str, channels: str) -> TrainingReply:
        return written_reply(name, (1,), tuple(range(len(channels))), channels)

    whole, empty = (
        PreferencePair(chosen=written(name, "TTE"), rejected=written(name, c))
        for name, c in (("d", "TE"), ("e", "AB"))
    )
    algo = AlgoConfig.model_validate({"loss": "dpo", "mix": "fixed", "fixed_lambda": 1.0, "kl": NOTHING})
    step = Step(algo=algo, judge=JudgeConfig(), groups=[], pairs=[whole, empty])
    both, alone, nothing = (
        product(step, StepBatch(step=1, weight=1.0, rollouts=(), anchors=(), pairs=pairs)).losses["dpo"]
        for pairs in ((whole, empty), (whole,), (empty,))
    )
    assert both == pytest.approx(alone / 2, rel=1e-12) and alone != log(2) and nothing == 0.0


@pytest.mark.parametrize(("margin", "pairs"), [(0.5, 1), (nextafter(0.5, 1), 1), (0.501, 0), (0.0, 1)])
def test_a_gap_of_the_margin_makes_a_pair_and_one_below_none(margin: float, pairs: int) -> None:
    step = step_of({"loss": "online_dpo", "margin": margin}, ("TE", 3.5), ("TE", 3.25), ("TE", 3.0))
    actual = decided(step).batch.pairs
    assert [(pair.chosen.reply.index, pair.rejected.reply.index) for pair in actual] == [(0, 2)] * pairs


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (1.0, 5.0), (0.0, 100.0)])
def test_a_margin_that_is_not_set_is_an_eighth_of_the_judges_scale(lo: float, hi: float) -> None:
    where = {"run": {"name": "t"}, "model": {"path": "x"}, "judge": {"scale_lo": lo, "scale_hi": hi}}
    data = dict.fromkeys(("train", "validation", "test"), "x")
    assert Config.model_validate({**where, "data": data}).margin == (hi - lo) / 8
    assert Config.model_validate({**where, "data": data, "algo": {"margin": 0.3}}).margin == 0.3


@pytest.mark.parametrize("other", [3.4, 0.1 + 0.2 + 3.1])
def test_rewards_equal_up_to_rounding_make_no_pair_whatever_the_margin(other: float) -> None:
    step = step_of({"loss": "online_dpo", "margin": 0.0}, ("TE", 3.4), ("TE", other))
    assert decided(step).batch.pairs == ()


@pytest.mark.parametrize(("equal_groups", "replies"), [("keep", 2), ("drop", 0), ("refill", 0)])
def test_equal_rewards_stay_with_no_advantage_or_leave(equal_groups: str, replies: int) -> None:
    decision = decided(step_of({"equal_groups": equal_groups}, ("TE", 3.0), ("TE", 3.0)))
    assert [row.advantage for row in decision.batch.rollouts] == [Advantage.shared(0.0)] * replies
    assert len(decision.dropped) == 2 - replies


def test_a_floor_by_veto_is_the_floor_of_every_axis() -> None:
    judge = JudgeConfig(semantic=0.5, acoustic=0.5)
    judged_replies = tuple(
        (reply(i, "TA"), judged(("g", i), {"semantic": s, "acoustic": a}, judge, spread=0.0, veto=i == 0))
        for i, (s, a) in enumerate([(5.0, 5.0), (4.0, 2.0), (3.0, 3.0)])
    )
    both = ChannelWeights(text=1.0, audio=1.0)
    algo = AlgoConfig(routed=True, normalise="none", preference=both)
    step = Step(algo=algo, judge=judge, groups=[ReplyGroup(prompt=Prompt(id="g", ids=(1,)), replies=judged_replies)])
    rollouts = decided(step).batch.rollouts
    assert [row.advantage.text for row in rollouts] == pytest.approx([1 - 8 / 3, 4 - 8 / 3, 3 - 8 / 3])
    assert [row.advantage.audio for row in rollouts] == pytest.approx([1 - 2, 2 - 2, 3 - 2])
