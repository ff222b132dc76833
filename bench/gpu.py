"""What one GPU does with the learner: speed, log-prob memory, tail trimming, weight transfer, bf16 error.

    python -m bench.gpu [--shapes 0.5B 1.5B 7B] [--tokens 16384] [--steps 3] [--peak TFLOPS] [--json OUT]

Random weights of Qwen2 shapes, built on the GPU, with VITA-Audio's 168,072 rows of vocabulary: no files, no
vLLM, no Ray. Every figure is the median of ``--steps`` runs after warm-up. Without CUDA nothing is
measured (the tests run each function on CPU at a micro shape, to see that it works).

    MFU = 3 * (2 * layer weights * T + 2 * V * H * N + layers * sum of 2 * length^2 * H) / seconds / peak

T tokens, N scored positions, H width, 3 for forward and backward. Recomputed work (checkpointing, the second
pass of the chunked head) does not count, and of attention only the causal half does.
"""

import argparse
import gc
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.gpu_figure import GIB, Bench, Figure, Figures, timed
from bench.gpu_speech import (
    LAMBDA,
    NO_KL,
    SHAPES,
    RandomLearner,
    Shape,
    language_model,
    rows,
    speech_batch,
)
from bench.gpu_transfer import weight_transfer
from conf.algorithm import AlgoConfig, ChannelWeights
from learner import ranks
from learner.batch import Microbatch, count_needed_ids, pack_microbatch
from learner.logprob import chosen_logprobs
from learner.loss import compute_loss_terms
from learner.model import Policy, reshard_policy, shard_policy
from learner.rows import TrainingRow

# Dense bf16 TFLOP/s from the makers' data sheets; the first name that is part of the device's counts.
PEAKS = {"H100 PCIe": 756, "NVL": 835, "H100": 989, "H200": 989, "H800": 989, "B200": 2250, "A100": 312}


def learner_step(bench: Bench, shape: Shape, *, checkpointing: bool) -> Figures:
    """``Learner.step`` on preference rows and anchors: pack, forward, loss, backward, clip, AdamW."""
    batch = speech_batch(bench, anchors=True)
    learner = RandomLearner(bench, shape, checkpointing=checkpointing)
    seconds, peak, _ = timed(bench, lambda: learner.step(batch))
    used = rows(bench, batch, AlgoConfig(**NO_KL))
    lengths = [count_needed_ids(row, streams=1) for row in used]
    scored = sum(int(row.needed_R.sum()) for row in used)
    keys = shape.hidden // shape.heads * shape.kv_heads
    weights = shape.layers * shape.hidden * (2 * shape.hidden + 2 * keys + 3 * shape.inner)
    attention = shape.layers * sum(2 * length**2 for length in lengths) * shape.hidden
    head = 2 * bench.vocabulary * shape.hidden * scored
    rate = 3 * (2 * weights * sum(lengths) + head + attention) / seconds
    found = {
        "parameters": sum(p.numel() for p in learner.policy.parameters()),
        "tokens": sum(lengths),
        "scored": scored,
        "tokens/s": sum(lengths) / seconds,
        "TFLOP/s": rate / 1e12,
        "MFU": "unknown (give --peak)" if bench.peak is None else rate / bench.peak,
    }
    setting = f"{shape.name}{', checkpointing' * checkpointing}"
    yield Figure("learner step, bf16", setting, seconds, peak, found)


