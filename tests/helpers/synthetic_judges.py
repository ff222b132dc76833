"""Makes the run of ``synthetic_run`` one that an API judge scored: calls, failures, canaries, a second judge."""

import json
import random
from pathlib import Path

from report.read import list_rollout_files, read_rollouts
from report.records import CanaryRecord, MissingScoreRecord, RolloutRecord, ScoreRecord, VerdictRecord
from tests.helpers.synthetic_run import XSS, write_lines

MODEL, SECOND = "qwen3-omni-30b", "gpt-audio-2"
AXES = {"semantic": "semantic/2", "acoustic": "acoustic/1", "holistic": "holistic/1"}
FAILURES = {
    "deadline": "no whole answer within 60 s",
    "server": "HTTP 502: <html><h1>Bad gateway</h1></html>",
    "rate_limited": "HTTP 429: slow down",
    "refusal": "I cannot rate this recording.",
    "malformed": "no score in the answer: 'The reply is fine.'",
    "unsure": "0.31 of the probability is on the scores, at least 0.5 is needed",
    "breaker": "the endpoint stayed down for 600 s; last: server: HTTP 503",
}
CANARIES = {
    "plea": ("semantic", "holistic"),
    "forged answer": ("semantic", "holistic"),
    "empty transcript": ("semantic",),
    "wrong language": ("semantic",),
    "repeated word": ("semantic", "acoustic", "holistic"),
    "silence": ("acoustic", "holistic"),
    "noise": ("acoustic", "holistic"),
    "louder copy": ("acoustic", "holistic"),
}


def judge(axis: str, model: str = MODEL) -> str:
    """Provenance as OpenAIJudge gives it."""
    return f"openai({model} {AXES[axis]} logprobs)"


def verdict(axis: str, merit: float, late: bool, rng: random.Random, model: str = MODEL) -> VerdictRecord:
    """Long audio fails more often; a failure has a kind and a reason."""
    if rng.random() < (0.25 if late else 0.02):
        kind = "deadline" if late and rng.random() < 0.8 else rng.choice(list(FAILURES))
        return MissingScoreRecord(missing=FAILURES[kind], kind=kind)
    noise = 0.35 if axis == "acoustic" else 0.2
    value = min(5.0, max(1.0, merit + rng.gauss(0, noise)))
    spread = abs(rng.gauss(0, noise))
    why = "Clear voice, right answer, small hesitation."
    return ScoreRecord(
        value=value, spread=spread, judge=judge(axis, model), why=why, cached=rng.random() < 0.15 and not late
    )


def judged(record: RolloutRecord, rng: random.Random) -> RolloutRecord:
    """The same reply with the verdicts of an API judge and, for one in four, of a second one."""
    seconds = rng.choice([0.8, 1.5, 2.5, 3.5, 5.0, 7.0, 9.0, 12.0, 20.0])
    late = seconds > 8
    merit = 2.5 + 0.05 * record.step + rng.gauss(0, 0.8)
    scores = {axis: verdict(axis, merit, late, rng) for axis in AXES}
    asked = rng.random() < 0.25
    second = {axis: verdict(axis, merit - 0.4, late, rng, SECOND) for axis in AXES} if asked else {}
    absent = next((score.missing for score in scores.values() if isinstance(score, MissingScoreRecord)), None)
    reward = None
    if absent is None:
        reward = sum(score.value for score in scores.values() if isinstance(score, ScoreRecord)) / 3
    update = {
        "scores": scores,
        "second": second,
        "seconds": seconds,
        "judge_latency_s": 0.4 + 0.2 * seconds + rng.expovariate(2) + 6 * (rng.random() < 0.04),
        "reward": reward,
        "missing": absent,
        "advantage": None if reward is None else reward - 3.2,
        "dropped": None if absent is None else f"no reward: {absent}",
    }
    return RolloutRecord.model_validate(record.model_dump() | update)


