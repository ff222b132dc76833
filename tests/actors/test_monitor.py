"""What is shown while a run runs: whole words, and never silence."""

import io
import time

import pytest
from rich.console import Console

from actors.run import monitor
from actors.run.monitor import Monitor

METRICS = {
    "reward/mean": 3.2146, "lambda": 0.0123, "rollout/heard_right": 0.6667, "loss/total": 0.1234,
    "rollout/tokens_per_s": 1234.0, "time/step": 12.3, "time/generate": 5.0, "time/judge": 4.0, "time/learn": 2.0,
}  # fmt: skip


def step_lines(width: int, *, terminal: bool) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, highlight=False)
    Monitor(500, console).step(100, METRICS)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 100, 140])
def test_a_terminal_breaks_a_step_line_between_words(width: int) -> None:
    (whole,) = step_lines(width, terminal=False)
    lines = step_lines(width, terminal=True)
    assert len(lines) > 1 and all(len(line) <= width for line in lines)
    assert " ".join(lines).split() == whole.split()


def test_a_log_file_gets_a_line_of_what_is_under_way_when_nothing_else_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor, "MAX_SILENCE_S", 0.05)
    out = io.StringIO()
    with Monitor(60, Console(file=out)) as shown:
        shown.begin_phase("start")
        while "step 1/60  start  since " not in out.getvalue():
            time.sleep(0.01)
        shown.begin_phase("generate", total=64)
        shown.tick(3, 200)
        while "step 1/60  generate 3/64 " not in out.getvalue():
            time.sleep(0.01)


def test_a_terminal_shows_how_long_a_phase_takes_without_being_told() -> None:
    shown = Monitor(60, Console(file=io.StringIO(), force_terminal=True))
    shown.begin_phase("start")
    shown._since -= 90
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(shown._render_live_view())
    assert "start  since 90 s" in capture.get()
