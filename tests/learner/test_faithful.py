"""``algo.faithful=true`` against the formulas of the paper's released code (MM-Speech/WavAlign at 5b680c3).

Restated from reading its masked RL+SFT trainer and its DPO trainer, in the structure they have: prompt by
prompt, rewards of a full group, no clip, no old log-probs, ratio exp(logp - logp.detach()), everything at
temperature 1. What docs/method.md §7 does not repeat is not restated: the empty mask that becomes all tokens, the
score of a failed judge call, the lambda that differs by rank and micro-batch.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conf.algorithm import AlgoConfig
from conf.judging import JudgeConfig
from judge.types import Scale
from learner.decide import ReplyGroup
from learner.gate import build_lambda_source
from learner.types import PreferencePair, TrainingReply
from rollout.types import Prompt, Reply
from tests.helpers.objective_draws import Step, judged
from tests.helpers.objective_world import by_name, decided, models, product, sides
from tests.helpers.training_replies import written_reply

SPEECH, TEXT = "AB", "TE"  # boundaries are speech, the stop token is text
JUDGE = JudgeConfig(semantic=1.0, acoustic=0.0)
FEW = settings(max_examples=60, derandomize=True)
GROUP = 4


# -- the released formulas


def token_types(channels: str, selected: str) -> list[float]:
    members = {"all": SPEECH + TEXT, "text": TEXT, "speech": SPEECH}[selected]
    return [1.0 if letter in members else 0.0 for letter in channels]


def picked(logits: Tensor, ids: Sequence[int], prompt: int) -> Tensor:
    """Log-prob of each response token, full-vocabulary softmax at temperature 1."""
    logps = torch.log_softmax(logits[: len(ids) - 1], -1)
    return logps.gather(-1, torch.tensor(ids[1:])[:, None])[prompt - 1 :, 0]


def released_advantages(rewards: Sequence[float]) -> Tensor:
    paid = torch.tensor(rewards, dtype=torch.float64)
    return (paid - paid.mean()) / (paid.std(unbiased=False) + 1e-4)


def released_preference(step: Step, logits: dict[str, Tensor], selected: str) -> Tensor:
    """Mean over a reply's selected tokens, then over the replies of a prompt, then over prompts."""
    total = torch.zeros((), dtype=torch.float64)
    for group in step.groups:
        losses = []
        advantages = released_advantages([judged.reward.value for _, judged in group.replies])  # type: ignore[union-attr]
        for (reply, _), advantage in zip(group.replies, advantages, strict=True):
            row = logits[f"rollout {reply.prompt_id}/{reply.index}"]
            logps = picked(row, group.prompt.ids + reply.ids, len(group.prompt.ids))
            mask = torch.tensor(token_types(reply.channels, selected), dtype=torch.float64)
            per_token = -torch.exp(logps - logps.detach()) * advantage
            losses.append((per_token * mask).sum() / mask.sum().clamp(min=1e-6))
        total = total + torch.stack(losses).mean()
    return total / len(step.groups)


def released_sft(step: Step, logits: dict[str, Tensor], text: float, speech: float) -> Tensor:
    """Weighted mean of a sample's tokens, then over samples."""
    losses = []
    for anchor in step.anchors:
        logps = picked(
            logits[f"anchor {anchor.prompt.id}"], anchor.prompt.ids + anchor.reply.ids, len(anchor.prompt.ids)
        )
        kinds = zip(
            token_types(anchor.reply.channels, "text"), token_types(anchor.reply.channels, "speech"), strict=True
        )
        weights = torch.tensor([text * t + speech * s for t, s in kinds], dtype=torch.float64)
        losses.append(-(logps * weights).sum() / weights.sum().clamp(min=1e-6))
    return torch.stack(losses).mean()


def released_lambda(groups: Sequence[Sequence[float]], state: float | None, alpha: float) -> float:
    """Each prompt's lambda from the same state, then their mean; starts at the first raw value."""
    values = []
    for rewards in groups:
        paid = torch.tensor(rewards, dtype=torch.float64)
        information = min(max(float(paid.var(unbiased=False)) / 4.0, 0.0), 1.0)
        gate = float(torch.sigmoid(5.0 * (paid.max() - 3.0)))
        raw = 0.8 * gate * information
        values.append(raw if state is None else (1 - alpha) * raw + alpha * state)
    return min(max(sum(values) / len(values), 0.0), 0.8)


