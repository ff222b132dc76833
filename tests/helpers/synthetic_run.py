"""A run directory made up from a seed, for the tests of the report: every file, real Opus clips."""

import json
import math
import random
from pathlib import Path

import numpy as np
import soundfile
import yaml

from report.records import Evaluation, Event, MissingScoreRecord, RolloutRecord, Sample, ScoreRecord

XSS = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!--<script>",
    "]]>\"'><svg onload=alert(1)>&lt;b&gt;",
    "javascript:alert(1)\u2028\u2029 ${1+1} $data",
)


def write_lines(path: Path, rows: list[str]) -> None:
    """One line each, newline at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def write_clip(path: Path, seconds: float, pitch: float) -> None:
    """A vowel-like hum as Ogg/Opus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(16000 * seconds)) / 16000
    wave = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 12)) * (0.6 + 0.4 * np.sin(20 * time))
    soundfile.write(path, (0.2 * wave).astype(np.float32), 16000, format="OGG", subtype="OPUS")


def metrics(step: int, steps: int, rng: random.Random) -> dict[str, float | None]:
    """A plausible step; the gradient's cosine is logged only now and then, one step lacks its KL."""
    done = step / steps
    phases = {
        "time/generate": 3 + rng.random(),
        "time/judge": 0.6 + 0.2 * rng.random(),
        "time/learn": 2.1 + rng.random() / 2,
    }
    row: dict[str, float | None] = {
        "step": step,
        "policy_version": step,
        "lambda": 0.25 + 0.3 * done,
        "lambda_raw": 0.25 + 0.35 * done + rng.gauss(0, 0.06),
        "gate/direction": min(1, 0.75 + 0.25 * done + rng.gauss(0, 0.02)),
        "gate/information": 0.6 - 0.2 * done + rng.gauss(0, 0.05),
        "reward/mean": 3 + 1.2 * done + rng.gauss(0, 0.12),
        "reward/max": min(5, 4.3 + 0.5 * done),
        "reward/std": 1.1 - 0.4 * done,
        "reward/semantic": 3.2 + 1.1 * done + rng.gauss(0, 0.15),
        "reward/acoustic": 2.8 + 1.2 * done + rng.gauss(0, 0.1),
        "judge/missing": float(rng.random() < 0.1),
        "judge/cached": 0.0,
        "groups/kept": 16.0,
        "groups/dropped": 0.0,
        "rollout/tokens_per_s": 900 + 60 * rng.random(),
        "rollout/text_tokens": 700.0,
        "rollout/audio_tokens": 6200.0 - 300 * done,
        "loss/total": 1.4 - 0.4 * done + rng.gauss(0, 0.03),
        "loss/sft": 1.9 - 0.3 * done,
        "loss/po": -0.02 + rng.gauss(0, 0.02),
        "loss/kl_text": 0.02 * done,
        "loss/kl_audio": 0.008 * done,
        "entropy/text": 0.8 - 0.3 * done,
        "entropy/audio": 2.3 - 0.1 * done,
        "grad_norm": 0.7 + rng.random(),
        "mismatch/text": 2e-5 * (1 + rng.random()),
        "mismatch/audio": 3e-5 * (1 + rng.random()),
        "rollout/truncated": 0.02,
        "staleness": 0.0,
        "judge/latency_s": 0.2,
        **phases,
        "time/judge_overlapped": 0.5 * phases["time/generate"],
        "time/sync": 0.3,
        "time/step": sum(phases.values()) + 0.45,
    }
    if step % 7 == 0:
        row["grad/text_audio_cosine"] = rng.gauss(0, 0.2)
    if step == steps // 2:
        del row["loss/kl_text"]
    return row


def reply(
    step: int, group: int, index: int, audio: bool, rng: random.Random, text: str | None = None
) -> RolloutRecord:
    """One reply: three text runs, three audio runs, a stop token."""
    said = text or rng.choice(
        ["seven plus five is twelve", "the opposite of hot is cold", "seven plus five is eleven", "twelve"]
    )
    channels = "".join("T" * rng.randint(1, 4) + "B" + "A" * rng.randint(20, 50) + "B" for _ in range(3)) + "E"
    missing = rng.random() < 0.06
    heard = said if rng.random() < 0.6 else said.replace("twelve", "shelf").replace("cold", "cold cold")
    semantic = rng.choice([1.0, 2.0, 3.0, 4.0, 5.0])
    logps: list[float | None] = [round(-rng.expovariate(1.2), 5) for _ in channels]
    reward = None if missing else round(0.6 * semantic + 0.4 * 3.7, 3)
    advantage = None if missing else round((reward or 0) - 3.2, 3)
    return RolloutRecord(
        step=step,
        prompt_id=f"add-{group:04d}",
        group=group,
        index=index,
        policy_version=step - 1,
        question="what is seven plus five" if text is None else text,
        expected="twelve",
        style="slow" if group % 3 == 0 else None,
        ids=[rng.randrange(1300) for _ in channels],
        channels=channels,
        text=said,
        transcript=None if missing else heard,
        finish="length" if rng.random() < 0.05 else "stop",
        audio=f"audio/step_{step:06d}/add-{group:04d}_{index}.ogg" if audio else None,
        seconds=channels.count("A") / 40,
        judge_latency_s=0.05 + 0.002 * len(channels) + rng.expovariate(20),
        scores={
            "semantic": MissingScoreRecord(missing="recogniser did not answer within 60 s", kind="recogniser")
            if missing
            else ScoreRecord(
                value=semantic, spread=0.0, judge="verifiable/1", why=f"heard '{heard}', expected 'twelve'"
            ),
            "acoustic": ScoreRecord(
                value=3.7, spread=0.2, judge="acoustic/1", why="WER 0.00, rate 3.9 syll/s, silence 0.12"
            ),
        },
        reward=reward,
        missing="semantic is missing" if missing else None,
        advantage=advantage,
        weights=None if advantage is None else [advantage if c in "TE" else 0.0 for c in channels],
        behaviour_logps=logps,
        learner_logps=[
            v + rng.gauss(0, 2e-5) if v is not None and c in "TBE" else None
            for c, v in zip(channels, logps, strict=True)
        ],
        dropped="one valid score in the group" if missing else None,
    )


