"""What share of a step a two-stream family spends in the torch engine: sample, learn, send weights.

    python -m bench.kimi_share [--shape small] [--prompts 8] [--group 4] [--ids 400]

Random weights in Kimi-Audio's layout, every reply as long as its budget, a real one-rank learner on all of
its ids, no judge. Without CUDA the figures are seconds of this process's own CPU time, so other load on the
machine does not show; with CUDA, seconds.
"""

import argparse
import asyncio
import base64
import json
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from conf.schema import Config, ModelConfig
from learner import ranks
from learner.step import Learner
from learner.types import Advantage, StepBatch, TrainingReply
from rollout.engine import RawReply
from rollout.torch_engine import TorchEngine
from rollout.types import Prompt, Sampling
from rollout.worker import read_reply
from speech.families import load_family
from speech.families.base import Family
from speech.turns import Turn

OFFSET = 256 + 421
SHAPES: dict[str, dict[str, int]] = {  # -> what config.json says; 7B is the published one, for several GPUs
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "codes": 2048},
    "1B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "codes": 16384},
}
PROMPT = 64  # words


def write(folder: Path, shape: dict[str, int], length: int) -> Path:
    """A checkpoint of random weights."""
    from speech.models.kimi_audio import KimiAudio, KimiAudioConfig

    sizes = {name: value for name, value in shape.items() if name != "codes"}
    config: dict[str, Any] = {
        "architectures": ["MoonshotKimiaForCausalLM"],
        "vocab_size": OFFSET + shape["codes"],
        "num_attention_heads": shape["hidden_size"] // 64,
        "num_key_value_heads": 2,
        "max_position_embeddings": length,
        "rope_theta": 1e6,
        "kimia_token_offset": OFFSET,
        "kimia_mimo_layers": shape["num_hidden_layers"] // 4,
        "kimia_mimo_transformer_from_layer_index": 3 * shape["num_hidden_layers"] // 4,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    ranks_of = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (folder / "tiktoken.model").write_text("\n".join(ranks_of))
    torch.manual_seed(0)
    tensors = KimiAudio(KimiAudioConfig(**config)).state_dict()
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def settings(model: ModelConfig, ids: int) -> Config:
    """A run of that model."""
    return Config.model_validate(
        {
            "run": {"name": "share"},
            "model": model,
            "data": {"train": "x", "validation": "x", "test": "x"},
            "rollout": {"engine": "torch", "grammar": True, "max_new_tokens": ids},
            "algo": {"mix": "fixed", "preference": {"text": 1, "audio": 1, "boundary": 1, "stop": 1}},
            "learner": {"ranks": 1, "tokens_per_microbatch": 4096},
        }
    )


def sampled(engine: TorchEngine, prompts: list[Prompt], sampling: Sampling) -> list[RawReply]:
    """All replies."""

    async def replies() -> list[RawReply]:
        return [raw async for raw in engine.generate(prompts, sampling)]

    return asyncio.run(replies())


def batch_of(family: Family, prompts: list[Prompt], replies: list[RawReply]) -> StepBatch:
    """Every reply with an advantage."""
    asked = {prompt.id: prompt for prompt in prompts}
    rollouts = tuple(
        TrainingReply(
            prompt=asked[raw.prompt_id],
            reply=read_reply(family, raw, grammar=True)[0],
            advantage=Advantage.shared(1.0 if raw.index % 2 else -1.0),
        )
        for raw in replies
    )
    return StepBatch(step=1, weight=1.0, rollouts=rollouts, anchors=())


def clocked(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and how long it took."""
    gpu = torch.cuda.is_available()
    now = time.perf_counter if gpu else time.process_time
    began = now()
    result = work()
    if gpu:
        torch.cuda.synchronize()
    return result, now() - began


def measure(shape: str, prompts: int, group: int, ids: int, folder: Path) -> None:
    """Two steps; the second is told."""
    length = 2 * (PROMPT + 3) + ids
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    model = ModelConfig.model_validate(
        {
            "family": "kimi_audio",
            "path": write(folder, SHAPES[shape], length),
            "dtype": dtype,
            "max_length": length,
        }
    )
    config, family = settings(model, ids), load_family(model)
    words = [Turn.from_parts("user", chr(97 + i) * PROMPT) for i in range(prompts)]
    asked = [Prompt(id=f"p{i}", ids=family.encode_prompt([turn]).ids) for i, turn in enumerate(words)]
    engine = TorchEngine(family, max_length=length, max_num_seqs=prompts * group, dtype=model.dtype)
    learner = Learner(config, rank=0, world=1)
    for step in (1, 2):
        how = Sampling(group_size=group, temperature=1.0, max_new_tokens=ids, seed=step, grammar=True)
        replies, generate = clocked(partial(sampled, engine, asked, how))
        batch = batch_of(family, asked, replies)
        _, learn = clocked(partial(learner.step, batch))
        _, sync = clocked(lambda: asyncio.run(engine.update_weights(*learner.weights())))  # type: ignore[misc]
    total, tokens = generate + learn + sync, sum(len(raw.ids) for raw in replies)
    for name, seconds in (("generate", generate), ("learn", learn), ("send weights", sync)):
        print(f"{name:14}{seconds:8.2f} s {seconds / total:6.0%}")
    print(f"{tokens} ids of {len(replies)} replies, {tokens / generate:.0f} ids/s sampled")


def main() -> int:
    """One shape."""
    parser = argparse.ArgumentParser(prog="python -m bench.kimi_share", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    for name, default in (("prompts", 8), ("group", 4), ("ids", 400)):
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks.join_process_group(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=60)
    try:
        with TemporaryDirectory() as folder:
            measure(wanted.shape, wanted.prompts, wanted.group, wanted.ids, Path(folder))
    finally:
        ranks.leave_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
