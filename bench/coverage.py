"""How often the intervals of ``wavgate study`` hold the truth: made-up figures whose mean is known to be 0.

    python -m bench.coverage [--trials 1000] [--prompts 120] [--draws 1000]

A figure is the sum of what its seed, its prompt and chance do; all three are normal. ``plain``: percentiles
as they were drawn; ``widened``: report/study/paired.py.
"""

import argparse

import numpy as np

from conf.study import BootstrapConfig
from report.study.paired import draw_prompts_and_seeds, estimate_mean

CASES = (  # standard deviations of seed, prompt and the rest
    (1.0, 1.0, 0.0),
    (0.3, 1.0, 0.5),
    (0.05, 0.3, 0.0),
    (0.05, 0.3, 0.3),
    (0.0, 0.3, 0.3),
)


def coverage(
    seeds: int, case: tuple[float, float, float], trials: int, prompts: int, settings: BootstrapConfig
) -> tuple[float, float]:
    """Shares of the trials in which plain and widened intervals hold 0."""
    chance = np.random.default_rng([settings.seed, seeds])
    hits = []
    for _ in range(trials):
        shapes = (seeds, 1), (1, prompts), (seeds, prompts)
        values = sum(
            (chance.normal(0, spread, shape) for spread, shape in zip(case, shapes, strict=True)),
            np.zeros((seeds, prompts)),
        )
        estimate = estimate_mean(values, settings)
        w_BP, v_BS = draw_prompts_and_seeds(values.shape, settings)
        drawn_B = ((w_BP @ values.T) * v_BS).sum(axis=1) / (seeds * prompts)
        lo, hi = np.quantile(drawn_B, [0.025, 0.975])
        assert estimate.lo is not None and estimate.hi is not None
        hits.append((lo <= 0 <= hi, estimate.lo <= 0 <= estimate.hi))
    plain, widened = np.mean(hits, axis=0)
    return float(plain), float(widened)


def main() -> int:
    """Print a line per case."""
    parser = argparse.ArgumentParser(prog="python -m bench.coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--draws", type=int, default=1000)
    wanted = parser.parse_args()
    settings = BootstrapConfig(draws=wanted.draws)
    print(f"{'seeds':>5} {'sd seed':>8} {'prompt':>7} {'rest':>6} {'plain':>7} {'widened':>8}")
    for seeds in (2, 3, 5):
        for case in CASES:
            plain, widened = coverage(seeds, case, wanted.trials, wanted.prompts, settings)
            own, prompt, rest = case
            print(f"{seeds:>5} {own:>8g} {prompt:>7g} {rest:>6g} {plain:>7.1%} {widened:>8.1%}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
