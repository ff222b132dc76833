"""What the families' micro worlds share: clips, a manifest of spoken questions, a short run of the whole loop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from speech.data.manifest import ManifestRow
from speech.sound import audio
from speech.sound.audio import Wave
from tests.helpers.processes import HANG_S

ROOT = Path(__file__).parents[2]


def clip(seconds: float, seed: int, rate: int = 16_000) -> Wave:
    """A chirp in noise: no two seeds sound alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 90 * seed + 80 * time) * time)
    return np.asarray(0.3 * tone + 0.02 * rng.normal(size=len(time)), np.float32)


def write_data(
    folder: Path,
    rows: int,
    *,
    reply_seconds: float,
    asked: str = "what is two",
    said: str = "the answer is two",
) -> Path:
    """A manifest of spoken questions of unequal lengths, every third one written, and spoken replies; returned."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(rows):
        audio.write(folder / f"q{i}.wav", clip(0.6 + 0.1 * i, i), 16_000)
        audio.write(folder / f"a{i}.wav", clip(reply_seconds, 50 + i), 16_000)
        spoken = i % 3 != 2
        row = {
            "id": f"row-{i}",
            "messages": [{"role": "user", "content": "<|audio|>" if spoken else asked}],
            "audios": [[f"q{i}.wav"]] if spoken else [],
            "question_text": asked,
            "task_type": "say",
            "answer": {"match": "contains", "value": "two"},
            "sft_target_text": said,
            "sft_target_audio": [f"a{i}.wav"],
        }
        lines.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "rows.jsonl"


def heard_row(*clips: str) -> ManifestRow:
    """A row that asks with these clips, joined, and is answered with the first of them."""
    content = {
        "id": "row-1",
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [list(clips)],
        "question_text": "what is two",
        "task_type": "say",
        "sft_target_text": "two",
        "sft_target_audio": [clips[0]],
    }
    return ManifestRow.model_validate(content)


def trained(folder: Path, data: Path, *settings: str) -> Path:
    """`wavgate train` for three steps on two ranks, in a process of its own; the run's folder.

    Held out are the same rows in another order: nothing is measured on them, and one file for both is refused.
    """
    held_out = data.with_name("held_out.jsonl")
    held_out.write_text("\n".join(reversed(data.read_text().splitlines())) + "\n")
    command = [
        *(sys.executable, "-m", "commands.cli", "train", "experiment=smoke", "model.dtype=float32"),
        *("data=manifest", f"data.train={data}", f"data.validation={held_out}", f"data.test={held_out}"),
        *("learner.ranks=2", "learner.lr=3e-4", "learner.warmup_steps=5", "learner.timeout_s=600"),
        *("rollout.grammar=true", "learner.activation_checkpointing=false", "judge.asr.by=pocketsphinx"),
        *(f"run.root={folder / 'runs'}", "run.name=micro", *settings),
    ]
    base = next(Path(setting.partition("=")[2]) for setting in settings if setting.startswith("model.path="))
    voice = {"seconds_per_word": 0.25, "seconds_per_letter": 0.06, "level_dbfs": -25}  # random weights have none
    (base / "wavgate.json").write_text(json.dumps({"voice": voice}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "micro"
