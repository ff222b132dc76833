"""Objectives and cutting as pure functions: masks, weights, plans."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.algorithm import AlgoConfig, ChannelWeights
from learner.batch import (
    count_needed_ids,
    list_scored_positions,
    pack_microbatch,
    pack_reference_microbatch,
    plan_microbatches,
)
from learner.loss import compute_loss_terms
from learner.objectives import build_training_rows, needs_reference, weigh_positions
from learner.parity import compare_logprobs
from learner.rows import LossComponent, SamplingSetup, TrainingRow, compute_component_factors
from learner.types import Advantage, StepBatch, TrainingReply
from rollout.types import Prompt
from tests.helpers.training_replies import Ids, change_reply, sampled_reply, written_reply

SAMPLED = SamplingSetup(max_new_tokens=50, temperature=0.8)
NOTHING, WORDS = ChannelWeights(), ChannelWeights(text=1, stop=1)
ALL = ChannelWeights(text=1, audio=1, boundary=1, stop=1)
ZERO_OR = st.sampled_from([0.0, 0.3])
ALGOS = st.builds(
    AlgoConfig,
    preference=st.builds(ChannelWeights, text=st.just(1.0), audio=ZERO_OR, boundary=ZERO_OR, stop=ZERO_OR),
    aggregation=st.sampled_from(["sequence_mean", "token_mean", "sum", "constant"]),
    kl=st.builds(ChannelWeights, text=ZERO_OR, audio=ZERO_OR, stop=ZERO_OR),
    clip_low=st.sampled_from([0.0, 0.2]), clip_high=st.sampled_from([0.0, 0.3]), importance_cap=st.sampled_from([0.9, 2.0]),
)  # fmt: skip


@st.composite
def batches(draw: st.DrawFn) -> StepBatch:
    """Up to four rollouts and three anchors of up to eight tokens in any channels."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))

    def row(n: int) -> tuple[Ids, Ids, str]:
        prompt, ids = rng.integers(1, 99, rng.integers(1, 6)), rng.integers(1, 99, n)
        return tuple(prompt.tolist()), tuple(ids.tolist()), "".join(rng.choice(list("TABEP"), n))

    rollouts, anchors = [], []
    for i in range(draw(st.integers(0, 4))):
        n = int(rng.integers(1, 9))
        logps, sampled = tuple((-rng.random(n)).tolist()), tuple((rng.random(n) < 0.8).tolist())
        advantage = Advantage.shared(draw(st.sampled_from([0.0, 1.0, -0.7])))
        prompt, ids, channels = row(n)
        rollouts.append(sampled_reply(Prompt(id="p", ids=prompt), i, ids, logps, channels, sampled, advantage))
    for _ in range(draw(st.integers(0, 3))):
        anchors.append(written_reply("p", *row(int(rng.integers(1, 9)))))
    weight = draw(st.sampled_from([0.0, 0.3, 1.0]))
    return StepBatch(step=0, weight=weight, rollouts=tuple(rollouts), anchors=tuple(anchors))


def rollout(channels: str, advantage: float = 1.0, sampled: tuple[bool, ...] | None = None) -> TrainingReply:
    n = len(channels)
    ids, logps = tuple(range(10, 10 + n)), (-1.0,) * n
    return sampled_reply(Prompt(id="p", ids=(1, 2)), 0, ids, logps, channels, sampled, Advantage.shared(advantage))


def one(algo: AlgoConfig, *rollouts: TrainingReply) -> list[TrainingRow]:
    return build_training_rows(StepBatch(step=0, weight=0.5, rollouts=rollouts, anchors=()), algo, SAMPLED)


@pytest.mark.parametrize(
    ("weights", "mask"),
    [
        (WORDS, "10001"),
        (ChannelWeights(text=1), "10000"),
        (ChannelWeights(text=1, boundary=1, stop=1), "11011"),
        (ChannelWeights(text=1, audio=1, stop=1), "10101"),
        (ALL, "11111"),
    ],
)
def test_which_channels_join(weights: ChannelWeights, mask: str) -> None:
    assert "".join(str(int(u)) for u in weigh_positions(rollout("TBABE").reply, weights)) == mask


def test_pad_and_forced_positions_join_nothing() -> None:
    row = rollout("TPAT", sampled=(True, True, False, True))
    assert weigh_positions(row.reply, ALL).tolist() == [1, 0, 0, 1]
    assert one(AlgoConfig(kl=ALL), row)[0].weights_CR.any(axis=0).tolist() == [True, False, False, True]


def test_kl_does_not_look_at_the_preference_mask() -> None:
    (row,) = one(AlgoConfig(), rollout("TBAE"))
    assert row.weights_CR[LossComponent.KL] == pytest.approx([0.01 / 3, 0.01 / 3, 0.01, 0.01 / 3])
    assert (row.weights_CR[LossComponent.PO] != 0).tolist() == [True, False, False, True]


def test_empty_mask_gives_no_weight_and_no_fallback() -> None:
    (row,) = one(AlgoConfig(kl=NOTHING), rollout("AAAB"))
    assert not row.weights_CR.any()
    assert count_needed_ids(row, streams=1) == 0


@pytest.mark.parametrize(
    ("aggregation", "weights"),
    [
        ("sequence_mean", (1 / 4, 1 / 2)),
        ("token_mean", (1 / 3, 1 / 3)),
        ("sum", (1 / 2, 1 / 2)),
        ("constant", (1 / 100, 1 / 100)),
    ],
)
def test_aggregations(aggregation: Any, weights: tuple[float, float]) -> None:
    rows = one(AlgoConfig(aggregation=aggregation), rollout("TAT"), rollout("TA"))
    assert [float(row.weights_CR[LossComponent.PO].max()) for row in rows] == pytest.approx(weights)


