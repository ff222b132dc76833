"""What the product and the naive reference make of a step, for the objective's tests.

To a step belongs one padded tensor of logits per model state (policy now, policy before the step, frozen
start). The product gets it through ``decide``, ``rows_of``, ``share`` and ``pack``; the model is a look-up
in the tensor, so losses and gradients with respect to the logits can be compared to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import learner.batch
from conf.schema import Config
from judge.types import Scale, ScoredVerdict
from learner.batch import Microbatch, count_needed_ids, pack_microbatch, pack_reference_microbatch, plan_microbatches
from learner.decide import ReplyGroup, StepDecision, decide_step, select_rewarded_rollouts
from learner.gate import LambdaSource, build_lambda_source
from learner.loss import compute_loss_terms, estimate_kl
from learner.objectives import build_penalty_rows, build_training_rows
from learner.rows import LossComponent, SamplingSetup, TrainingRow
from learner.types import PreferencePair, StepBatch, TrainingReply
from rollout.types import Reply, ReplyKey
from tests.helpers import naive_decision, naive_objective
from tests.helpers.objective_draws import LONGEST_PROMPT, LONGEST_REPLY, VOCABULARY, Step

MAX_NEW_TOKENS = 16
COMPONENTS = ("sft", "po", "dpo", "kl", "entropy")
Logits = dict[str, Tensor]  # by row name, [length, vocabulary]


# -- the model: a look-up


def sequences(step: Step) -> dict[str, tuple[int, ...]]:
    """Row name -> ids of prompt and response, for all that could become a row."""
    actual = {f"rollout {r.prompt_id}/{r.index}": g.prompt.ids + r.ids for g in step.groups for r, _ in g.replies}
    for pair in step.pairs:
        actual |= {f"{role} {r.prompt.id}": r.prompt.ids + r.reply.ids for role, r in sides(pair)}
    actual |= {f"anchor {a.prompt.id}": a.prompt.ids + a.reply.ids for a in step.anchors}
    return dict(sorted(actual.items()))  # a row's logits do not depend on the order of the groups


def sides(pair: PreferencePair) -> tuple[tuple[str, TrainingReply], tuple[str, TrainingReply]]:
    return ("chosen", pair.chosen), ("rejected", pair.rejected)


def models(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Padded logits [row, length, vocabulary] of the policy now, before the step, and of the start policy."""
    generator = torch.Generator().manual_seed(step.seed)
    shape = (max(1, len(sequences(step))), LONGEST_PROMPT + LONGEST_REPLY, VOCABULARY)
    now, moved, start = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return now, now + step.drift * moved, start


def by_name(step: Step, padded: Tensor) -> Logits:
    return dict(zip(sequences(step), padded, strict=False))


class Wide:
    """``torch`` in which float32 is float64: what is left between two formulas is then rounding alone."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def packed(rows: Sequence[TrainingRow]) -> Microbatch:
    with patch.object(learner.batch, "torch", Wide()):
        return pack_microbatch(rows, streams=1)


def scores(logits: Logits, rows: Sequence[TrainingRow], micro: Microbatch) -> tuple[Tensor, Tensor]:
    """(log-probs, entropies) of a micro-batch's positions, as a model would give them."""
    rows = [row for row in rows if count_needed_ids(row, streams=1)]
    begins = np.cumsum([0, *micro.lengths])
    assert sum(micro.lengths) == len(micro.ids_TS)
    logps, entropies = [], []
    places = zip(micro.keep_N.tolist(), micro.targets_N.tolist(), micro.temperature_N.tolist(), strict=True)
    for keep, target, temperature in places:
        segment = int(np.searchsorted(begins, keep, side="right")) - 1
        place = keep - int(begins[segment])
        assert rows[segment].ids[place + 1] == target and rows[segment].ids[place] == micro.ids_TS[keep, 0]
        role, reply = rows[segment].name.split()
        name = f"rollout {reply}" if rows[segment].key else f"{role} {reply}"  # also as a side of an online pair
        every = torch.log_softmax(logits[name][place] / temperature, -1)
        logps.append(every[target])
        entropies.append(-(every.exp() * every).sum())
    nothing = torch.zeros(0, dtype=torch.float64)
    return (torch.stack(logps), torch.stack(entropies)) if logps else (nothing, nothing)


# -- what the product makes of a step


