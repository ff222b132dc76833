"""What people watch while a run runs: a live line on a terminal, plain lines elsewhere, or TensorBoard.

metrics.jsonl is written first; whatever is shown is a copy of it.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from report.records import Event

MAX_SILENCE_S = 10.0  # longest silence where there is no live line
SHOWN_METRICS = ("reward/mean", "lambda", "rollout/heard_right", "loss/total", "rollout/tokens_per_s")


class Monitor:
    """Phase, step, ETA, reward, lambda, tokens/s.

    Example:
        with Monitor(steps=60) as monitor:
            monitor.begin_phase("generate", total=64)
            monitor.tick(1, 85)
            monitor.step(1, {"reward/mean": 2.9, "time/step": 7.5})
    """

    def __init__(self, steps: int, console: Console | None = None, tensorboard: Path | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._steps, self._now = steps, 0
        self._phase, self._done, self._total, self._tokens = "start", 0, 0, 0
        self._since = self._spoke = time.monotonic()
        self._last: Mapping[str, float] = {}
        self._times: list[float] = []
        self._live = (
            Live(console=self._console, refresh_per_second=4, transient=True, get_renderable=self._render_live_view)
            if self._console.is_terminal
            else None
        )
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._break_silence, daemon=True, name="monitor")
        self._board = None if tensorboard is None else TensorBoardWriter(tensorboard)

    def __enter__(self) -> "Monitor":
        if self._live is not None:
            self._live.start()
        else:
            self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        else:
            self._beats.join()
        if self._board is not None:
            self._board.close()

    def say(self, text: str) -> None:
        """One line that stays; a terminal breaks it between words, a file not at all."""
        self._spoke = time.monotonic()
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal)

    def begin_phase(self, name: str, total: int = 0) -> None:
        """A phase begins; ``total``: how many things it has to do."""
        self._phase, self._done, self._total, self._tokens = name, 0, total, 0
        self._since = time.monotonic()

    def tick(self, replies: int, tokens: int) -> None:
        """That many more things are done, with that many tokens."""
        self._done += replies
        self._tokens += tokens

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is complete."""
        self._now, self._last = step, metrics
        self._times.append(metrics["time/step"])
        if self._board is not None:
            self._board.add(step, metrics)
        shown = "  ".join(f"{name} {metrics[name]:.3g}" for name in SHOWN_METRICS if name in metrics)
        times = " ".join(
            f"{name} {metrics[f'time/{name}']:.1f}"
            for name in ("generate", "judge", "learn", "sync")
            if f"time/{name}" in metrics
        )
        self.say(
            f"step {step}/{self._steps}  {shown}  {metrics['time/step']:.1f} s ({times})  "
            f"left {_format_duration(self._estimate_seconds_left())}"
        )

    def resume(self, step: int) -> None:
        """The run goes on after ``step``: what was shown of later steps is void."""
        if self._board is not None:
            self._board.restart(step + 1)

    def event(self, event: Event) -> None:
        """Something happened that people should know."""
        self.say(f"{event.kind}: {event.detail}")

    def _estimate_seconds_left(self) -> float:
        recent = self._times[-10:]
        return (self._steps - self._now) * sum(recent) / len(recent) if recent else 0.0

    def _line(self) -> str:
        seconds = max(1e-9, time.monotonic() - self._since)
        counted = f" {self._done}/{self._total}" if self._total else ""
        rate = f" {self._tokens / seconds:.0f} tokens/s" if self._tokens else ""
        step = f"step {min(self._now + 1, self._steps)}/{self._steps}"
        return f"{step}  {self._phase}{counted}{rate}  since {seconds:.0f} s"

    def _break_silence(self) -> None:
        while not self._ended.wait(MAX_SILENCE_S / 10):
            if time.monotonic() - self._spoke > MAX_SILENCE_S:
                self.say(self._line())

    def _render_live_view(self) -> Group:
        table = Table.grid(padding=(0, 2))
        values = [
            f"{name.removeprefix('rollout/')} {self._last[name]:.3g}" for name in SHOWN_METRICS if name in self._last
        ]
        table.add_row(*values, f"left {_format_duration(self._estimate_seconds_left())}" if self._times else "")
        return Group(Text(self._line(), style="bold"), table)


class TensorBoardWriter:
    """TensorBoard events without torch."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer: Any = EventFileWriter(str(folder))

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Each metric as a scalar."""
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(Record(step=step, wall_time=time.time(), summary=Summary(value=values)))

    def restart(self, step: int) -> None:
        """TensorBoard forgets what it was told from ``step`` on."""
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog

        begun = SessionLog(status=SessionLog.START)
        self._writer.add_event(Record(step=step, wall_time=time.time(), session_log=begun))

    def close(self) -> None:
        """Write out what is buffered."""
        self._writer.close()


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
