"""What the learner tests share: configs, batches, and a padded float64 model for the naive reference.

Run as a program it is one rank of a two-rank session: `python -m tests.helpers.learner_world <folder> <rank> <world>
<port>`.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from conf.schema import Config, ModelConfig
from learner.model import Policy, gather_tensor
from learner.ranks import join_process_group, leave_process_group
from learner.step import Learner
from learner.types import Advantage, StepBatch
from rollout.types import Prompt, Reply, ReplyKey
from speech.families import load_family
from tests.helpers import naive_objective as naive
from tests.helpers.learner_variants import HOT, PENALISED, VARIANTS
from tests.helpers.processes import HANG_S
from tests.helpers.training_replies import sampled_reply, written_reply

Tensors = dict[str, Tensor]

NO_KL: dict[str, Any] = {"kl": {}}
EVERYTHING: dict[str, Any] = {"preference": {"text": 1, "audio": 1, "boundary": 1, "stop": 1}}
WORDS: dict[str, Any] = {"preference": {"text": 1}}


def config(
    checkpoint: Path,
    *,
    algo: dict[str, Any] | None = None,
    rollout: dict[str, Any] | None = None,
    **learner: Any,
) -> Config:
    """A micro run.

    The gradient is not clipped, so that Adam's first moment after one step is a tenth of it.
    """
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"path": str(checkpoint), "max_length": 96},
            "data": {"train": "x", "validation": "x", "test": "x", "pairs": "x"},
            "rollout": {"max_new_tokens": 64, **(rollout or {})},
            "algo": algo or {},
            "learner": {
                "lr": 3e-4,
                "activation_checkpointing": False,
                "clip": 1e9,
                "warmup_steps": 0,
                "tokens_per_microbatch": 256,
                "logprob_chunk": 16,
                **learner,
            },
        }
    )


def batch(checkpoint: Path, *, groups: int = 3, size: int = 2, weight: float = 0.4, seed: int = 0) -> StepBatch:
    """Random replies in the tiny family's grammar, of unequal lengths; one forced token each; no zero
    advantages.
    """
    family = load_family(ModelConfig(family="tiny", path=checkpoint))
    rng = np.random.default_rng(seed)
    table = family.channels.table_SV[0]
    words, codes = np.flatnonzero(table == 0), np.flatnonzero(table == 1)

    def reply() -> tuple[int, ...]:
        chunks = range(rng.integers(1, 4))
        texts = [rng.choice(words, rng.integers(1, 4)).tolist() for _ in chunks]
        return tuple(
            family.interleave.merge_chunks(texts, [rng.choice(codes, rng.integers(1, 9)).tolist() for _ in chunks])
        )

    rollouts, anchors = [], []
    for g in range(groups):
        prompt = Prompt(id=f"p{g}", ids=tuple(int(t) for t in rng.choice(words, rng.integers(3, 20))))
        for index in range(size):
            ids = reply()
            rollouts.append(
                sampled_reply(
                    prompt,
                    index,
                    ids,
                    logps=tuple(float(x) for x in rng.normal(-4.8, 0.5, len(ids))),
                    channels=family.channels.to_letters(ids),
                    sampled=tuple(j != 1 for j in range(len(ids))),
                    advantage=Advantage.shared(float(rng.normal())),
                )
            )
        target = reply()
        anchors.append(written_reply(prompt.id, prompt.ids, target, family.channels.to_letters(target)))
    return StepBatch(step=0, weight=weight, rollouts=tuple(rollouts), anchors=tuple(anchors))


def perturb(parameters: Any) -> None:
    """Move weights away from the start policy, the same way however they are sharded."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.sin(parameter * 50.0), alpha=0.02)


