"""What ``bench.gpu`` measures with: shapes, a learner over random weights, rows, a clock, a table line."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import log
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from conf.schema import AlgoConfig, Config
from learner.model import PACKED, Policy, sharded
from learner.objectives import Row, Sampled, rows_of
from learner.step import Learner
from learner.types import Anchor, Rollout, StepBatch

T = TypeVar("T")
VOCABULARY, WARM_UP, GIB, LAMBDA = 168_072, 2, 2**30, 0.5
NO_KL: dict[str, Any] = {"kl_text": 0.0, "kl_audio": 0.0}  # and therefore no reference model


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all measurements share. ``peak``: FLOP/s of the device, None when unknown."""

    device: torch.device
    tokens: int
    steps: int
    vocabulary: int = VOCABULARY
    peak: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. None: not measurable here, or it did not fit."""

    what: str
    setting: str
    seconds: float | None = None
    peak_gib: float | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """As a row of the Markdown table."""
        numbers = ["–" if n is None else f"{n:.4g}" for n in (self.seconds, self.peak_gib)]
        found = [f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.found.items()]
        return f"| {' | '.join([self.what, self.setting, *numbers, ', '.join(found)])} |"


def language_model(bench: Bench, shape: Shape, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights, made on the device; the head is a matrix of its own, as in VITA-Audio."""
    _, hidden, inner, layers, heads, kv_heads = shape
    config = Qwen2Config(
        vocab_size=bench.vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with bench.device:
        return AutoModelForCausalLM.from_config(config, attn_implementation=PACKED, dtype=dtype).train()


class RandomLearner(Learner):
    """The product's learner on one rank; only its weights come from a shape instead of a folder."""

    def __init__(self, bench: Bench, shape: Shape, *, checkpointing: bool, foreach: bool) -> None:
        self._material = (bench, shape)
        learner = {"tokens_per_microbatch": bench.tokens, "activation_checkpointing": checkpointing}
        values = {
            "run": {"name": "bench"},
            "model": {"path": "random", "dtype": "bfloat16", "max_length": bench.tokens},
            "data": dict.fromkeys(("train", "validation", "test"), "none"),
            "rollout": {"max_new_tokens": bench.tokens - 1},
            "algo": NO_KL,
            "learner": {"ranks": 1, **learner},
        }
        super().__init__(Config.model_validate(values), 0, 1)
        for group in self._optimizer.param_groups:
            group["foreach"] = foreach

    def _load(self, *, checkpointing: bool) -> Policy:
        lm = language_model(*self._material)
        if checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return sharded(Policy(lm, chunk=512), self._mesh, dtype="bfloat16")


def reply(rng: np.random.Generator, vocabulary: int, length: int) -> tuple[tuple[int, ...], str]:
    """(ids, channels) as VITA-Audio speaks: 4 words, 8 codes, until the text (15 %) is spent; then codes."""
    words = round(0.15 * length)
    spoken = "".join("T" * min(4, words - begin) + "B" + "A" * 8 + "B" for begin in range(0, words, 4))[:-1]
    letters = spoken + "A" * (length - len(spoken) - 2) + "BE"
    split = vocabulary * 9 // 10  # about where the codes begin
    low, high = rng.integers(0, split, length), rng.integers(split, vocabulary, length)
    return tuple(np.where(np.array(list(letters)) == "T", low, high).tolist()), letters


def speech_batch(bench: Bench, *, anchors: bool) -> StepBatch:
    """Seeded lognormal rows (median 800, 1/3 prompt) that fill ``tokens``; every fourth may be an anchor."""
    rng = np.random.default_rng(0)
    rollouts: list[Rollout] = []
    supervised: list[Anchor] = []
    lengths = np.clip(rng.lognormal(log(800), 0.6, bench.tokens), 96, max(96, bench.tokens // 4)).astype(int)
    for i, length in enumerate(lengths[lengths.cumsum() <= bench.tokens].tolist()):
        prompt = tuple(rng.integers(0, bench.vocabulary, length // 3).tolist())
        ids, letters = reply(rng, bench.vocabulary, length - len(prompt))
        row: dict[str, Any] = {"prompt_id": str(i), "prompt_ids": prompt, "ids": ids, "channels": letters}
        if anchors and i % 4 == 3:
            supervised.append(Anchor(**row))
        else:
            row |= {"index": 0, "logps": (-log(bench.vocabulary),) * len(ids), "sampled": (True,) * len(ids)}
            rollouts.append(Rollout(**row, advantage=float(rng.normal())))
    return StepBatch(step=1, weight=LAMBDA, rollouts=tuple(rollouts), anchors=tuple(supervised))


def rows(bench: Bench, batch: StepBatch, algo: AlgoConfig) -> list[Row]:
    return rows_of(batch, algo, Sampled(max_new_tokens=bench.tokens, temperature=1.0))


def timed(bench: Bench, run: Callable[[], T]) -> tuple[float, float | None, T]:
    """(median seconds, peak GiB allocated, last result) of ``steps`` runs after WARM_UP."""
    for _ in range(WARM_UP):
        run()
    if bench.device.type == "cpu":
        marks = [time.perf_counter()]
        for _ in range(bench.steps):
            last = run()
            marks.append(time.perf_counter())
        return statistics.median(np.diff(marks).tolist()), None, last
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(bench.steps + 1)]
    events[0].record()
    for event in events[1:]:
        last = run()
        event.record()
    torch.cuda.synchronize()
    spans = [a.elapsed_time(b) / 1000 for a, b in pairwise(events)]
    return statistics.median(spans), torch.cuda.max_memory_allocated() / GIB, last
