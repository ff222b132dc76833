"""What ``bench.gpu`` measures: random models of Qwen2 shapes, and steps of rows as VITA-Audio speaks them."""

from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from bench.gpu_figure import Bench
from conf.algorithm import AlgoConfig, ChannelWeights
from conf.schema import Config
from learner.model import PACKED_ATTENTION, Policy, shard_policy
from learner.objectives import build_training_rows
from learner.rows import SamplingSetup, TrainingRow
from learner.step import Learner
from learner.types import Advantage, StepBatch, TrainingReply
from rollout.types import Prompt, Reply
from speech.dataset import Response

BASE = Path(__file__).parents[1] / "examples/tiny_world/base"  # whose family; the weights are random
LAMBDA = 0.5
NO_KL: dict[str, Any] = {"kl": ChannelWeights()}  # and therefore no reference model


class Shape(NamedTuple):
    """A Qwen2 language model, but for its vocabulary."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int


SHAPES = {
    "0.5B": Shape("0.5B", 896, 4864, 24, 14, 2),
    "1.5B": Shape("1.5B", 1536, 8960, 28, 12, 2),
    "7B": Shape("7B", 3584, 18944, 28, 28, 4),
}


def language_model(bench: Bench, shape: Shape, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights, made on the device; the head is a matrix of its own, as in VITA-Audio."""
    _, hidden, inner, layers, heads, kv_heads = shape
    config = Qwen2Config(
        vocab_size=bench.vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with bench.device:
        return AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION, dtype=dtype).train()


class RandomLearner(Learner):
    """The product's learner on one rank; only its weights come from a shape instead of a folder."""

    def __init__(self, bench: Bench, shape: Shape, *, checkpointing: bool) -> None:
        self._material = (bench, shape)
        learner = {"tokens_per_microbatch": bench.tokens, "activation_checkpointing": checkpointing}
        values = {
            "run": {"name": "bench"},
            "model": {"path": BASE, "dtype": "bfloat16", "max_length": bench.tokens},
            "data": dict.fromkeys(("train", "validation", "test"), "none"),
            "rollout": {"max_new_tokens": bench.tokens - 1},
            "algo": NO_KL,
            "learner": {"ranks": 1, **learner},
            "log": {"diagnose_every": 0},  # no start policy beside the one that is measured
        }
        super().__init__(Config.model_validate(values), 0, 1)

    def _load_policy(self, *, checkpointing: bool) -> Policy:
        lm = language_model(*self._material)
        if checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return shard_policy(Policy(lm, chunk=512), self._mesh, dtype="bfloat16")


def respond(rng: np.random.Generator, vocabulary: int, length: int) -> Response:
    """As VITA-Audio speaks: 4 words, 8 codes, until the text (15 %) is spent; then codes."""
    words = round(0.15 * length)
    spoken = "".join("T" * min(4, words - begin) + "B" + "A" * 8 + "B" for begin in range(0, words, 4))[:-1]
    letters = spoken + "A" * (length - len(spoken) - 2) + "BE"
    split = vocabulary * 9 // 10  # about where the codes begin
    low, high = rng.integers(0, split, length), rng.integers(split, vocabulary, length)
    ids = tuple(np.where(np.array(list(letters)) == "T", low, high).tolist())
    return Response(ids=ids, channels=letters, sampled=(True,) * length)


def as_sampled(prompt: Prompt, response: Response, *, logp: float) -> Reply:
    """The same as if an engine had sampled it, each id with the same log-prob."""
    length = len(response.ids)
    return Reply(
        prompt_id=prompt.id, index=0, ids=response.ids, logps=(logp,) * length, channels=response.channels,
        sampled=response.sampled, versions=(0,) * length, finish="stop", text="", well_formed=True,
    )  # fmt: skip


def speech_batch(bench: Bench, *, anchors: bool) -> StepBatch:
    """Seeded lognormal rows (median 800, 1/3 prompt) that fill ``tokens``; every fourth may be an anchor."""
    rng = np.random.default_rng(0)
    rollouts, supervised = [], []
    lengths = np.clip(rng.lognormal(log(800), 0.6, bench.tokens), 96, max(96, bench.tokens // 4)).astype(int)
    for i, length in enumerate(lengths[lengths.cumsum() <= bench.tokens].tolist()):
        prompt = Prompt(id=str(i), ids=tuple(rng.integers(0, bench.vocabulary, length // 3).tolist()))
        response = respond(rng, bench.vocabulary, length - len(prompt.ids))
        if anchors and i % 4 == 3:
            supervised.append(TrainingReply(prompt=prompt, reply=response))
        else:
            advantage = Advantage.shared(float(rng.normal()))
            reply = as_sampled(prompt, response, logp=-log(bench.vocabulary))
            rollouts.append(TrainingReply(prompt=prompt, reply=reply, advantage=advantage))
    return StepBatch(step=1, weight=LAMBDA, rollouts=tuple(rollouts), anchors=tuple(supervised))


def rows(bench: Bench, batch: StepBatch, algo: AlgoConfig) -> list[TrainingRow]:
    return build_training_rows(batch, algo, SamplingSetup(max_new_tokens=bench.tokens, temperature=1.0))
