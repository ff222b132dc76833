"""Random steps for the objective's tests: settings, judged groups, anchors, offline pairs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from conf.algorithm import AlgoConfig
from conf.endpoints import ApiConfig
from conf.judging import JudgeConfig
from judge.rules.vetoes import VETO_JUDGE as VETO
from judge.types import MissingVerdict, ReplyJudgement, ScoredVerdict, Verdict
from learner.decide import ReplyGroup
from learner.types import PreferencePair, TrainingReply
from rollout.types import Prompt, Reply
from tests.helpers.training_replies import written_reply

VOCABULARY, LONGEST_PROMPT, LONGEST_REPLY = 5, 3, 6
AXES = ("semantic", "acoustic", "holistic")


@dataclass(kw_only=True, eq=False)
class Step:
    """Everything that one optimiser step depends on."""

    algo: AlgoConfig
    judge: JudgeConfig
    groups: list[ReplyGroup]
    anchors: list[TrainingReply] = field(default_factory=list)
    pairs: list[PreferencePair] = field(default_factory=list)
    temperature: float = 0.75
    number: int = 1
    seed: int = 0
    drift: float = 0.0  # how far the policy has moved since the step began (epochs > 1)


def weights(*values: float) -> st.SearchStrategy[dict[str, float]]:
    item = st.sampled_from(values)
    return st.fixed_dictionaries(dict.fromkeys(("text", "audio", "boundary", "stop"), item))


GATE = {
    "lambda_max": st.sampled_from([0.8, 1.0, 0.8, 0.0]),
    "alpha": st.sampled_from([0.9, 0.0, 0.5]),
    "k": st.sampled_from([5.0, 1.0]),
    "denoise": st.booleans(),
}
COMMON = {
    "mix": st.sampled_from(["fixed", "gate", "fixed", "two_stage"]),
    "fixed_lambda": st.sampled_from([0.5, 0.3, 1.0, 0.5, 0.0]),
    "sft_steps": st.sampled_from([1, 2]),
    "sft": weights(1.0, 0.0, 0.5),
    "sft_aggregation": st.sampled_from(["token_mean", "sequence_mean"]),
    "preference": weights(1.0, 0.0, 0.5, 2.0),
    "importance_cap": st.sampled_from([0.9, 2.0]),
    "dpo_beta": st.sampled_from([0.1, 1.0, 5.0]),
    "margin": st.sampled_from([0.0, 0.5, 2.0]),
}
GRPO = {
    "normalise": st.sampled_from(["std", "none", "leave_one_out"]),
    "normalise_by": st.sampled_from(["reward", "axis"]),
    "aggregation": st.sampled_from(["sequence_mean", "token_mean", "sum", "constant"]),
    "clip_low": st.sampled_from([0.2, 0.0, 0.05]),
    "clip_high": st.sampled_from([0.2, 0.0, 0.05]),
    "clip_dual": st.sampled_from([None, 1.1, 3.0]),
    "importance": st.sampled_from(["token", "sequence", "off"]),
    "kl": weights(0.01, 0.0, 0.5),
    "entropy": weights(0.0, 0.1),
    "equal_groups": st.sampled_from(["keep", "drop", "refill"]),
}
OFF = dict.fromkeys(("text", "audio", "boundary", "stop"), 0.0)


KINDS = ("grpo", "routed", "penalised", "dpo", "online_dpo")


@st.composite
def algos(draw: st.DrawFn, kind: str, **fixed: Any) -> AlgoConfig:
    """Any objective of a kind that the schema admits. ``penalised``: the KL is part of the reward."""
    chosen: dict[str, Any] = {"loss": kind if "dpo" in kind else "grpo"}
    chosen |= {"gate": draw(st.fixed_dictionaries(GATE)), **draw(st.fixed_dictionaries(COMMON))}
    if "dpo" in kind:
        chosen |= {"kl": OFF, "entropy": OFF}
        chosen |= {"mix": "fixed"} if kind == "dpo" and chosen["mix"] == "gate" else {}
    else:
        chosen |= draw(st.fixed_dictionaries(GRPO)) | {"routed": kind == "routed"}
        chosen |= {} if kind == "grpo" else {"normalise_by": "reward"}
        chosen["kl_in"] = "reward" if kind == "penalised" else "loss"
        chosen["kl_estimator"] = draw(st.sampled_from(["k3", "k2"] + ["k1"] * (kind == "penalised")))
    chosen |= fixed
    if not any(chosen["preference"].values()):
        chosen["preference"] = {"text": 1.0, "stop": 1.0}
    if not any(chosen["sft"].values()):  # else some step, or the whole run, may have nothing to learn from
        chosen["mix"], chosen["fixed_lambda"] = "fixed", chosen["fixed_lambda"] or 0.5
    if kind == "routed":  # text and audio both have an advantage of their own
        weights_of = chosen["preference"]
        chosen["preference"] = weights_of | {c: weights_of.get(c) or 1.0 for c in ("text", "audio")}
    if kind == "penalised" and not any(chosen["kl"].values()):
        chosen["kl"] = {"text": 0.01}
    return AlgoConfig.model_validate(chosen)


def letters(rng: np.random.Generator, alphabet: str) -> str:
    return "".join(rng.choice(list(alphabet), int(rng.integers(1, LONGEST_REPLY + 1))))


def ids(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(0, VOCABULARY, count).tolist())


def verdict(value: float | None, judge: str = "x", spread: float = 0.0) -> Verdict:
    if value is None:
        return MissingVerdict(judge=judge, reason="broken", kind="server")
    return ScoredVerdict(value=value, judge=judge, spread=spread)


def judged(
    key: tuple[str, int], axes: dict[str, float | None], judge: JudgeConfig, *, spread: float, veto: bool
) -> ReplyJudgement:
    """The reward is the weighted mean of the axes, missing as soon as one weighted axis is; a veto is the
    floor whatever the axes say."""
    counted = {name: weight for name, weight in judge.weights.items() if weight > 0}
    reward = None
    if all(axes[name] is not None for name in counted):
        reward = sum(w * axes[name] for name, w in counted.items()) / sum(counted.values())  # type: ignore[operator, misc]
    actual = verdict(judge.scale_lo, VETO) if veto else verdict(reward, spread=spread)
    return ReplyJudgement(
        prompt_id=key[0], index=key[1], axes={name: verdict(value) for name, value in axes.items()},
        reward=actual, transcript=None, figures={"vetoed": 1.0} if veto else {},
    )  # fmt: skip


@st.composite
def groups(draw: st.DrawFn, judge: JudgeConfig, alphabet: str, name: str) -> ReplyGroup:
    """One prompt's replies: scores all different, all equal, many missing, some vetoed."""
    size, kind = draw(st.sampled_from([2, 3, 4, 8])), draw(st.sampled_from(["any", "any", "equal", "thin"]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    vetoes = draw(st.booleans())
    point = (judge.scale_hi - judge.scale_lo) / 16
    same = {axis: judge.scale_lo + point * int(rng.integers(0, 17)) for axis in AXES}
    replies = []
    for index in range(size):
        channels = letters(rng, alphabet)
        n = len(channels)
        axes: dict[str, float | None] = {
            axis: same[axis] if kind == "equal" else judge.scale_lo + point * int(rng.integers(0, 17)) for axis in AXES
        }
        absent = index > 0 if kind == "thin" else rng.random() < 0.1
        if absent:
            axes[str(rng.choice([a for a, w in judge.weights.items() if w > 0]))] = None
        formed = bool(rng.random() < 0.7)
        reply = Reply(
            prompt_id=name, index=index, ids=ids(rng, n), logps=tuple((-rng.integers(8, 40, n) / 16).tolist()),
            channels=channels, sampled=tuple((rng.random(n) < 0.85).tolist()), versions=(0,) * n,
            finish="stop", text="", well_formed=formed,
        )  # fmt: skip
        veto = vetoes and kind != "thin" and bool(rng.random() < 0.25)
        spread = int(rng.integers(0, 9)) / 8 * 4 * point
        replies.append((reply, judged((name, index), axes, judge, spread=spread, veto=veto)))
    return ReplyGroup(
        prompt=Prompt(id=name, ids=ids(rng, int(rng.integers(1, LONGEST_PROMPT + 1)))), replies=tuple(replies)
    )


def written(rng: np.random.Generator, name: str, prompt_ids: tuple[int, ...], alphabet: str) -> TrainingReply:
    channels = letters(rng, alphabet)
    return written_reply(name, prompt_ids, ids(rng, len(channels)), channels)


@st.composite
def steps(draw: st.DrawFn, kind: str, **fixed: Any) -> Step:
    """Any step of a kind of objective. ``fixed``: settings that are not drawn."""
    chosen = draw(algos(kind, **fixed))
    mixes = [(0.6, 0.4, 0.0), (1.0, 0.5, 0.0)] + ([] if chosen.routed else [(1.0, 0.0, 0.0), (0.25, 0.25, 0.5)])
    semantic, acoustic, holistic = draw(st.sampled_from(mixes))
    lo, hi = draw(st.sampled_from([(1.0, 5.0), (1.0, 5.0), (0.0, 10.0)])) if not chosen.faithful else (1.0, 5.0)
    readings = draw(st.sampled_from([1, 2, 5]))
    judge = JudgeConfig.model_construct(
        semantic=semantic, acoustic=acoustic, holistic=holistic, scale_lo=lo, scale_hi=hi,
        readings=readings, api=ApiConfig(repeats=readings),
    )  # fmt: skip
    alphabet = draw(st.sampled_from(["TABEP", "TABEP", "TE", "A", "TB", "ABP"]))  # channels that occur at all
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    fresh = 0 if chosen.loss == "dpo" else draw(st.sampled_from([2, 1, 3, 2, 0]))
    pairs = draw(st.sampled_from([2, 1, 3, 0])) if chosen.loss == "dpo" else 0
    return Step(
        algo=chosen,
        judge=judge,
        groups=[draw(groups(judge, alphabet, f"g{i}")) for i in range(fresh)],
        anchors=[
            written(rng, f"a{i}", ids(rng, 2), "TABEP" if i else alphabet) for i in range(draw(st.integers(0, 3)))
        ],
        pairs=[
            PreferencePair(
                chosen=written(rng, f"d{i}", (1,), alphabet),
                rejected=written(rng, f"d{i}", (1,), alphabet),
                weight=float(rng.choice([1.0, 0.5, 3.0])),
            )
            for i in range(pairs)
        ],
        temperature=draw(st.sampled_from([0.75, 1.0])),
        number=draw(st.integers(1, 4)),
        seed=int(rng.integers(0, 10_000)),
        drift=draw(st.sampled_from([0.0, 0.3])),
    )