def add_api_judges(run: Path, *, hostile: bool = True, every: int = 5) -> Path:
    """Rewrites the records and metrics of a run, adds its calls and canaries. ``hostile``: some names are."""
    rng = random.Random(1)
    calls: list[str] = []
    for path in list_rollout_files(run).values():
        records = [judged(record, rng) for record in read_rollouts(path).rows]
        if hostile:
            records[0] = named(records[0], XSS[0])
        write_lines(path, [record.model_dump_json() for record in records])
        calls += [call(model, axis, rng) for _ in records for axis in AXES for model in (MODEL, MODEL)]
        calls += [call(SECOND, axis, rng) for record in records if record.second for axis in AXES]
    calls += [call(MODEL, "semantic", rng, XSS[3])] if hostile else []
    write_lines(run / "judge_calls.jsonl", calls)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    totals = {"judge/requests": 0.0, "judge/spent": 0.0, "judge/breaker_open_s": 0.0}
    rows = [row | metrics(row["step"], totals, rng) for row in map(json.loads, lines)]
    write_lines(run / "metrics.jsonl", [json.dumps(row) for row in rows])
    steps = [0, *(row["step"] for row in rows if row["step"] % every == 0)]
    birds = [bird(step, axis, name, rng) for step in steps for name, axes in CANARIES.items() for axis in axes]
    if hostile:
        detail = {"name": XSS[1], "detail": XSS[2], "fate": "unknown", "value": None, "judge": XSS[4]}
        birds.append(birds[-1].model_copy(update=detail))
    write_lines(run / "canaries.jsonl", [line.model_dump_json() for line in birds])
    return run


def named(record: RolloutRecord, name: str) -> RolloutRecord:
    """With a judge, an axis and a kind of failure that are called like this."""
    bad: dict[str, VerdictRecord] = {
        name: ScoreRecord(value=3.0, judge=name, why=name),
        f"{name}2": MissingScoreRecord(missing=name, kind=name),
    }
    return record.model_copy(update={"scores": {**record.scores, **bad}, "second": {name: bad[name]}})


def metrics(step: int, totals: dict[str, float], rng: random.Random) -> dict[str, float]:
    """The judge/* figures of a step; the breaker opens twice."""
    outage = 5 <= step <= 6 or step == 14
    kinds = {f"judge/missing_{kind}": rng.random() / 25 for kind in FAILURES if rng.random() < 0.4}
    kinds["judge/missing_deadline"] = 0.04 + rng.random() / 20
    totals["judge/requests"] += 110 + rng.randint(0, 20)
    totals["judge/spent"] += 0.011 + rng.random() / 300
    totals["judge/breaker_open_s"] += rng.uniform(20, 40) if outage else 0.0
    return {
        **totals,
        **kinds,
        "judge/missing": sum(kinds.values()),
        "judge/cached": min(0.9, 0.05 + rng.random() / 8),
        "judge/latency_s": 1.9 + rng.random(),
        "judge/in_flight": float(rng.randint(2, 8)),
        "judge/waiting": float(rng.randint(0, 20)),
    }


def call(model: str, axis: str, rng: random.Random, name: str | None = None) -> str:
    """A line of judge_calls.jsonl."""
    kind = rng.choice(list(FAILURES)) if rng.random() < 0.05 else None
    attempts = 1 + (rng.random() < 0.08) + (rng.random() < 0.02)
    return json.dumps(
        {
            "time": 1.79e9,
            "judge": name or judge(axis, model),
            "model": name or model,
            "repeat": 0,
            "seconds": round(attempts * (0.5 + rng.expovariate(1.5)), 4),
            "kind": kind,
            "reason": FAILURES[kind] if kind else None,
            "text": None if kind else "4",
            "logprobs": None if kind else [[["4", -0.1], ["5", -2.4]]],
            "tokens": None if kind else [900, 3],
            "settings": {"temperature": 0},
            "texts": ["a rubric", "a transcript"],
            "audio": [{"sha256": "0" * 64, "seconds": 3.0, "sample_rate": 16000}],
            "attempts": attempts,
            "spent": 0.0 if kind else 1e-4 * (1 + rng.random()),
        }
    )


def bird(step: int, axis: str, name: str, rng: random.Random) -> CanaryRecord:
    """The acoustic judge comes to like volume; noise could not be judged the last time."""
    most = 2.0 if name != "louder copy" else 4.1
    value: float | None = 1.0 + abs(rng.gauss(0, 0.25)) + (2.9 if name == "louder copy" else 0.0)
    if (axis, name) == ("acoustic", "louder copy") and step >= 10:
        value = 4.7
    if (axis, name) == ("semantic", "plea") and step == 5:
        value = 3.1
    if (axis, name) == ("holistic", "noise") and step >= 20:
        value = None
    fate = "unknown" if value is None else "paid" if value > most else "passed"
    details = {
        "paid": f"{axis}/{name}: PAID with {value or 0:.2f}, at most {most:.2f} allowed",
        "passed": f"{axis}/{name}: passed with {value or 0:.2f}, at most {most:.2f} allowed",
        "unknown": f"{axis}/{name}: not judged (deadline: no whole answer within 60 s)",
    }
    return CanaryRecord.model_validate(
        {
            "step": step,
            "axis": axis,
            "name": name,
            "judge": judge(axis),
            "value": value,
            "most": most,
            "fate": fate,
            "detail": details[fate],
        }
    )
