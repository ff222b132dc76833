"""What the learner tests share: configs, batches, and METHOD §2 written naively (padded, float64, loops).

Run as a program it is one rank of a two-rank session: `python -m tests.learner_world <folder> <rank> <world>
<port>`.
"""

import json
import sys
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from conf.schema import Config
from learner.model import whole
from learner.ranks import connect, disconnect
from learner.step import Learner
from learner.types import Advantage, Anchor, Rollout, StepBatch
from speech.families import load_family

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
            "data": {"train": "x", "validation": "x", "test": "x"},
            "rollout": {"max_new_tokens": 64, **(rollout or {})},
            "algo": algo or {},
            "learner": {
                "clip": 1e9,
                "warmup_steps": 0,
                "tokens_per_microbatch": 256,
                "logprob_chunk": 16,
                **learner,
            },
        }
    )


def batch(
    checkpoint: Path, *, groups: int = 3, size: int = 2, weight: float = 0.4, seed: int = 0
) -> StepBatch:
    """Random replies in the tiny family's grammar, of unequal lengths; one forced token each; no zero
    advantages.
    """
    family = load_family("tiny", checkpoint)
    rng = np.random.default_rng(seed)
    table = family.channels.table_V
    words, codes = np.flatnonzero(table == 0), np.flatnonzero(table == 1)

    def reply() -> tuple[int, ...]:
        chunks = range(rng.integers(1, 4))
        texts = [rng.choice(words, rng.integers(1, 4)).tolist() for _ in chunks]
        return tuple(
            family.interleave.merge(texts, [rng.choice(codes, rng.integers(1, 9)).tolist() for _ in chunks])
        )

    rollouts, anchors = [], []
    for g in range(groups):
        prompt = tuple(int(t) for t in rng.choice(words, rng.integers(3, 20)))
        for index in range(size):
            ids = reply()
            rollouts.append(
                Rollout(
                    prompt_id=f"p{g}",
                    index=index,
                    prompt_ids=prompt,
                    ids=ids,
                    logps=tuple(float(x) for x in rng.normal(-4.8, 0.5, len(ids))),
                    channels=family.channels.letters(ids),
                    sampled=tuple(j != 1 for j in range(len(ids))),
                    advantage=Advantage.shared(float(rng.normal())),
                )
            )
        target = reply()
        anchors.append(
            Anchor(prompt_id=f"p{g}", prompt_ids=prompt, ids=target, channels=family.channels.letters(target))
        )
    return StepBatch(step=0, weight=weight, rollouts=tuple(rollouts), anchors=tuple(anchors))


def perturb(parameters: Any) -> None:
    """Move weights away from the start policy, the same way however they are sharded."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.sin(parameter * 50.0), alpha=0.02)


def moments(learner: Learner) -> Tensors:
    """Adam's first moment by name, whole. Collective."""
    named = learner.policy.lm.named_parameters()
    return {name: whole(learner._optimizer.state[p]["exp_avg"]).clone() for name, p in named}


def relative_error(found: Tensors, expected: Tensors) -> float:
    """L2 norm of the difference over all tensors, relative to the expected norm."""
    assert set(found) == set(expected)
    off = sum(float((found[name].double() - expected[name].double()).square().sum()) for name in expected)
    size = sum(float(expected[name].double().square().sum()) for name in expected)
    return (off / size) ** 0.5


