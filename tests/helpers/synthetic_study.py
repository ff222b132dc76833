"""Finished runs made up from a seed, as small as a study's page needs them: no rollouts, no checkpoints."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from report.records import Evaluation, HeldOutReply, MissingScoreRecord, Sample, ScoreRecord
from tests.helpers.synthetic_run import write_clip, write_lines

PROMPTS = 40
STEPS = 12
SKILL = {  # method -> chance of a right answer, acoustic score, lambda at the end
    "sft": (0.70, 4.2, 0.0),
    "grpo_text": (0.72, 4.1, 0.5),
    "grpo_all": (0.66, 3.5, 0.5),
    "gated": (0.74, 4.3, 0.35),
}
BASE = (0.55, 3.0)


def reply(index: int, when: str, skill: float, eq: float, rng: random.Random, step: int) -> HeldOutReply:
    """One judged reply; every fifth prompt asks for a style, now and then the judge fails."""
    right, failed = rng.random() < skill, when == "after" and rng.random() < 0.01
    sound = {
        "pace": rng.uniform(0.6, 2.4), "silence": rng.uniform(0.0, 0.55), "pause": rng.uniform(0.0, 1.1),
        "clipping": 0.0, "loop": rng.uniform(0.1, 0.85), "rate": 3.0, "level": -25.0,
    }  # fmt: skip
    heard = {"heard_right": float(right), "text_right": float(right or rng.random() < 0.2)}
    style = "slow" if index % 5 == 0 else None
    figures = {
        "seconds": 2.0,
        "truncated": float(rng.random() < 0.03),
        "well_formed": 1.0,
        "unjudgeable": 0.0,
    }
    if not failed:
        figures |= sound | heard | {"wer": rng.uniform(0, 0.2)}
        figures |= {} if style is None else {"style_followed": float(rng.random() < skill)}
    score = min(5.0, max(1.0, rng.gauss(eq, 0.6)))
    shift = 4 if when == "before" else 6
    return HeldOutReply.model_validate(
        {
            "split": "test", "when": when, "step": step, "row_id": f"row-{index:03d}", "task_type": "addition",
            "style": style, "text": "seven", "transcript": None if failed else "seven",
            "finish": "stop", "well_formed": True, "seconds": rng.uniform(1, 3),
            "codes": [rng.randrange(shift) for _ in range(30)],
            "scores": {"acoustic": MissingScoreRecord(missing="HTTP 503", kind="server") if failed else ScoreRecord(value=score, judge="acoustic/1")},
            "reward": None if failed else score, "missing": "HTTP 503" if failed else None, "figures": figures,
        }
    )  # fmt: skip


def make_trial(
    root: Path,
    method: str,
    seed: int,
    *,
    name: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    prompts: int = PROMPTS,
    commit: str = "a" * 40,
    audio: bool = False,
) -> Path:
    """A finished run of ``method``; ``settings``: sections of config.yaml that differ."""
    rng = random.Random(f"{method} {seed}")
    run = root / (name or f"{method}-seed{seed}")
    run.mkdir(parents=True)
    config: dict[str, dict[str, Any]] = {
        "run": {"name": run.name, "root": str(root), "seed": seed, "steps": STEPS, "resume": None},
        "algo": {"name": method, "gate": {"alpha": 0.9}},
        "data": {"test": "/data/test.jsonl"},
        "judge": {"scale_lo": 1.0, "scale_hi": 5.0, "workers": 2, "noise": 0.0},
    }
    for section, changes in (settings or {}).items():
        config[section] = config.get(section, {}) | dict(changes)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    versions = {"python": "3.11.2", "packages": {"torch": "2.13.0"}, "commit": commit, "source": "b" * 12}
    (run / "versions.json").write_text(json.dumps(versions))
    skill, eq, weight = SKILL.get(method, (0.7, 4.0, 0.4))
    metrics = [
        {
            "step": step, "lambda": weight * min(1, step / 6) + rng.uniform(0, 0.02), "reward/mean": 3 + step / STEPS + rng.gauss(0, 0.1),
            "time/step": 6.0, "time/generate": 3.0, "rollout/tokens_per_s": 1000.0, "tokens": 5000.0,
        }
        for step in range(1, STEPS + 1)
    ]  # fmt: skip
    write_lines(run / "metrics.jsonl", [json.dumps(row) for row in metrics])
    base = random.Random("base")
    sides = {
        "before": [reply(i, "before", *BASE, base, 0) for i in range(prompts)],
        "after": [reply(i, "after", skill, eq, rng, STEPS) for i in range(prompts)],
    }
    sides["after"][0] = sides["after"][0].model_copy(update={"codes": sides["before"][0].codes})
    for when, replies in sides.items():
        write_lines(run / f"heldout/test_{when}.jsonl", [item.model_dump_json() for item in replies])
    write_lines(run / "evaluations.jsonl", [summed(when, replies) for when, replies in sides.items()])
    if audio:
        samples(run, seed)
    (run / "final").mkdir()
    (run / "report.html").write_text("<!doctype html>")
    return run


def summed(when: str, replies: list[HeldOutReply]) -> str:
    """A line of evaluations.jsonl."""
    return Evaluation.model_validate(
        {
            "step": replies[0].step, "split": "test", "when": when, "count": len(replies), "heard_right": 0.5,
            "text_right": 0.5, "style_followed": None, "wer": 0.1, "reward": 3.0, "seconds": 2.0,
            "truncated": 0.0, "well_formed": 1.0, "took_s": 20.0,
        }
    ).model_dump_json()  # fmt: skip


def samples(run: Path, seed: int, count: int = 4) -> None:
    """Held-out replies to listen to; the first one did not change."""
    lines = []
    for n in range(count):
        for when in ("before", "after"):
            path = f"samples/{when}_row-{n:03d}.ogg"
            write_clip(run / path, 0.6, 110 + 10 * n + (30 + seed if when == "after" and n else 0))
            lines.append(
                Sample(
                    when="before" if when == "before" else "after", row_id=f"row-{n:03d}", question="what is five plus two",
                    expected="seven", style=None, text="seven", transcript="seven", right=True, audio=path,
                ).model_dump_json()
            )  # fmt: skip
    write_lines(run / "samples.jsonl", lines)
