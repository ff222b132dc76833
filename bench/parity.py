"""Engine log-probs against the learner's replay, before and after a weight update.

    python -m bench.parity

Real vLLM and a real one-rank FSDP learner on the embedded model, float32. Prints the largest and the mean
|difference| by channel over at least 2,000 sampled tokens each time. Required: at most 2e-4.
"""

import asyncio
import socket
import sys
from pathlib import Path

from conf.load import load_config
from conf.schema import Config
from learner import parity, ranks
from learner.step import Learner
from learner.types import StepBatch, TrainingReply, example_to_anchor
from rollout.request import example_to_prompt
from rollout.types import Sampling
from rollout.worker import RolloutWorker, build_rollout_worker
from speech.data.manifest import read_manifest
from speech.dataset import Example

ROWS = 24
GROUP = 4


async def sample(worker: RolloutWorker, examples: list[Example], config: Config, seed: int) -> list[TrainingReply]:
    """Sampled replies without a preference."""
    prompts = {e.row_id: example_to_prompt(e) for e in examples}
    sampling = Sampling(
        group_size=GROUP,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        seed=seed,
    )
    return [
        TrainingReply(prompt=prompts[reply.prompt_id], reply=reply)
        async for reply, _ in worker.generate(list(prompts.values()), sampling)
    ]


def show(when: str, result: parity.ParityReport) -> None:
    """One line per channel."""
    for letter, d in result.channels.items():
        print(f"{when:<22}{letter}  tokens {d.count:>6}  largest {d.largest:.1e}  mean {d.mean:.1e}")
    print(f"{when:<22}bound {result.bound:.0e}: {'held' if result.passed else 'BROKEN'}", flush=True)


def learn_something(learner: Learner, examples: list[Example]) -> None:
    """A few supervised steps, so that the weights move."""
    anchors = tuple(map(example_to_anchor, examples))
    for step in range(1, 4):
        learner.step(StepBatch(step=step, weight=0.0, rollouts=(), anchors=anchors))


async def measure() -> bool:
    """Sample, replay, learn, sync, sample, replay."""
    config = load_config(["learner.ranks=1"])
    manifest = Path(config.data.validation)
    rows = read_manifest(manifest, config.data.max_seconds)[:ROWS]
    worker = build_rollout_worker(config, Path.cwd())
    examples = worker.encode(manifest, rows)
    learner = Learner(config, rank=0, world=1)
    held = []
    for when, seed in (("start policy", 0), ("after a weight update", 1)):
        rollouts = await sample(worker, examples, config, seed)
        held.append(parity.compare_logprobs(rollouts, learner.score(rollouts)))
        show(when, held[-1])
        learn_something(learner, examples)
        published = learner.weights()
        assert published is not None
        version = await worker.update_weights(*published)
        assert version == learner.version, f"engine has version {version}, learner {learner.version}"
    worker.close()
    return all(result.passed for result in held)


def main() -> int:
    """0 when the bound held both times."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks.join_process_group(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=60)
    try:
        return 0 if asyncio.run(measure()) else 1
    finally:
        ranks.leave_process_group()


if __name__ == "__main__":
    sys.exit(main())
