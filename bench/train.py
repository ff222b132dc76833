"""The main job, measured: before/after on the held-out test set for several seeds, time and memory.

    python -m bench.train [--seeds 0 1 2] [key=value ...]

Each seed is one ``wavgate train`` in a process of its own, exactly as a user runs it. Memory is the sum of
the proportional set sizes (PSS) of all its processes, looked at once a second; the first rollout is taken
to be the moment when step 1 is on disk, which is later than its first reply.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

ROOT = Path("runs/bench")
SHARES = ("heard_right", "text_right", "style_followed", "wer")
PHASES = ("time/generate", "time/judge", "time/diagnose", "time/learn", "time/sync")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One finished run."""

    run: Path
    seconds: float
    first_rollout_s: float
    peak_gib: float

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of one of its jsonl files."""
        return [json.loads(line) for line in (self.run / name).read_text().splitlines()]


def memory(process: psutil.Process) -> int:
    """Bytes of a process and all its descendants; one that has just ended counts as nothing."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def train(seed: int, overrides: list[str]) -> Measured:
    """Run and watch. RuntimeError: the run failed."""
    name = f"seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run, start, first, peak = ROOT / name, time.time(), 0.0, 0
    command = [
        sys.executable,
        "-m",
        "commands.cli",
        "train",
        f"run.root={ROOT}",
        f"run.name={name}",
        f"run.seed={seed}",
        *overrides,
    ]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory(process))
        step_one = run / "rollouts" / "step_000001.jsonl"
        if not first and step_one.exists():
            first = time.time() - start
        time.sleep(1.0)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Measured(run=run, seconds=time.time() - start, first_rollout_s=first, peak_gib=peak / 2**30)


def before_after(measured: Measured) -> dict[str, tuple[float, float]]:
    """Share -> (before, after) on the test set."""
    found = {line["when"]: line for line in measured.lines("evaluations.jsonl") if line["split"] == "test"}
    return {share: (found["before"][share], found["after"][share]) for share in SHARES}


def show(seed: int, measured: Measured) -> dict[str, tuple[float, float]]:
    """One run's figures."""
    metrics = measured.lines("metrics.jsonl")
    steps = [line["time/step"] for line in metrics]
    phases = {phase: fmean(line[phase] for line in metrics) for phase in PHASES}
    rest = 1 - sum(phases.values()) / fmean(steps)
    idle = {name: fmean(line[name] for line in metrics) for name in metrics[-1] if name.startswith("idle/")}
    print(f"\nseed {seed}: {measured.run}")
    slowest = max(line["time/sync"] for line in metrics)
    named = ", ".join(f"{phase.removeprefix('time/')} {seconds:.2f}" for phase, seconds in phases.items())
    print(f"  whole job {measured.seconds / 60:.1f} min, step 1 on disk after {measured.first_rollout_s:.0f} s")
    print(f"  peak memory {measured.peak_gib:.2f} GiB (PSS of all processes)")
    print(f"  step {fmean(steps):.2f} s ({named}), orchestration {rest:.1%} of it, slowest sync {slowest:.2f} s")
    print("  " + ", ".join(f"{name} {share:.0%}" for name, share in idle.items()))
    shares = before_after(measured)
    for share, (before, after) in shares.items():
        print(f"  {share:<15} {before:6.1%} -> {after:6.1%}  ({100 * (after - before):+.1f} points)")
    return shares


def main() -> int:
    """0 when every run finished."""
    parser = argparse.ArgumentParser(description="the main job, measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, overrides = parser.parse_known_args()
    shares_by_seed = [show(seed, train(seed, overrides)) for seed in options.seeds]
    print(f"\nmean over seeds {options.seeds}:")
    for share in SHARES:
        before, after = (fmean(shares[share][i] for shares in shares_by_seed) for i in (0, 1))
        print(f"  {share:<15} {before:6.1%} -> {after:6.1%}  ({100 * (after - before):+.1f} points)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