@dataclass(kw_only=True, eq=False)
class Found:
    """Of one step, by the product or by the reference."""

    weight: float
    losses: dict[str, float]
    gradient: Tensor  # of the total with respect to the padded logits


def decided(step: Step, mixer: LambdaSource | None = None) -> StepDecision:
    """As the driver decides. ``mixer``: carries lambda from step to step."""
    penalties: dict[Any, float] = {}
    if step.algo.kl_in == "reward":
        _, before, start = (by_name(step, padded) for padded in models(step))
        penalties = product_penalties(step, select_rewarded_rollouts(step.groups), before, start)
    return decide_step(
        step.number,
        step.groups,
        step.anchors,
        mixer or build_lambda_source(step.algo, Scale(step.judge.scale_lo, step.judge.scale_hi)),
        Config.model_construct(algo=step.algo, judge=step.judge),
        pairs=step.pairs,
        penalties=penalties,
    )


def product_penalties(
    step: Step, rollouts: Sequence[TrainingReply], before: Logits, start: Logits
) -> dict[ReplyKey, float]:
    """As ``Learner.penalties`` adds them up."""
    actual = {}
    for rollout, row in zip(rollouts, build_penalty_rows(rollouts, step.algo, sampled(step)), strict=True):
        micro = packed([row])
        gap = scores(start, [row], micro)[0] - scores(before, [row], micro)[0]
        penalty = (micro.weights_CN[LossComponent.KL] * estimate_kl(gap, step.algo.kl_estimator)).sum()
        actual[rollout.reply.key] = float(penalty)
    return actual


def sampled(step: Step) -> SamplingSetup:
    return SamplingSetup(max_new_tokens=MAX_NEW_TOKENS, temperature=step.temperature)


def product(step: Step, batch: StepBatch, *, ranks: int = 1, room: int = 0) -> Found:
    """The loss as the learner's ranks add it up over their micro-batches. ``room``: tokens of a micro-batch
    beyond the least that holds every row."""
    now, before, start = models(step)
    now.requires_grad_(True)
    rows = build_training_rows(batch, step.algo, sampled(step))
    longest = max([count_needed_ids(row, streams=1) for row in rows], default=0)
    budget = max(1, longest * (2 if batch.pairs else 1)) + room
    total = torch.zeros((), dtype=torch.float64)
    sums = dict.fromkeys(COMPONENTS, 0.0)
    for micros in plan_microbatches(rows, ranks=ranks, budget=budget, streams=1):
        for held in micros:
            mine = [rows[i] for i in held]
            micro = packed(mine)
            logps, entropies = scores(by_name(step, now), mine, micro)
            old, _ = scores(by_name(step, before), mine, micro)
            reference = torch.full_like(old, 7.0)  # never read where nothing asks for it
            asked = [row.restrict_to((LossComponent.DPO, LossComponent.KL)) for row in mine]
            with patch.object(learner.batch, "torch", Wide()):
                reference[micro.referenced_N], _ = scores(
                    by_name(step, start), asked, pack_reference_microbatch(mine, streams=1)
                )
            terms = compute_loss_terms(logps, entropies, old, reference, micro, weight=batch.weight, algo=step.algo)
            total = total + terms.total
            sums = {name: sums[name] + float(terms.parts[LossComponent[name.upper()]]) for name in COMPONENTS}
    gradient = torch.zeros_like(now)
    if total.requires_grad:
        (gradient,) = torch.autograd.grad(total, now, allow_unused=True)
    return Found(weight=batch.weight, losses={**sums, "total": float(total.detach())}, gradient=gradient)


# -- what the reference makes of it


def judged_replies_of(step: Step, group: ReplyGroup) -> list[naive_decision.JudgedReply]:
    collected = []
    for reply, judged in group.replies:
        paid = judged.reward
        collected.append(
            naive_decision.JudgedReply(
                reward=paid.value if isinstance(paid, ScoredVerdict) else None,
                axes={n: one.value if isinstance(one, ScoredVerdict) else None for n, one in judged.axes.items()},
                spread=paid.spread if isinstance(paid, ScoredVerdict) else 0.0,
                well_formed=reply.well_formed,
                vetoed="vetoed" in judged.figures,
                penalty=penalty(step, group, reply) if step.algo.kl_in == "reward" else 0.0,
            )
        )
    return collected


