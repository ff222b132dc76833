"""Diagnoses of a made-up run of a model with many layers, for the tests of the report."""

import json
import random
from pathlib import Path

from report.records import ChannelShiftRecord, DiagnosisRecord, PartGradientRecord
from tests.helpers.synthetic_run import write_lines

SHIFTS = {"rollout_text": 0.4, "rollout_audio": 0.02, "anchor_text": 0.3, "anchor_audio": -0.03}


def part(name: str, size: float, ratio: float | None, cosine: float | None) -> PartGradientRecord:
    return PartGradientRecord(
        name=name,
        parameters=1000,
        text=size,
        audio=None if ratio is None else size / ratio,
        sft=2 * size,
        text_audio_ratio=ratio,
        text_audio_cosine=cosine,
        sft_text_cosine=0.3,
    )


def diagnosis(step: int, done: float, *, layers: int = 28, rng: random.Random, flat: bool = False) -> DiagnosisRecord:
    """``flat``: no reply was better than another, so that there is no preference gradient on AUDIO."""
    names = ["embedding", *(f"layer {n}" for n in range(layers)), "norm", "head"]
    depth = [abs(place / len(names) - 0.5) for place in range(len(names))]
    parts = [
        part(
            name,
            0.02 + 0.1 * d,
            None if flat else 2 ** (3 - 6 * d - 2 * done + rng.gauss(0, 0.2)),
            None if flat else max(-1, min(1, rng.gauss(0, 0.08))),
        )
        for name, d in zip(names, depth, strict=True)
    ]
    shift = {
        name: ChannelShiftRecord(mean=most * done, mean_abs=abs(most) * (0.1 + done), tokens=100)
        for name, most in SHIFTS.items()
    }
    return DiagnosisRecord(
        step=step,
        policy_version=step - 1,
        tied=False,
        layers=parts,
        model=part("model", 1.0, None if flat else 3.0 - done, None if flat else 0.01),
        shift=shift,
    )


def add_diagnostics(run: Path, *, steps: int = 20, every: int = 5, layers: int = 28) -> Path:
    """Diagnoses at step 1 and every ``every`` steps, one of them without a preference gradient, and the metrics
    that a run logs beside them.
    """
    rng = random.Random(1)
    times = [1, *range(every, steps + 1, every)]
    looks = {step: diagnosis(step, step / steps, layers=layers, rng=rng, flat=step == times[1]) for step in times}
    write_lines(run / "diagnostics.jsonl", [look.model_dump_json() for look in looks.values()])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        step, done = row["step"], row["step"] / steps
        lost = [rng.choice([0, 0, 1]), rng.choice([0, 1, 2])]
        row |= {"groups/kept": 4 - sum(lost), "groups/dropped": sum(lost), "time/diagnose": 0.0}
        row |= {"groups/dropped_few_verdicts": lost[0], "groups/dropped_equal_rewards": lost[1]}
        row |= {"diversity/semantic": 1.2 - 0.5 * done, "diversity/acoustic": 0.5, "diversity/reward": 0.9}
        row |= {
            "diversity/text": 0.8 - 0.3 * done,
            "diversity/audio": 0.9,
            "diversity/equal_groups": 0.3 * done,
        }
        if step in looks:
            row |= {"time/diagnose": 4.0, "time/step": row["time/step"] + 4.0, "grad/sft_text_cosine": 0.3}
            row |= {
                "grad/text_audio_ratio": looks[step].model.text_audio_ratio,
                "grad/text_audio_cosine": 0.01,
            }
            for name, shift in looks[step].shift.items():
                row |= {f"shift/{name}": shift.mean, f"shift/{name}_abs": shift.mean_abs}
    write_lines(run / "metrics.jsonl", [json.dumps(row) for row in rows])
    return run
