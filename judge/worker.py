"""The judge worker: a panel plus the audio files.

Invariant: a wave comes in, only a verdict goes out; the driver never sees audio.
"""

from pathlib import Path

import numpy as np

from judge.panel import Panel
from judge.types import JudgeTask, ReplyJudgement
from rollout.types import Reply, Speech
from speech.sound.audio import write


class JudgeWorker:
    """Judges one reply at a time.

    Example:
        worker = JudgeWorker(build_panel(config.judge, folder, config.model.path))
        judged = worker.score(reply, speech, task, run / "audio" / "step_000010_a1_0.ogg")
    """

    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def score(self, reply: Reply, speech: Speech, task: JudgeTask, audio_path: Path | None) -> ReplyJudgement:
        """Keep the audio when there is a path and anything to hear, then judge. OSError: not writable."""
        save_reply_audio(speech, audio_path)
        return self._panel.score(reply, speech, task)


def save_reply_audio(speech: Speech, path: Path | None) -> None:
    """Write the audio when there is a path and anything to hear. OSError: not writable."""
    if path is not None and len(speech.wave) and np.isfinite(speech.wave).all():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, speech.wave, speech.sample_rate)