def released_dpo(step: Step, now: dict[str, Tensor], start: dict[str, Tensor], selected: str) -> Tensor:
    losses = []
    for pair in step.pairs:
        scores = []
        for logits in (now, start):
            for role, side in sides(pair):
                row, prompt, reply = logits[f"{role} {side.prompt.id}"], side.prompt, side.reply
                mask = torch.tensor(token_types(reply.channels, selected), dtype=torch.float64)
                logps = picked(row, prompt.ids + reply.ids, len(prompt.ids))
                scores.append((logps * mask).sum())
        delta = (scores[0] - scores[1]) - (scores[2] - scores[3])
        losses.append(-torch.nn.functional.logsigmoid(0.1 * delta))
    return torch.stack(losses).mean()


# -- the product's settings for the same thing

MASKS = {
    "all": {"text": 1, "audio": 1, "boundary": 1, "stop": 1},
    "text": {"text": 1, "stop": 1},
    "speech": {"audio": 1, "boundary": 1},
}


def faithful(selected: str, **more: Any) -> AlgoConfig:
    return AlgoConfig.model_validate({"faithful": True, "preference": MASKS[selected], **more})


@st.composite
def texts(draw: st.DrawFn, least: str) -> str:
    """Channels of a reply; ``least`` occurs."""
    return least + draw(st.text("TABE", max_size=4))