def naive_gradient(
    checkpoint: Path, config: Config, batch: StepBatch, *, perturbed: bool = False
) -> tuple[Tensors, dict[str, float]]:
    """METHOD §2 in the plainest possible way: one padded float64 batch, whole log_softmax, loops over
    positions.
    """
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float64, attn_implementation="sdpa"
        ).train()

    model, reference = load(), load()
    if perturbed:
        perturb(model.parameters())
    rows = [*batch.rollouts, *batch.anchors]
    longest = max(len(r.prompt_ids) + len(r.ids) for r in rows)
    ids, mask = (
        torch.zeros(len(rows), longest, dtype=torch.long),
        torch.zeros(len(rows), longest, dtype=torch.long),
    )
    for i, row in enumerate(rows):
        whole_row = row.prompt_ids + row.ids
        ids[i, : len(whole_row)] = torch.tensor(whole_row)
        mask[i, : len(whole_row)] = 1
    heat = config.rollout.temperature

    def logp(logits: Tensor, i: int, j: int, temperature: float) -> Tensor:
        at = len(rows[i].prompt_ids) + j
        return torch.log_softmax(logits[i, at - 1] / temperature, -1)[rows[i].ids[j]]

    logits = model(input_ids=ids, attention_mask=mask).logits
    with torch.no_grad():
        frozen = reference(input_ids=ids, attention_mask=mask).logits
    algo = config.algo
    joined = {c for c, weight in zip("TABE", algo.preference.model_dump().values(), strict=True) if weight}
    po, kls = torch.zeros((), dtype=torch.float64), {"text": [], "audio": []}
    token_count = sum(
        c in joined and s for r in batch.rollouts for c, s in zip(r.channels, r.sampled, strict=True)
    )
    for i, r in enumerate(batch.rollouts):
        terms = []
        for j, channel in enumerate(r.channels):
            if not r.sampled[j] or channel == "P":
                continue
            now, start = logp(logits, i, j, heat), logp(frozen, i, j, heat)
            kls["audio" if channel == "A" else "text"].append(torch.exp(start - now) - (start - now) - 1)
            if channel in joined:
                trust = min(float(torch.exp(now.detach() - r.logps[j])), algo.importance_cap)
                ratio = torch.exp(now - now.detach())
                bounded = ratio.clamp(1 - algo.clip_low, 1 + algo.clip_high)
                terms.append(trust * torch.minimum(ratio * r.advantage.text, bounded * r.advantage.text))
        divide = {
            "sequence_mean": len(terms) * len(batch.rollouts),
            "token_mean": token_count,
            "sum": len(batch.rollouts),
            "constant": len(batch.rollouts) * config.rollout.max_new_tokens,
        }[algo.aggregation]
        for term in terms:
            po = po - term / divide
    sft = [
        -logp(logits, len(batch.rollouts) + i, j, 1.0)
        for i, a in enumerate(batch.anchors)
        for j, channel in enumerate(a.channels)
        if channel != "P"
    ]
    means = {
        name: torch.stack(values).mean() if values else torch.zeros(())
        for name, values in {"sft": sft, **kls}.items()
    }
    total = (1 - batch.weight) * means["sft"] + batch.weight * (
        po + algo.kl.text * means["text"] + algo.kl.audio * means["audio"]
    )
    total.backward()
    losses = {
        "loss/total": total,
        "loss/sft": means["sft"],
        "loss/po": po,
        "loss/kl_text": means["text"],
        "loss/kl_audio": means["audio"],
    }
    gradient = {
        name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()
    }
    return gradient, {name: float(value.detach()) for name, value in losses.items()}


def _session(folder: Path, rank: int, world: int) -> None:
    """Everything that the two-rank tests look at, in one start of two processes.

    Results: folder/*.json, *.safetensors.
    """
    checkpoint = folder / "base"
    found: dict[str, Any] = {}

    def keep(name: str, tensors: Tensors) -> None:
        if rank == 0:
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors"
            )

    learner = Learner(config(checkpoint), rank, world)
    perturb(learner.policy.parameters())
    found["diagnosis"] = asdict(learner.diagnose(batch(checkpoint)))
    result = learner.step(batch(checkpoint))
    keep("gradient", moments(learner))
    found["metrics"] = result.metrics
    found["logps"] = {
        key: [None if isnan(x) else x for x in values] for key, values in result.learner_logps.items()
    }
    learner.save(folder / "two_ranks")
    keep("weights_two_ranks", {name: t.clone() for name, t in learner.policy.full_tensors()})
    learner.step(batch(checkpoint, seed=1))
    keep("weights_straight", {name: t.clone() for name, t in learner.policy.full_tensors()})
    found["published"] = None if (w := learner.weights()) is None else [w[0].version, w[0].digest]
    learner.export(folder / "exported_by_two")

    again = Learner(config(checkpoint), rank, world)
    again.load(folder / "two_ranks")
    again.step(batch(checkpoint, seed=1))
    keep("weights_resumed", {name: t.clone() for name, t in again.policy.full_tensors()})

    # one anchor only: the second rank has nothing, and must take part all the same
    lonely = Learner(config(checkpoint, algo={"mix": "fixed", "fixed_lambda": 0.0}), rank, world)
    one = batch(checkpoint, groups=1)
    alone = StepBatch(step=0, weight=0.0, rollouts=(), anchors=one.anchors)
    found["lonely_diagnosis"] = asdict(lonely.diagnose(alone))
    found["lonely"] = lonely.step(alone).metrics
    keep("lonely", moments(lonely))
    found["nothing"] = lonely.step(StepBatch(step=1, weight=0.0, rollouts=(), anchors=())).metrics

    # the first rank has two micro-batches of long rows, the second fewer rows
    uneven = Learner(config(checkpoint, tokens_per_microbatch=96), rank, world)
    perturb(uneven.policy.parameters())
    uneven.step(batch(checkpoint))
    keep("uneven", moments(uneven))
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, rank_, world_, port = Path(sys.argv[1]), *map(int, sys.argv[2:])
    connect(rank=rank_, world=world_, address=f"127.0.0.1:{port}", timeout_s=60)
    _session(place, rank_, world_)
    disconnect()
