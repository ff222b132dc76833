"""Where a study's methods differ: right answers by kind of task, and how well reference replies were learnt.

    python -m bench.study_tasks runs/study [--last 15]

Of the finished cells below DIR/runs, mean over seeds. Right: the answer was heard in the sound of the reply
(test set, after training). Anchoring loss: nats per token of the reference replies, mean of the last steps.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from report.read import read_metric_rows
from report.study.trials import TestReplies, Trial, is_finished, read_trial


def right(replies: TestReplies) -> Mapping[str, float]:
    """Kind of task -> share of right answers, as heard."""
    results_by_kind = defaultdict(list)
    for reply in replies:
        results_by_kind[reply.task_type].append(reply.figures.get("heard_right") == 1)
    return {task_type: fmean(results) for task_type, results in results_by_kind.items()}


def anchoring(run: Path, last: int) -> float | None:
    """Mean of the anchoring loss over a run's last steps; None: it has none."""
    losses = [row.get("loss/sft") for row in read_metric_rows(run / "metrics.jsonl").rows[-last:]]
    known = [loss for loss in losses if loss is not None]
    return fmean(known) if known else None


def line(name: str, shares: Sequence[Mapping[str, float]], losses: Iterable[float | None]) -> str:
    """A method's row."""
    figures = [
        f"{kind} {100 * fmean(share_by_kind[kind] for share_by_kind in shares):3.0f} %" for kind in sorted(shares[0])
    ]
    known = [loss for loss in losses if loss is not None]
    return f"{name:28} {'   '.join(figures)}   " + (f"anchoring {fmean(known):.4f}" if known else "")


def main() -> int:
    """Print a row per method. 1: no finished cell."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.study_tasks", description="right answers by kind of task, anchoring loss"
    )
    parser.add_argument("study", type=Path, help="the folder of a study")
    parser.add_argument("--last", type=int, default=15, help="steps (15)")
    options = parser.parse_args()
    methods: dict[str, list[Trial]] = defaultdict(list)
    for run in sorted((options.study / "runs").iterdir()):
        if is_finished(run):
            methods[run.name.rpartition("-seed")[0]].append(read_trial(run))
    if not methods:
        print(f"{options.study}: no finished cell")
        return 1
    print(line("base", [right(next(iter(methods.values()))[0].before)], []))
    for name, trials in methods.items():
        print(line(name, [right(t.after) for t in trials], [anchoring(t.run, options.last) for t in trials]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
