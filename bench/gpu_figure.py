"""How a measurement of ``bench.gpu`` is taken, and how it is told: the median of runs after warm-up."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
VOCABULARY, WARM_UP, GIB = 168_072, 2, 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all measurements share. ``peak``: FLOP/s of the device, None when unknown."""

    device: torch.device
    tokens: int
    steps: int
    vocabulary: int = VOCABULARY
    peak: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. None: not measurable here, or it did not fit."""

    what: str
    setting: str
    seconds: float | None = None
    peak_gib: float | None = None
    found: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """As a row of the Markdown table."""
        numbers = ["–" if n is None else f"{n:.4g}" for n in (self.seconds, self.peak_gib)]
        found = [f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.found.items()]
        return f"| {' | '.join([self.what, self.setting, *numbers, ', '.join(found)])} |"


def timed(bench: Bench, run: Callable[[], T]) -> tuple[float, float | None, T]:
    """(median seconds, peak GiB allocated, last result) of ``steps`` runs after WARM_UP."""
    for _ in range(WARM_UP):
        run()
    if bench.device.type == "cpu":
        marks = [time.perf_counter()]
        for _ in range(bench.steps):
            last = run()
            marks.append(time.perf_counter())
        return statistics.median(np.diff(marks).tolist()), None, last
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(bench.steps + 1)]
    events[0].record()
    for event in events[1:]:
        last = run()
        event.record()
    torch.cuda.synchronize()
    spans = [a.elapsed_time(b) / 1000 for a, b in pairwise(events)]
    return statistics.median(spans), torch.cuda.max_memory_allocated() / GIB, last


Figures = Iterator[Figure]