@st.composite
def groups(draw: st.DrawFn, count: int) -> list[ReplyGroup]:
    """Full groups of whole rewards; every reply has words and speech."""
    collected = []
    for g in range(count):
        judged_replies = []
        for index in range(GROUP):
            channels = draw(texts("TA"))
            n = len(channels)
            ids = tuple(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
            reply = Reply(
                prompt_id=f"g{g}", index=index, ids=ids, logps=(-1.0,) * n, channels=channels,
                sampled=(True,) * n, versions=(0,) * n, finish="stop", text="", well_formed=True,
            )  # fmt: skip
            score = {"semantic": float(draw(st.integers(1, 5)))}
            judged_replies.append((reply, judged((f"g{g}", index), score, JUDGE, spread=0.0, veto=False)))
        collected.append(ReplyGroup(prompt=Prompt(id=f"g{g}", ids=(1, 2)), replies=tuple(judged_replies)))
    return collected


@st.composite
def anchors(draw: st.DrawFn) -> list[TrainingReply]:
    written = draw(st.lists(texts("TA"), min_size=1, max_size=3))
    return [
        written_reply(f"a{i}", (3,), tuple(j % 5 for j in range(len(channels))), channels)
        for i, channels in enumerate(written)
    ]


def assert_released(step: Step, loss: Tensor, now: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss, now)
    actual = product(step, decided(step).batch, ranks=2, room=8)
    assert actual.losses["total"] == pytest.approx(float(loss.detach()), rel=1e-6, abs=1e-12)
    largest = float(gradient.abs().max())
    assert float((actual.gradient - gradient).abs().max()) <= 1e-6 * largest + 1e-12


@FEW
@given(
    st.integers(1, 3).flatmap(groups), anchors(), st.sampled_from(sorted(MASKS)), st.integers(0, 999),
    st.sampled_from([(1.0, 1.0), (1.0, 0.5), (2.0, 1.0)]),
)  # fmt: skip
def test_loss_and_gradient_at_a_gated_step_are_the_released_codes(
    judged_groups: list[ReplyGroup], anchored: list[TrainingReply], selected: str, seed: int, sft: tuple[float, float]
) -> None:
    text, speech = sft
    weights = {"text": text, "stop": text, "audio": speech, "boundary": speech}
    algo = faithful(selected, sft=weights)
    step = Step(algo=algo, judge=JUDGE, groups=judged_groups, anchors=anchored, temperature=1.0, seed=seed)
    now = models(step)[0].requires_grad_(True)
    logits = by_name(step, now)
    rewards = [[j.reward.value for _, j in group.replies] for group in judged_groups]  # type: ignore[union-attr]
    weight = released_lambda(rewards, None, 0.9)
    assert decided(step).batch.weight == pytest.approx(weight, rel=1e-9, abs=1e-12)
    loss = weight * released_preference(step, logits, selected)
    assert_released(step, loss + (1 - weight) * released_sft(step, logits, text, speech), now)


@FEW
@given(st.lists(st.integers(1, 3).flatmap(groups), min_size=1, max_size=5), st.sampled_from([0.9, 0.5, 0.0]))
def test_lambda_over_a_run_is_the_released_codes(run: list[list[ReplyGroup]], alpha: float) -> None:
    mixer, state = build_lambda_source(faithful("text", gate={"alpha": alpha}), Scale()), None
    for number, seen in enumerate(run, start=1):
        step = Step(algo=faithful("text"), judge=JUDGE, groups=seen, number=number)
        rewards = [[j.reward.value for _, j in group.replies] for group in seen]  # type: ignore[union-attr]
        state = released_lambda(rewards, state, alpha)
        assert decided(step, mixer).batch.weight == pytest.approx(state, rel=1e-9, abs=1e-12)


@FEW
@given(st.lists(st.tuples(texts("TA"), texts("TA")), min_size=1, max_size=3), st.sampled_from(sorted(MASKS)))
def test_dpo_on_pairs_is_the_released_codes(written: list[tuple[str, str]], selected: str) -> None:
    def reply(name: str, channels: str) -> TrainingReply:
        return written_reply(name, (1,), tuple(j % 5 for j in range(len(channels))), channels)

    pairs = [
        PreferencePair(chosen=reply(f"d{i}", best), rejected=reply(f"d{i}", worst))
        for i, (best, worst) in enumerate(written)
    ]
    algo = faithful(selected, loss="dpo", mix="fixed", fixed_lambda=1.0)
    step = Step(algo=algo, judge=JUDGE, groups=[], pairs=pairs)
    now, _, start = models(step)
    now.requires_grad_(True)
    assert_released(step, released_dpo(step, by_name(step, now), by_name(step, start), selected), now)


def test_advantages_have_the_released_codes_ten_thousandth_beside_the_deviation() -> None:
    step = Step(algo=faithful("text"), judge=JUDGE, groups=[group_of(4.0, 3.0, 5.0, 2.0)])
    actual = [row.advantage.text for row in decided(step).batch.rollouts]
    assert actual == pytest.approx(released_advantages([4.0, 3.0, 5.0, 2.0]).tolist(), rel=1e-12)
    assert actual[2] == pytest.approx(1.5 / (1.25**0.5 + 1e-4), rel=1e-12)
    assert actual[2] != pytest.approx(1.5 / 1.25**0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("rewards", "weight"),
    [((4, 3, 5, 2), 0.24999), ((3, 3, 3, 3), 0.0), ((1, 1, 5, 5), 0.79996), ((2, 2, 1, 1), 0.000335)],
)
@pytest.mark.parametrize("algo", [AlgoConfig(), faithful("text")], ids=["gated", "faithful"])
def test_the_batch_of_given_rewards_has_the_worked_lambda_and_its_advantages(
    algo: AlgoConfig, rewards: tuple[float, ...], weight: float
) -> None:
    """docs/method.md §3's worked values, through the decision of a step."""
    step = Step(algo=algo, judge=JUDGE, groups=[group_of(*map(float, rewards))])
    batch = decided(step).batch
    assert batch.weight == pytest.approx(weight, abs=1e-5 if weight > 0.001 else 5e-7)
    assert batch.weight == pytest.approx(released_lambda([rewards], None, 0.9), rel=1e-12)
    wanted = released_advantages(list(map(float, rewards))).tolist()
    assert [row.advantage.text for row in batch.rollouts] == pytest.approx(wanted, rel=3e-4)
    assert {row.advantage.whole is None for row in batch.rollouts} == {False}


def test_a_group_without_any_word_teaches_nothing_where_the_released_code_took_all_tokens() -> None:
    """docs/method.md §7: the empty mask never falls back, not even when faithful."""
    step = Step(algo=faithful("text", mix="fixed"), judge=JUDGE, groups=[group_of(5.0, 1.0, channels="AAB")])
    actual = product(step, decided(step).batch)
    assert actual.losses["po"] == 0.0 and not actual.gradient.any()


def group_of(*scores: float, channels: str = "TAE") -> ReplyGroup:
    collected = []
    for index, score in enumerate(scores):
        reply = Reply(
            prompt_id="g", index=index, ids=(0,) * len(channels), logps=(-1.0,) * len(channels), channels=channels,
            sampled=(True,) * len(channels), versions=(0,) * len(channels), finish="stop", text="", well_formed=True,
        )  # fmt: skip
        collected.append((reply, judged(("g", index), {"semantic": score}, JUDGE, spread=0.0, veto=False)))
    return ReplyGroup(prompt=Prompt(id="g", ids=(1, 2)), replies=tuple(collected))
