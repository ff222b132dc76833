"""``wavgate train --dry-run``: what a job would take and do, as lines. Nothing is started."""

from actors.checks.memory import estimate_memory, read_physical_memory
from actors.checks.prepare import Job
from actors.checks.references import describe_user_references
from actors.cluster import count_usable_cores
from judge.llm.build import calls_per_group


def describe_job(job: Job) -> list[str]:
    """Placement, memory and judge calls, as lines."""
    config = job.config
    placement = (
        "this machine"
        if not job.layout.bundles
        else ("one placement group, colocated" if job.layout.colocated else "one placement group, apart")
    )
    lines = [f"placement: {placement}, {count_usable_cores()} cores here"]
    lines += [
        f"  {role.name:<8} x {role.count}  CPUs {role.cpus:g}  GPUs {role.gpus:g} each" for role in job.layout.roles
    ]
    lines += [f"  bundle {i}: {bundle}" for i, bundle in enumerate(job.layout.bundles)]
    estimate = estimate_memory(config, job.family)
    total, have = sum(estimate.values()), read_physical_memory()
    lines.append(
        f"memory: about {total / 2**30:.1f} GiB of {have / 2**30:.1f} GiB here ("
        + ", ".join(f"{k} {v / 2**30:.1f}" for k, v in estimate.items())
        + ")"
    )
    steps = sum(config.algo.samples_at(step) for step in range(1, config.run.steps + 1))
    replies = steps * config.rollout.prompts_per_step * config.rollout.group_size
    during = (config.run.steps - 1) // config.run.eval_every if config.run.eval_every else 0
    held_out = 2 * (len(job.test) + len(job.validation)) + during * len(job.validation)
    lines.append(
        f"judge calls: {replies} replies in {steps} sampled steps + {held_out} held out = {replies + held_out}"
    )
    if config.judge.api_axes:
        api, size = config.judge.api, config.rollout.group_size
        lines.append(
            f"API judge: {api.model} at {api.base_url} for {' and '.join(config.judge.api_axes)}: "
            f"{calls_per_group(config.judge, size)} calls for a group of {size} replies, "
            f"{calls_per_group(config.judge, 1)} for a reply held out"
        )
    lines.append(f"data: {len(job.train)} training, {len(job.validation)} validation, {len(job.test)} test prompts")
    lines += describe_user_references(config.judge.asr, config.data.train, job.train, config.data.max_seconds)
    return lines + [f"note: {note}" for note in job.notes]
