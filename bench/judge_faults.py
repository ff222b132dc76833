"""Whether the chat client names every failure, in time and never as an answer: a storm on loopback.

    python -m bench.judge_faults [--kinds hang reset ...] [--schedules 1000] [--seed 0] [--concurrency 100]

Each call has a seeded schedule: its first one to four requests meet the fault, later ones a good answer.
Right is a call that ends as the fault's kind or, where the client tries again by itself and the fault ends in
time, with the answer that is its own; with exactly the requests that this takes, and at most a second past
the deadline.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter

from tests.helpers.fault_schedules import FAULTS
from tests.helpers.fault_server import Outcome, storm


def line(name: str, outcomes: list[Outcome]) -> str:
    ended = Counter(outcome.kind or "answer" for outcome in outcomes)
    right = sum(not outcome.wrong for outcome in outcomes)
    slowest = max(outcome.seconds for outcome in outcomes)
    over = max(outcome.over for outcome in outcomes)
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(ended.items()))
    return f"{name:24} {len(outcomes):6} {right:6} {slowest:8.2f} {over:+8.2f}  {counts}"


def main() -> int:
    """Returns 1 when a single call ended in any other way than it has to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=100)
    args = parser.parse_args()
    start = time.perf_counter()
    outcomes = asyncio.run(storm(args.kinds, args.schedules, args.seed, args.concurrency))
    print(f"{'fault':24} {'calls':>6} {'right':>6} {'slowest':>8} {'over':>8}  ended as")
    for name in args.kinds:
        print(line(name, [outcome for outcome in outcomes if outcome.name == name]))
    print(line("all", outcomes))
    print(f"{time.perf_counter() - start:.0f} s")
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in wrong[:20]:
        print(f"{outcome.name}, {outcome.faults} faults: {outcome.wrong}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