def full_tensors(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """(name in the module, whole tensor), tied ones under each of their names. Collective."""
    for name, tensor in policy.lm.state_dict().items():
        yield name, gather_tensor(tensor)


def moments(learner: Learner) -> Tensors:
    """Adam's first moment by name, whole. Collective."""
    named = learner.policy.lm.named_parameters()
    return {name: gather_tensor(learner._optimizer.state[p]["exp_avg"]).clone() for name, p in named}


def relative_error(actual: Tensors, expected: Tensors) -> float:
    """L2 norm of the difference over all tensors, relative to the expected norm."""
    assert set(actual) == set(expected)
    off = sum(float((actual[name].double() - expected[name].double()).square().sum()) for name in expected)
    size = sum(float(expected[name].double().square().sum()) for name in expected)
    return (off / size) ** 0.5


@dataclass(kw_only=True, eq=False)
class Naive:
    """A float64 model over one padded batch, and every row as the naive reference takes it."""

    model: nn.Module
    rollouts: list[naive.Scored]
    pairs: list[tuple[naive.Scored, naive.Scored, float]]
    anchors: list[naive.Scored]


def naive_rows(checkpoint: Path, config: Config, batch: StepBatch, *, perturbed: bool = False) -> Naive:
    """One padded float64 batch, whole log_softmax, position by position."""
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float64, attn_implementation="sdpa"
        ).train()

    model, reference = load(), load()
    if perturbed:
        perturb(model.parameters())
    replies = [*batch.rollouts, *(r for pair in batch.pairs for r in (pair.chosen, pair.rejected))]
    rows = [*replies, *batch.anchors]
    longest = max(len(r.prompt.ids) + len(r.reply.ids) for r in rows)
    ids, mask = torch.zeros(2, len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        whole_row = row.prompt.ids + row.reply.ids
        ids[i, : len(whole_row)] = torch.tensor(whole_row)
        mask[i, : len(whole_row)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    with torch.no_grad():
        frozen = reference(input_ids=ids, attention_mask=mask).logits

    def scored(i: int) -> naive.Scored:
        prompt, reply, advantage = rows[i].prompt, rows[i].reply, rows[i].advantage
        own = isinstance(reply, Reply)
        place = (prompt.ids + reply.ids, len(prompt.ids), config.rollout.temperature if own else 1.0)
        now, start = naive.log_probs(logits[i], *place), naive.log_probs(frozen[i], *place)
        return naive.Scored(
            channels=reply.channels,
            sampled=reply.sampled,
            now=now,
            old=[float(x.detach()) for x in now],
            behaviour=reply.logps if isinstance(reply, Reply) else (),
            start=[float(x) for x in start],
            entropy=naive.entropies(logits[i], *place) if config.algo.entropy.any else (),
            advantage={"T": advantage.text, "A": advantage.audio, "B": advantage.form, "E": advantage.form},
        )

    every = [scored(i) for i in range(len(rows))]
    first, last = len(batch.rollouts), len(replies)
    pairs = zip(every[first:last:2], every[first + 1 : last : 2], batch.pairs, strict=True)
    return Naive(
        model=model,
        rollouts=every[:first],
        pairs=[(chosen, rejected, pair.weight) for chosen, rejected, pair in pairs],
        anchors=every[last:],
    )


def naive_gradient(
    checkpoint: Path, config: Config, batch: StepBatch, *, perturbed: bool = False
) -> tuple[Tensors, dict[str, float]]:
    """docs/method.md §2 in the plainest possible way; the losses under the names of the metrics."""
    rows, algo = naive_rows(checkpoint, config, batch, perturbed=perturbed), config.algo
    actual = naive.losses(batch.weight, rows.rollouts, rows.anchors, rows.pairs, algo, config.rollout.max_new_tokens)
    actual["total"].backward()
    losses = {f"loss/{name}": float(actual[name].detach()) for name in ("total", "sft", "po", "dpo")}
    for name, letters in {"text": "TBE", "audio": "A"}.items():  # the estimate itself, by coefficient
        held = [
            (
                naive.weight_at(row, t, algo.kl),
                naive.divergence(row.now[t].detach(), row.start[t], algo.kl_estimator),
            )
            for row in rows.rollouts
            for t, letter in enumerate(row.channels)
            if letter in letters
        ]
        size = sum(weight for weight, _ in held)
        losses |= {f"loss/kl_{name}": sum(w * float(k) for w, k in held) / size} if size else {}
    gradient = {
        name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in rows.model.named_parameters()
    }
    return gradient, losses


def spell_key(key: ReplyKey) -> str:
    """A reply's key as JSON has it."""
    return f"{key[0]}/{key[1]}"


def _session(folder: Path, rank: int, world: int) -> None:
    """Everything that the two-rank tests look at, in one start of two processes.

    Results: folder/*.json, *.safetensors.
    """
    checkpoint = folder / "base"
    actual: dict[str, Any] = {}

    def keep(name: str, tensors: Tensors) -> None:
        if rank == 0:
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")

    learner = Learner(config(checkpoint), rank, world)
    perturb(learner.policy.parameters())
    actual["diagnosis"] = asdict(learner.diagnose(batch(checkpoint)))
    result = learner.step(batch(checkpoint))
    keep("gradient", moments(learner))
    actual["metrics"] = result.metrics
    actual["logps"] = {
        spell_key(key): [None if isnan(x) else x for x in values] for key, values in result.learner_logps.items()
    }
    learner.save(folder / "two_ranks")
    keep("weights_two_ranks", {name: t.clone() for name, t in full_tensors(learner.policy)})
    learner.step(batch(checkpoint, seed=1))
    keep("weights_straight", {name: t.clone() for name, t in full_tensors(learner.policy)})
    actual["published"] = None if (w := learner.weights()) is None else [w[0].version, w[0].digest]
    learner.export(folder / "exported_by_two")

    again = Learner(config(checkpoint), rank, world)
    again.load(folder / "two_ranks")
    again.step(batch(checkpoint, seed=1))
    keep("weights_resumed", {name: t.clone() for name, t in full_tensors(again.policy)})

    for name, (algo, change) in VARIANTS.items():
        item = Learner(config(checkpoint, algo=algo, rollout=HOT), rank, world)
        perturb(item.policy.parameters())
        item.step(change(batch(checkpoint)))
        keep(f"variant_{name}", moments(item))
    paying = Learner(config(checkpoint, algo=PENALISED, rollout=HOT), rank, world)
    perturb(paying.policy.parameters())
    actual["penalties"] = {spell_key(key): paid for key, paid in paying.penalties(batch(checkpoint).rollouts).items()}

    # one anchor only: the second rank has nothing, and must take part all the same
    lonely = Learner(config(checkpoint, algo={"mix": "fixed", "fixed_lambda": 0.0}), rank, world)
    item = batch(checkpoint, groups=1)
    alone = StepBatch(step=0, weight=0.0, rollouts=(), anchors=item.anchors)
    actual["lonely_diagnosis"] = asdict(lonely.diagnose(alone))
    actual["lonely"] = lonely.step(alone).metrics
    keep("lonely", moments(lonely))
    actual["nothing"] = lonely.step(StepBatch(step=1, weight=0.0, rollouts=(), anchors=())).metrics

    # the first rank has two micro-batches of long rows, the second fewer rows
    uneven = Learner(config(checkpoint, tokens_per_microbatch=96), rank, world)
    perturb(uneven.policy.parameters())
    uneven.step(batch(checkpoint))
    keep("uneven", moments(uneven))
    (folder / f"rank{rank}.json").write_text(json.dumps(actual))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, rank_, world_, port = Path(sys.argv[1]), *map(int, sys.argv[2:])
    join_process_group(rank=rank_, world=world_, address=f"127.0.0.1:{port}", timeout_s=HANG_S)
    _session(place, rank_, world_)
    leave_process_group()
