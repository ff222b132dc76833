"""What judge failures and a judge outage do to a training run: real runs against examples.judge_server.

    python -m bench.judge_trouble --failures [--steps 200] [--share 0.1]     two runs, about ten minutes each
    python -m bench.judge_trouble --outage [--steps 12] [--seconds 60]       one run, about three minutes

Without either flag both, one after the other. On two quiet cores; what is printed is read from the run
directories, which stay in runs/bench.

``--failures``: the same run, once with a judge that always answers and once with one of whose answers a share
holds no score. Required: mean lambda within 6 % of each other. From step 1 on the two learn different
policies; "same replies" takes the rewards of the first run and hides that share of them, which leaves the
effect of the failures on the gate alone.
``--outage``: after step 3 the judge answers 503 to everything for a minute. Required: the run goes on by
itself and metrics.jsonl has every step once.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, pstdev
from typing import Any

from conf.load import read_config
from examples.judge_server.service import MODEL
from examples.judge_server.started import started
from judge.types import Scale
from learner.gate import build_lambda_source
from learner.statistics import compute_group_statistics
from report.read import read_metric_rows, read_rollouts
from report.records import RolloutRecord, ScoreRecord

ROOT = Path("runs/bench")
WITHIN = 0.06
MASKS = 20  # draws of which replies would have failed
START_S, END_S = 180.0, 300.0  # longest wait for a first step, and for the last evaluation
STEP_S = 30.0  # longest that a step takes on average, quiet or not
DOWN_AFTER = 3  # steps
SETTINGS = [
    "judge=openai",
    "judge.semantic_by=api",
    "judge.acoustic_by=local",
    f"judge.api.model={MODEL}",
    "rollout.prompts_per_step=8",
    "rollout.group_size=4",
    "learner.anchors_per_step=8",
    "learner.ranks=1",
    "run.eval_every=0",
    "run.checkpoint_every=0",
    "log.audio_every=1000",
    "data.test=examples/tiny_world/data/validation.jsonl",
    "data.eval_prompts=4",
]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run's directory."""

    path: Path

    def metrics(self, name: str) -> list[float]:
        """One metric, by step."""
        return [
            value for row in read_metric_rows(self.path / "metrics.jsonl").rows if (value := row.get(name)) is not None
        ]

    def records(self, step: int) -> tuple[RolloutRecord, ...]:
        """The judged replies of a step."""
        return read_rollouts(self.path / "rollouts" / f"step_{step:06d}.jsonl").rows

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of one of its jsonl files; none: the file is not there."""
        file = self.path / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def train(
    name: str, url: str, steps: int, overrides: list[str], watch: Callable[[Path], None] = lambda run: None
) -> Run:
    """One ``wavgate train``; ``watch`` is called all the time. RuntimeError: it failed or took too long."""
    run = ROOT / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    ROOT.mkdir(parents=True, exist_ok=True)
    given = [*SETTINGS, f"judge.api.base_url={url}", f"run.root={ROOT}", f"run.name={run.name}"]
    command = [sys.executable, "-m", "commands.cli", "train", *given, f"run.steps={steps}", *overrides]
    end = time.monotonic() + START_S + steps * STEP_S + END_S
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            if time.monotonic() > end:
                raise RuntimeError(f"{run} took too long")
            watch(run)
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Run(run)


def lambdas(run: Run, hidden: Callable[[RolloutRecord], bool]) -> list[float]:
    """The run's lambda at each step, had these rewards not come."""
    config = read_config(run.path / "config.yaml")
    gate = build_lambda_source(config.algo, Scale(config.judge.scale_lo, config.judge.scale_hi))
    weights = []
    for step in range(1, config.run.steps + 1):
        groups: dict[int, list[float | None]] = {}
        for record in run.records(step):
            groups.setdefault(record.group, []).append(None if hidden(record) else record.reward)
        statistics = [compute_group_statistics(rewards, len(rewards)) for rewards in groups.values()]
        weights.append(gate.update([group for group in statistics if group is not None]).weight)
    return weights


def asked(record: RolloutRecord) -> bool:
    """Whether its reward needed the server: the floor of an unjudgeable reply does not."""
    score = record.scores.get("semantic")
    return not isinstance(score, ScoreRecord) or score.judge.startswith("openai")


def same_replies(run: Run, share: float) -> list[float]:
    """Mean lambda with that share of the calls failed, for several draws."""
    means = []
    for mask in range(MASKS):

        def hidden(record: RolloutRecord, mask: int = mask) -> bool:
            draw = Random(f"{mask} {record.step} {record.prompt_id} {record.index}").random()
            return asked(record) and draw < share

        means.append(fmean(lambdas(run, hidden)))
    return means


def told(run: Run) -> str:
    kinds = Counter(call["kind"] for call in run.lines("judge_calls.jsonl") if call["kind"])
    named = ", ".join(f"{kind} {count}" for kind, count in kinds.items()) or "none"
    return (
        f"lambda {fmean(run.metrics('lambda')):.4f}  missing {fmean(run.metrics('judge/missing')):.1%}  "
        f"groups dropped {sum(run.metrics('groups/dropped')):.0f} of "
        f"{sum(run.metrics('groups/dropped')) + sum(run.metrics('groups/kept')):.0f}  "
        f"{fmean(run.metrics('time/step')):.2f} s a step  failed calls: {named}  {run.path}"
    )


