"""The whole method on one page, in one process and without Ray: the page to copy for an experiment.

    python -m examples.loop [STEPS] [key=value ...]       # the same settings as wavgate train

Each step: sample a group of spoken replies per prompt, judge what a listener hears, let the gate weigh preference
against anchoring, learn, hand the new weights to the engine. `wavgate train` adds machines, checkpoints and a report.
"""

import asyncio
import sys
import time
from pathlib import Path
from statistics import fmean

import torch

from actors.collect import row_to_judge_task
from conf.load import load_config
from conf.schema import Config
from judge.panel import Panel, build_panel
from learner import ranks
from learner.decide import ReplyGroup, StepDecision, decide_step
from learner.gate import build_lambda_source
from learner.step import Learner
from learner.types import Anchor
from rollout.request import example_to_prompt
from rollout.sampling import build_step_sampling
from rollout.types import Prompt, Sampling
from rollout.worker import RolloutWorker, build_engine
from speech.data.manifest import ManifestRow, RowCursor, read_manifest
from speech.dataset import Example
from speech.families import load_family
from speech.families.base import Family

SMALL = ["rollout.engine=torch", "rollout.prompts_per_step=4", "learner.anchors_per_step=4", "learner.ranks=1"]


async def judge_groups(
    worker: RolloutWorker,
    panel: Panel,
    rows: list[ManifestRow],
    prompts: list[Prompt],
    sampling: Sampling,
    manifest: Path,
) -> list[ReplyGroup]:
    """Sample ``sampling.group_size`` replies to each prompt and judge each as soon as it has been decoded to sound."""
    tasks = {row.id: row_to_judge_task(row, manifest) for row in rows}
    judged = {}
    async for reply, speech in worker.generate(prompts, sampling):
        judged[reply.prompt_id, reply.index] = (reply, panel.score(reply, speech, tasks[reply.prompt_id]))
    return [
        ReplyGroup(prompt=prompt, replies=tuple(judged[prompt.id, index] for index in range(sampling.group_size)))
        for prompt in prompts
    ]


def make_anchor(example: Example, family: Family) -> Anchor:
    """A row's reference reply, which anchors every channel."""
    return Anchor(
        prompt_id=example.row_id,
        prompt_ids=example.prompt.ids,
        ids=example.target,
        channels=family.channels.to_letters(example.target),
        features=example.prompt.features,
    )


def print_step(decision: StepDecision, metrics: dict[str, float], groups: list[ReplyGroup], seconds: float) -> None:
    """One line: the mean reward, lambda, how many groups were dropped, the losses."""
    rewards = [reward for group in groups for reward in group.rewards if reward is not None]
    shown = {name: metrics[name] for name in ("loss/sft", "loss/po", "grad_norm") if name in metrics}
    print(
        f"step {decision.batch.step}  reward {fmean(rewards) if rewards else float('nan'):.2f}"
        f"  lambda {decision.reading.weight:.3f}  dropped {decision.metrics['groups/dropped']:.0f} of {len(groups)}  "
        + "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        + f"  {seconds:.1f} s",
        flush=True,
    )


async def train(config: Config, steps: int) -> None:
    """Take ``steps`` steps and print a line for each."""
    family, manifest = load_family(config.model), config.data.train.absolute()
    data = read_manifest(manifest, config.data.max_seconds)
    cursor = RowCursor(len(data), seed=config.run.seed)
    worker = RolloutWorker(build_engine(config, family), family, config.data.max_seconds)
    panel = build_panel(config.judge, Path.cwd(), config.model.path)
    gate = build_lambda_source(config.algo, panel.scale)
    learner = Learner(config, rank=0, world=1)
    for step in range(1, steps + 1):
        began = time.monotonic()
        rows = [data[index] for index in cursor.draw_indices(config.rollout.prompts_per_step)]
        examples = worker.encode(manifest, rows)
        prompts = [example_to_prompt(example) for example in examples]
        sampling = build_step_sampling(config.rollout, config.run.seed, step)
        groups = await judge_groups(worker, panel, rows, prompts, sampling, manifest)
        anchors = [make_anchor(example, family) for example in examples]
        decision = decide_step(step, groups, anchors, gate, config)
        result = learner.step(decision.batch)
        published = learner.weights()
        assert published is not None, "rank 0 publishes"
        await worker.update_weights(*published)
        print_step(decision, dict(result.metrics), groups, time.monotonic() - began)
    worker.close()


def main(arguments: list[str]) -> int:
    """Read the settings, connect a learner of one rank, train."""
    steps = int(arguments.pop(0)) if arguments and arguments[0].isdigit() else 3
    torch.set_num_threads(1)
    ranks.join_process_group(rank=0, world=1, address="127.0.0.1:29511", timeout_s=60)
    try:
        asyncio.run(train(load_config(SMALL + arguments), steps))
    finally:
        ranks.leave_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