def log_probs(bench: Bench, hidden_size: int, positions: int, chunks: Sequence[int] = (512, 2048)) -> Figures:
    """Log-probs of bf16 hidden states, forward and backward: all logits at once, then chunk by chunk."""
    torch.manual_seed(0)
    with bench.device:
        hidden = torch.randn(positions, hidden_size, dtype=torch.bfloat16).requires_grad_()
        weight = (torch.randn(bench.vocabulary, hidden_size, dtype=torch.bfloat16) * 0.02).requires_grad_()
        targets = torch.randint(bench.vocabulary, (positions,))

    def run(chunk: int) -> Tensor:
        hidden.grad = weight.grad = None
        if chunk:
            logps, _ = chosen_logprobs(hidden, weight, targets, chunk=chunk)
        else:
            logps = (hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        torch.autograd.backward(logps.mean())
        return logps.detach()

    inputs = torch.cuda.memory_allocated() / GIB
    expected = run(0)
    for chunk in (0, *chunks):
        seconds, peak, logps = timed(bench, partial(run, chunk))
        how = f"chunks of {chunk}" if chunk else "log_softmax"
        setting = f"{positions} positions, H {hidden_size}, {how}"
        found = {"positions/s": positions / seconds, "largest |d|": float((logps - expected).abs().max())}
        if peak is not None:
            found["GiB above inputs"] = peak - inputs
        yield Figure(f"log-probs, V {bench.vocabulary}", setting, seconds, peak, found)


def untrimmed(used: Sequence[TrainingRow], micro: Microbatch) -> Microbatch:
    """The same scored positions, but every row forwarded to its end."""
    lengths = tuple(len(row.ids) - 1 for row in used)
    begins = np.cumsum([0, *lengths])
    keep = [begin + r.start + np.flatnonzero(r.needed_R) - 1 for begin, r in zip(begins, used, strict=False)]
    return replace(
        micro,
        lengths=lengths,
        ids_TS=torch.tensor([[token] for row in used for token in row.ids[:-1]]),
        positions_T=torch.cat([torch.arange(length) for length in lengths]),
        keep_N=torch.from_numpy(np.concatenate(keep)),
    )


def tail_trimming(bench: Bench, shape: Shape) -> Figures:
    """Text-only preference rows, without STOP and without a KL: either would score every row's end."""
    algo = AlgoConfig(preference=ChannelWeights(text=1.0), **NO_KL)
    used = rows(bench, speech_batch(bench, anchors=False), algo)
    policy = shard_policy(
        Policy(language_model(bench, shape), chunk=512), ranks.build_device_mesh(1), dtype="bfloat16"
    )

    def run(micro: Microbatch) -> dict[str, float]:
        logps, entropies, _ = policy(micro)
        before, reference = logps.detach(), torch.zeros_like(logps)
        terms = compute_loss_terms(logps, entropies, before, reference, micro, weight=LAMBDA, algo=algo)
        torch.autograd.backward(terms.total)
        norm: Any = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        policy.zero_grad()
        return {"loss": float(terms.total.detach()), "gradient norm": float(norm.full_tensor())}

    trimmed = pack_microbatch(used, streams=1)
    for name, micro in {"whole rows": untrimmed(used, trimmed), "trimmed": trimmed}.items():
        seconds, peak, equal = timed(bench, partial(run, micro.to(bench.device)))
        found = {"tokens": len(micro.ids_TS), "scored": len(micro.keep_N), **equal}
        yield Figure("text preference, bf16", f"{shape.name}, {name}", seconds, peak, found)


def drawn(policy: Policy, micro: Microbatch, temperature: float) -> Microbatch:
    """The same micro-batch with targets drawn from an unsharded policy at this temperature."""
    ids, positions = micro.ids_TS[None, :, 0], micro.positions_T[None]
    states = policy.lm.base_model(ids, position_ids=positions, use_cache=False, segment_lengths=micro.lengths)
    head = policy.lm.get_output_embeddings().weight
    kept = states.last_hidden_state[0][micro.keep_N].split(512)
    parts = [torch.multinomial((part @ head.T / temperature).softmax(-1), 1)[:, 0] for part in kept]
    heat = torch.full_like(micro.temperature_N, temperature)
    return replace(micro, targets_N=torch.cat(parts), temperature_N=heat)


@torch.no_grad()
def parity(bench: Bench, shape: Shape) -> Figures:
    """A bf16 policy against float32 of the same weights, on tokens drawn from the float32 one.

    Random weights are nearly uniform at temperature 1; at 0.2 their logits are as wide as a trained model's.
    """
    policy = Policy(language_model(bench, shape), chunk=512)
    made = rows(bench, speech_batch(bench, anchors=True), AlgoConfig(**NO_KL))
    micro = pack_microbatch(made, streams=1).to(bench.device)
    asked = {temperature: drawn(policy, micro, temperature) for temperature in (1.0, 0.2)}
    wide = {temperature: policy(each) for temperature, each in asked.items()}
    narrow = shard_policy(policy, ranks.build_device_mesh(1), dtype="bfloat16")
    for temperature, (logps, entropies, _) in wide.items():
        gap = (narrow(asked[temperature])[0] - logps).double()
        found: dict[str, Any] = {"positions": len(gap), "entropy": float(entropies.mean())}
        found |= {"mean |d|": float(gap.abs().mean()), "largest |d|": float(gap.abs().max())}
        found["k3"] = float((torch.expm1(gap) - gap).mean())
        yield Figure("bf16 against float32", f"{shape.name}, temperature {temperature}", found=found)
    reshard_policy(narrow)


def plan(bench: Bench, names: Sequence[str]) -> Iterator[tuple[str, Figures]]:
    """(name, figures not yet measured) in the order of the table."""
    for name in names:
        yield f"learner step {name}", learner_step(bench, SHAPES[name], checkpointing=name == "7B")
    first, last = SHAPES[names[0]], SHAPES[names[-1]]
    yield "log-probs", log_probs(bench, last.hidden, bench.tokens // 4)
    yield "tail trimming", tail_trimming(bench, first)
    yield "parity", parity(bench, first)
    for name in names:
        if name != "7B":
            yield f"weight transfer {name}", weight_transfer(bench, SHAPES[name])


def guarded(name: str, figures: Figures) -> Figures:
    """What does not fit, or fails, is a line of the table too, so that the rest is still measured."""
    try:
        yield from figures
    except (RuntimeError, EOFError) as error:
        kind = "OOM" if isinstance(error, torch.OutOfMemoryError) else "FAILED"
        peak = torch.cuda.max_memory_allocated() / GIB
        yield Figure(name, kind, None, peak, {"": " ".join(str(error).split()[:60])})
    gc.collect()  # FSDP modules are cycles
    torch.cuda.empty_cache()


def main() -> int:
    """0 when everything was measured or did not fit; 1 when something failed."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", type=int, default=16384, help="of one packed step")
    parser.add_argument("--steps", type=int, default=3, help="timed runs of each measurement")
    parser.add_argument("--peak", type=float, help="dense bf16 TFLOP/s of the device")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA device: nothing measured")
        return 0
    device = torch.cuda.get_device_name()
    peak = given.peak or next((peak for name, peak in PEAKS.items() if name in device), None)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    known = subprocess.run(query, capture_output=True, text=True).stdout if shutil.which(query[0]) else ""
    driver = " ".join(known.split()) or "unknown"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    ranks.join_process_group(rank=0, world=1, address=address, timeout_s=600)
    bench = Bench(device=ranks.get_rank_device(), tokens=given.tokens, steps=given.steps, peak=peak and peak * 1e12)
    print(f"{device}, torch {torch.__version__}, driver {driver}", flush=True)
    results: list[Figure] = []
    for name, figures in plan(bench, given.shapes):
        torch.cuda.reset_peak_memory_stats()
        for figure in guarded(name, figures):
            print(figure.line(), flush=True)
            results.append(figure)
    ranks.leave_process_group()
    machine = {"device": device, "torch": torch.__version__, "driver": driver, "peak": bench.peak}
    print("\n| what | setting | s | peak GiB | found |", "|---|---|---|---|---|", sep="\n")
    print(*(figure.line() for figure in results), sep="\n")
    if given.json:
        given.json.write_text(json.dumps({**machine, "figures": [asdict(f) for f in results]}, indent=1) + "\n")
    return 1 if any(figure.setting == "FAILED" for figure in results) else 0


if __name__ == "__main__":
    sys.exit(main())