def failures(options: argparse.Namespace) -> bool:
    """Print what was found. Whether the required bound was held."""
    with started() as url:
        clean = train("clean", url, options.steps or 200, options.overrides)
    print(f"clean      {told(clean)}", flush=True)
    with started("--fail", str(options.share)) as url:
        failing = train("failing", url, options.steps or 200, options.overrides)
    print(f"failing    {told(failing)}")
    before, after = (fmean(run.metrics("lambda")) for run in (clean, failing))
    recomputed = lambdas(clean, lambda record: False)
    assert recomputed == clean.metrics("lambda"), "lambda must follow from the records"
    means = same_replies(clean, options.share)
    print(
        f"same replies, {options.share:.0%} of the calls failed, {MASKS} draws: lambda {fmean(means):.4f}, "
        f"ratio {fmean(means) / before:.3f} (deviation over draws {pstdev(means) / before:.3f})"
    )
    is_held = abs(after / before - 1) <= WITHIN
    print(f"two runs: ratio {after / before:.3f}, required within {WITHIN:.0%}: {'held' if is_held else 'BROKEN'}")
    return is_held


class Switch:
    """Takes the judge down for a while, and notes when steps were finished."""

    def __init__(self, down: Path, seconds: float) -> None:
        self.down, self.seconds = down, seconds
        self.finished: list[float] = []
        self.began: float | None = None
        self.ended: float | None = None

    def watch(self, run: Path) -> None:
        """Look at the run once."""
        now, file = time.time(), run / "metrics.jsonl"
        steps = file.read_bytes().count(b"\n") if file.exists() else 0
        self.finished += [now] * (steps - len(self.finished))
        if self.began is None and steps >= DOWN_AFTER:
            self.down.touch()
            self.began = now
        elif self.began is not None and self.ended is None and now - self.began >= self.seconds:
            self.down.unlink()
            self.ended = now


def outage(options: argparse.Namespace) -> bool:
    """Print what was found. Whether the run went on and lost nothing."""
    steps = options.steps or 12
    ROOT.mkdir(parents=True, exist_ok=True)
    down = (ROOT / f"down-{time.time_ns()}").absolute()
    switch = Switch(down, options.seconds)
    try:
        with started("--down-file", str(down)) as url:
            run = train("outage", url, steps, options.overrides, switch.watch)
    finally:
        down.unlink(missing_ok=True)
    began, ended = switch.began, switch.ended
    if began is None or ended is None:
        print(f"the run was over before the judge was back: more steps than {steps} are needed   BROKEN")
        return False
    during = [line for line in run.lines("judge_calls.jsonl") if began <= line["time"] <= ended]
    kinds = Counter(line["kind"] or "answered" for line in during)
    numbers = [int(line["step"]) for line in run.lines("metrics.jsonl")]
    after = next((at for at in switch.finished if at > ended), None)
    last = max(at for at in switch.finished if at <= ended)
    quiet = fmean(b - a for a, b in pairwise(switch.finished) if b <= began or a >= ended)
    print(f"judge down for {ended - began:.1f} s after step {DOWN_AFTER}   {run.path}")
    print(f"calls that ended meanwhile: {', '.join(f'{k} {n}' for k, n in kinds.items()) or 'none'}")
    if after is not None:
        print(f"no step finished for {after - last:.1f} s, {after - ended:.1f} s of it after the judge was back")
    print(f"a step takes {quiet:.1f} s otherwise")
    missing = [(step, record) for step in numbers for record in run.records(step) if record.missing]
    print(f"missing verdicts: {len(missing)} of {sum(len(run.records(step)) for step in numbers)}", end="")
    print("".join(f"\n  step {step}: {record.missing}" for step, record in missing[:5]))
    for name in ("judge/breaker_open_s", "judge/requests"):
        recorded = run.metrics(name)
        print(f"{name} at the end: {recorded[-1] if recorded else 'not recorded'}")
    for event in run.lines("events.jsonl"):
        if event["kind"] not in ("drop", "checkpoint"):
            at = f"{event['time'] - began:+.1f} s, step {event.get('step')}"
            print(f"event at {at}: {event['kind']}: {event['detail'][:100]}")
    is_held = after is not None and numbers == list(range(1, steps + 1))
    print(f"steps in metrics.jsonl: {numbers}, each once and all of them: {'held' if is_held else 'BROKEN'}")
    return is_held


def main() -> int:
    """0 when what is required was held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failures", action="store_true", help="two runs of 200 steps, 20 minutes in all")
    parser.add_argument("--outage", action="store_true", help="one run of 12 steps, three minutes")
    parser.add_argument("--steps", type=int, help="of a run (default: 200; outage: 12)")
    parser.add_argument("--share", type=float, default=0.1, help="of the calls that fail (default: 0.1)")
    parser.add_argument("--seconds", type=float, default=60.0, help="that the judge is down (default: 60)")
    options, overrides = parser.parse_known_args()
    options.overrides = overrides
    both = not (options.failures or options.outage)
    results = [outage(options)] if options.outage or both else []
    results += [failures(options)] if options.failures or both else []
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
