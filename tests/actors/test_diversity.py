"""Diversity of a step's groups: what counts, and what is left out."""

from math import sqrt

import pytest

from actors.run.diversity import compute_diversity_metrics
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict, Verdict
from learner.decide import ReplyGroup
from rollout.types import Prompt, Reply

REPLY = {
    "sampled": (True,) * 4,
    "versions": (0,) * 4,
    "finish": "stop",
    "well_formed": True,
    "logps": (0.0,) * 4,
}


def group(rewards: list[float | None], *, texts: str = "", codes: str = "", axis: str = "semantic") -> ReplyGroup:
    """Reply i says ``texts[i]`` and sounds like ``codes[i]``; every reply alike where they are empty."""

    def one(index: int, reward: float | None) -> tuple[Reply, ReplyJudgement]:
        code = ord((codes or "a" * len(rewards))[index])
        reply = Reply(prompt_id="p", index=index, ids=(index, code, code, 3), channels="TAAE",
                      text=(texts or "a" * len(rewards))[index], **REPLY)  # type: ignore[arg-type]  # fmt: skip
        verdict: Verdict = (
            MissingVerdict(judge="x", reason="broken", kind="server")
            if reward is None
            else ScoredVerdict(value=reward, judge="x")
        )
        return reply, ReplyJudgement(prompt_id="p", index=index, axes={axis: verdict}, reward=verdict, transcript=None)

    return ReplyGroup(prompt=Prompt(id="p", ids=(1,)), replies=tuple(one(i, r) for i, r in enumerate(rewards)))


def test_spread_is_the_mean_over_groups_of_the_deviation_within_one() -> None:
    diversity_metrics = compute_diversity_metrics(
        [group([1, 5]), group([2, 2, None]), group([1, 2, 3], axis="acoustic")]
    )
    assert diversity_metrics["diversity/reward"] == pytest.approx((2 + 0 + sqrt(2 / 3)) / 3)
    assert diversity_metrics["diversity/semantic"] == pytest.approx(1)
    assert diversity_metrics["diversity/acoustic"] == pytest.approx(sqrt(2 / 3))
    assert diversity_metrics["diversity/equal_groups"] == pytest.approx(1 / 3)


def test_replies_differ_by_text_and_by_audio_tokens_each_apart() -> None:
    diversity_metrics = compute_diversity_metrics(
        [group([1, 2, 3, 4], texts="aabb", codes="abcd"), group([1, 1], texts="ab")]
    )
    assert diversity_metrics["diversity/text"] == pytest.approx((0.5 + 1) / 2)
    assert diversity_metrics["diversity/audio"] == pytest.approx((1 + 0.5) / 2)


def test_rewards_that_differ_by_rounding_are_equal() -> None:
    diversity_metrics = compute_diversity_metrics([group([0.1 + 0.2, 0.3])])
    assert (diversity_metrics["diversity/reward"], diversity_metrics["diversity/equal_groups"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("rewards", "names"),
    [
        ([[None, None]], {"text", "audio"}),
        ([[1.0, None]], {"text", "audio"}),  # one value is no spread
        ([[3.0]], set()),  # one reply is no group
        ([], set()),
    ],
)
def test_a_figure_over_no_group_is_left_out(rewards: list[list[float | None]], names: set[str]) -> None:
    assert set(compute_diversity_metrics([group(row) for row in rewards])) == {f"diversity/{name}" for name in names}