def test_zero_advantage_needs_no_forward_unless_a_kl_asks() -> None:
    flat = rollout("TTAE", advantage=0.0)
    assert count_needed_ids(one(AlgoConfig(kl=NOTHING), flat)[0], streams=1) == 0
    assert count_needed_ids(one(AlgoConfig(kl=ChannelWeights(audio=0.1)), flat)[0], streams=1) == 2 + 2
    # it still counts in the mean over replies
    rows = one(AlgoConfig(), flat, rollout("T"))
    assert rows[1].weights_CR[LossComponent.PO].tolist() == [0.5]


def test_tail_after_the_last_scored_position_is_cut() -> None:
    row = one(AlgoConfig(kl=NOTHING, preference=ChannelWeights(text=1)), rollout("TTBAAAABE"))[0]
    assert count_needed_ids(row, streams=1) == 3  # two of the prompt and the first word predict the second word
    micro = pack_microbatch([row], streams=1)
    assert micro.ids_TS.tolist() == [[1], [2], [10]]
    assert micro.keep_N.tolist() == [1, 2] and micro.targets_N.tolist() == [10, 11]


@settings(deadline=None, max_examples=60)
@given(batches(), ALGOS, st.integers(1, 4), st.integers(14, 40))
def test_plan_scores_every_weighted_position_once(batch: StepBatch, algo: AlgoConfig, ranks: int, budget: int) -> None:
    rows = build_training_rows(batch, algo, SAMPLED)
    plan = plan_microbatches(rows, ranks=ranks, budget=budget, streams=1)
    assert len({len(micros) for micros in plan}) == 1  # nobody waits for a pass that the others do not make
    assert all(
        sum(count_needed_ids(rows[i], streams=1) for i in micro) <= budget for micros in plan for micro in micros
    )
    planned = sorted(position for rank in range(ranks) for position in list_scored_positions(rows, plan, rank))
    assert planned == [(i, j) for i, row in enumerate(rows) for j in np.flatnonzero(row.needed_R)]
    for rank, micros in enumerate(plan):
        packed = [pack_microbatch([rows[i] for i in micro], streams=1) for micro in micros]
        targets = [int(t) for micro in packed for t in micro.targets_N]
        assert targets == [rows[i].ids[rows[i].start + j] for i, j in list_scored_positions(rows, plan, rank)]
        for micro, held in zip(packed, micros, strict=True):
            assert sum(micro.lengths) == len(micro.ids_TS) == len(micro.positions_T)
            positions = [(i, j) for i in held for j in np.flatnonzero(rows[i].needed_R)]
            # the token before each target in its own segment, at the position that says so
            for keep, (i, j) in zip(micro.keep_N.tolist(), positions, strict=True):
                assert micro.positions_T[keep] == rows[i].start + j - 1
                assert micro.ids_TS[keep, 0] == rows[i].ids[rows[i].start + j - 1]
            reference = pack_reference_microbatch([rows[i] for i in held], streams=1)
            assert reference.targets_N.tolist() == micro.targets_N[micro.referenced_N].tolist()


def test_ranks_are_balanced() -> None:
    rows = one(AlgoConfig(), *(rollout("T" * n) for n in (30, 4, 9, 17, 22, 11, 3, 8)))
    loads = [
        sum(count_needed_ids(rows[i], streams=1) for micro in micros for i in micro)
        for micros in plan_microbatches(rows, ranks=2, budget=40, streams=1)
    ]
    assert abs(loads[0] - loads[1]) <= 4


def test_a_row_beyond_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rollout p/0 has 11, budget 10"):
        plan_microbatches(one(AlgoConfig(), rollout("T" * 10)), ranks=1, budget=10, streams=1)


def test_every_component_of_the_loss_has_weights_a_factor_and_a_formula() -> None:
    micro = pack_microbatch(one(AlgoConfig(), rollout("TAE")), streams=1)
    logps = torch.zeros(len(micro.keep_N))
    terms = compute_loss_terms(logps, logps, logps, logps, micro, weight=0.5, algo=AlgoConfig())
    assert len(micro.weights_CN) == len(LossComponent)
    assert list(terms.parts) == list(compute_component_factors(0.5)) == list(LossComponent)


def test_lambda_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="lambda must lie in"):
        compute_component_factors(1.1)


def test_reference_is_needed_only_when_a_kl_can_count() -> None:
    assert needs_reference(AlgoConfig())
    assert not needs_reference(AlgoConfig(kl=NOTHING))
    assert not needs_reference(AlgoConfig(mix="fixed", fixed_lambda=0.0))


def test_parity_compares_sampled_and_scored_positions_by_channel() -> None:
    nan = float("nan")
    row = rollout("TTAE", sampled=(True, False, True, True))
    parity = compare_logprobs([row], {("p", 0): [-1.0001, 5.0, -1.1, nan]})
    assert parity.channels["T"].count == 1 and parity.channels["T"].largest == pytest.approx(1e-4)
    assert parity.channels["A"].mean == pytest.approx(0.1) and "E" not in parity.channels
    assert not parity.passed and compare_logprobs([row], {("p", 0): [-1.0] * 4}).passed
    assert not compare_logprobs([row], {("p", 0): [nan] * 4}).passed  # nothing compared is no proof
    assert not compare_logprobs([change_reply(row, logps=(float("-inf"),) * 4)], {("p", 0): [-1.0] * 4}).passed
