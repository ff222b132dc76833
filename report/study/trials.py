"""What one finished run says about its method: held-out replies, curves, tokens, time. From its folder alone.

Invariant: a figure that the files do not tell is None. Nothing here writes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Literal

import yaml
from pydantic import TypeAdapter

from report.read import flatten_mapping, read_metric_rows, read_versions
from report.records import DiagnosisRecord, Evaluation, HeldOutReply
from report.run.curves import MetricColumn
from report.study.why import compute_why_figures
from store.lines import read_json_lines

RunSettings = Mapping[str, str]  # dotted key -> value as JSON
TestReplies = tuple[HeldOutReply, ...]

CODE_VERSION_KEYS = ("commit", "source")  # of versions.json: the code


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run. ``before``: the base's replies to the test prompts; ``after``: those of what was learnt."""

    run: Path
    settings: RunSettings
    versions: Mapping[str, str]  # of packages and code; empty: not told
    before: TestReplies
    after: TestReplies
    steps: tuple[float, ...]
    curves: Mapping[str, MetricColumn]  # "lambda" and "reward/mean", one value per step
    sampled: float | None  # tokens of all replies in training
    trained: float | None  # tokens that went through the learner, prompts included
    train_s: float | None
    evaluation_s: float | None
    why: Mapping[str, float]  # report/study/why.py

    @property
    def seed(self) -> int:
        """The run's own."""
        return int(self.settings["run.seed"])

    @property
    def prompts(self) -> tuple[str, ...]:
        """The ids of the test rows, in the manifest's order."""
        return tuple(reply.row_id for reply in self.after)

    @property
    def asked(self) -> tuple[tuple[str, str, str | None], ...]:
        """What is known of the test rows: no run keeps a hash of its manifest."""
        return tuple((reply.row_id, reply.task_type, reply.style) for reply in self.after)


def read_trial(run: Path) -> Trial:
    """ValueError: not the folder of a finished run with held-out replies, or a malformed file in it."""
    settings = read_settings(run)
    before, after = read_held_out_replies(run, "before"), read_held_out_replies(run, "after")
    if [reply.row_id for reply in before] != [reply.row_id for reply in after]:
        raise ValueError(f"{run}: heldout/test_before.jsonl and test_after.jsonl must have the same row_ids")
    metrics = read_metric_rows(run / "metrics.jsonl").rows
    evaluations = read_json_lines(run / "evaluations.jsonl", TypeAdapter(Evaluation)).rows
    known = [row for row in metrics if row["step"] is not None]
    speeds = [(row.get("rollout/tokens_per_s"), row.get("time/generate")) for row in known]
    return Trial(
        run=run,
        settings=settings,
        versions=dict(read_versions(run) or []),
        before=before,
        after=after,
        steps=tuple(step for row in known if (step := row["step"]) is not None),
        curves={name: [row.get(name) for row in known] for name in ("lambda", "reward/mean")},
        sampled=_sum_known([None if a is None or b is None else a * b for a, b in speeds]),
        trained=_sum_known([row.get("tokens") for row in known]),
        train_s=_sum_known([row.get("time/step") for row in known]),
        evaluation_s=_sum_known([evaluation.took_s for evaluation in evaluations]),
        why=compute_why_figures(read_json_lines(run / "diagnostics.jsonl", TypeAdapter(DiagnosisRecord)).rows, known),
    )


def is_finished(run: Path) -> bool:
    """Whether a run has come to its end: replies before and after, the model and the report are there."""
    files = ("heldout/test_before.jsonl", "heldout/test_after.jsonl", "report.html")
    return all((run / name).is_file() for name in files) and (run / "final").is_dir()


def read_settings(run: Path) -> dict[str, str]:
    """config.yaml as dotted keys. ValueError: not there, or not a mapping."""
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run}: not a run directory (no config.yaml)")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: must be YAML: {' '.join(str(error).split())}") from None
    settings = flatten_settings(content) if isinstance(content, dict) else {}
    if not settings.get("run.seed", "").isdecimal():
        raise ValueError(f"{path}: must be a configuration that a run wrote, with run.seed")
    return settings


def flatten_settings(content: Mapping[str, object]) -> dict[str, str]:
    """Dotted key -> value as JSON."""
    return {key: json.dumps(value, default=str) for key, value in flatten_mapping(content)}


def unquote_setting(value: str) -> str:
    """A setting's value as people write it: without the quotes of JSON."""
    loaded = json.loads(value)
    return loaded if isinstance(loaded, str) else value


def read_held_out_replies(run: Path, when: Literal["before", "after"]) -> TestReplies:
    """The replies to all test prompts. ValueError: not there, or not whole."""
    path = run / "heldout" / f"test_{when}.jsonl"
    if not path.is_file():
        why = "the run has not come to its end, or is of a version that did not keep held-out replies"
        raise ValueError(f"{run}: has no heldout/{path.name}: {why}")
    reply_lines = read_json_lines(path, TypeAdapter(HeldOutReply))
    if reply_lines.note:
        raise ValueError(f"{run}: {reply_lines.note}")
    return reply_lines.rows


def _sum_known(values: Sequence[float | None]) -> float | None:
    """Of what is told; None where nothing is."""
    known = [value for value in values if value is not None]
    return fsum(known) if known else None