def evaluation(step: int, split: str, when: str, done: float) -> str:
    """A line of evaluations.jsonl."""
    return Evaluation.model_validate(
        {
            "step": step,
            "split": split,
            "when": when,
            "count": 160,
            "heard_right": 0.62 + 0.17 * done,
            "text_right": 0.66 + 0.17 * done,
            "style_followed": 0.51 + 0.2 * done,
            "wer": 0.041 + 0.004 * done,
            "reward": 3.4 + 0.6 * done,
            "seconds": 2.4,
            "truncated": 0.01,
            "well_formed": 0.98,
            "by_task": {"addition": 0.6 + 0.2 * done, "opposite": 0.7 + 0.1 * done},
        }
    ).model_dump_json()


def make_run(
    root: Path, *, steps: int = 20, prompts: int = 4, size: int = 4, every: int = 5, hostile: bool = True
) -> Path:
    """A finished run. ``hostile``: the last step's first group and the first sample hold the XSS corpus."""
    rng = random.Random(0)
    run = root / "demo"
    run.mkdir(parents=True)
    config = {
        "run": {"name": "demo", "steps": steps, "seed": 0, "staleness": 0},
        "model": {"family": "tiny", "path": "examples/tiny_world/base"},
        "algo": {"name": "gated", "preference": {"text": 1, "audio": 0, "boundary": 0, "stop": 1}},
        "judge": {"scale_lo": 1.0, "scale_hi": 5.0},
        "rollout": {"engine": "vllm", "prompts_per_step": prompts, "group_size": size},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "versions.json").write_text(
        json.dumps({"python": "3.11.2", "packages": {"torch": "2.13.0", "vllm": "0.32.0"}, "commit": "0" * 40})
    )
    write_lines(run / "metrics.jsonl", [json.dumps(metrics(step, steps, rng)) for step in range(1, steps + 1)])
    for step in range(1, steps + 1):
        audible = step % every == 0
        records = [
            reply(
                step,
                group,
                index,
                audible,
                rng,
                XSS[index % len(XSS)] if hostile and step == steps and group == 0 else None,
            )
            for group in range(prompts)
            for index in range(size)
        ]
        for record in records:
            if record.audio:
                write_clip(run / record.audio, rng.uniform(1.0, 3.0), 90 + 30 * record.index)
        write_lines(run / f"rollouts/step_{step:06d}.jsonl", [record.model_dump_json() for record in records])
    whole = [evaluation(0, "test", "before", 0.0), evaluation(0, "validation", "before", 0.0)]
    whole += [
        evaluation(step, "validation", "during", step / steps + math.sin(step) / 9) for step in range(5, steps, 5)
    ]
    write_lines(
        run / "evaluations.jsonl",
        [*whole, evaluation(steps, "validation", "after", 1.0), evaluation(steps, "test", "after", 1.0)],
    )
    samples = []
    for n in range(3):
        for when in ("before", "after"):
            path = f"samples/row-{n}_{when}.ogg"
            write_clip(run / path, 1.5, 110 if when == "before" else 140)
            text = (
                XSS[0]
                if hostile and n == 0
                else "five plus two is six"
                if when == "before"
                else "five plus two is seven"
            )
            samples.append(
                Sample.model_validate(
                    {
                        "when": when,
                        "row_id": f"row-{n}",
                        "question": "what is five plus two",
                        "expected": "seven",
                        "style": None,
                        "text": text,
                        "transcript": text,
                        "right": when == "after",
                        "audio": path,
                    }
                ).model_dump_json()
            )
    write_lines(run / "samples.jsonl", samples)
    events = [
        Event(time=1.79e9, kind="checkpoint", detail="step_000010 written", step=10),
        Event.model_validate(
            {
                "time": 1.79e9 + 60,
                "kind": "restart",
                "detail": "rollout worker 0 did not answer for 60 s",
                "step": 12,
                "worker": 0,
            }
        ),
        Event(time=1.79e9 + 90, kind="judge_missing", detail=XSS[2] if hostile else "timeout", step=13, count=3),
    ]
    write_lines(run / "events.jsonl", [event.model_dump_json() for event in events])
    return run