def penalty(step: Step, group: ReplyGroup, reply: Reply) -> float:
    _, before, start = (by_name(step, padded) for padded in models(step))
    name, at = f"rollout {reply.prompt_id}/{reply.index}", len(group.prompt.ids)
    old, ref = (
        naive_objective.log_probs(model[name], group.prompt.ids + reply.ids, at, step.temperature)
        for model in (before, start)
    )
    return naive_objective.kl_penalty(
        naive_objective.Scored(
            channels=reply.channels, sampled=reply.sampled, now=old, old=floats(old), start=floats(ref)
        ),
        step.algo,
    )


def floats(values: Sequence[Tensor]) -> list[float]:
    return [float(value.detach()) for value in values]


@dataclass(kw_only=True, eq=False)
class Verdicts:
    """The reference's decision."""

    weight: float
    groups: int  # that have survivors
    advantages: dict[tuple[str, int], dict[str, float]]  # of the rollouts in the loss
    pairs: list[tuple[tuple[str, int], tuple[str, int]]]


def verdicts(step: Step, previous: float | None = None) -> Verdicts:
    """docs/method.md §2-4 on the step's groups."""
    algo, judge, kept = step.algo, step.judge, []
    actual = Verdicts(weight=0.0, groups=0, advantages={}, pairs=[])
    for group in step.groups:
        every = judged_replies_of(step, group)
        there = naive_decision.survivors([value.reward for value in every])
        if not there:
            continue
        alive = [every[i] for i in there]
        keys = [(group.prompt.id, group.replies[i][0].index) for i in there]
        kept.append(alive)
        if algo.loss == "online_dpo":
            ends = naive_decision.extremes(alive, algo.margin)
            actual.pairs += [(keys[ends[0]], keys[ends[1]])] if ends else []
        elif algo.equal_groups == "keep" or naive_decision.differs(alive, algo, judge.weights, judge.scale_lo):
            each = naive_decision.advantages(alive, algo, judge.weights, judge.scale_lo)
            actual.advantages |= dict(zip(keys, each, strict=True))
    actual.groups = len(kept)
    actual.weight = naive_decision.next_lambda(
        kept, algo, previous, step.number, judge.scale_lo, judge.scale_hi, judge.readings
    )
    return actual


def expected(step: Step, actual: Verdicts) -> Found:
    """Padded, float64, in loops."""
    now, before, start = models(step)
    now.requires_grad_(True)
    tables = [by_name(step, padded) for padded in (now, before, start)]

    def scored(name: str, whole: tuple[int, ...], at: int, temperature: float, row: Any) -> naive_objective.Scored:
        new, old, ref = (naive_objective.log_probs(table[name], whole, at, temperature) for table in tables)
        return naive_objective.Scored(
            channels=row.channels, sampled=row.sampled, now=new,
            old=floats(old), start=floats(ref), behaviour=getattr(row, "logps", None) or (),
            entropy=naive_objective.entropies(tables[0][name], whole, at, temperature),
        )  # fmt: skip

    replies: dict[tuple[str, int], naive_objective.Scored] = {}
    for group in step.groups:
        for reply, _ in group.replies:
            name, whole = f"rollout {reply.prompt_id}/{reply.index}", group.prompt.ids + reply.ids
            replies[reply.key] = scored(name, whole, len(group.prompt.ids), step.temperature, reply)
            replies[reply.key].advantage = actual.advantages.get(reply.key, {})
    pairs = [(replies[best], replies[worst], 1.0) for best, worst in actual.pairs]
    for pair in step.pairs:  # not sampled by this run: scored as the model is, at temperature 1
        both = [
            scored(f"{role} {r.prompt.id}", r.prompt.ids + r.reply.ids, len(r.prompt.ids), 1.0, r.reply)
            for role, r in sides(pair)
        ]
        pairs.append((both[0], both[1], pair.weight))
    anchors = [
        scored(f"anchor {a.prompt.id}", a.prompt.ids + a.reply.ids, len(a.prompt.ids), 1.0, a.reply)
        for a in step.anchors
    ]
    rollouts = [replies[key] for key in actual.advantages]
    losses = naive_objective.losses(actual.weight, rollouts, anchors, pairs, step.algo, MAX_NEW_TOKENS)
    gradient = torch.zeros_like(now)
    if losses["total"].requires_grad:
        (gradient,) = torch.autograd.grad(losses["total"], now)
    return Found(weight=actual.weight, losses={n: float(v.detach()) for n, v in losses.items()}, gradient=gradient)
