"""Small typed readers of a run directory that may be partial or still growing.

A file that is not there is a sentence, not an error: the page says what is missing. What holds of jsonl files
is in store/lines.py. Nothing here writes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from report.records import NullableNumber, RolloutRecord, VerdictRecord
from store.lines import JsonLines, format_first_problem, read_json_lines

MEDIA_TYPES = {".ogg": "audio/ogg", ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg"}
MAX_PAGE_CLIP_BYTES = 1_000_000  # bytes; a larger clip would eat the page

METRICS_ADAPTER = TypeAdapter(dict[str, NullableNumber])


@dataclass(frozen=True, slots=True)
class AudioClip:
    """One audio file as it is on disk."""

    media: str
    content: bytes


def read_metric_rows(path: Path) -> JsonLines[dict[str, float | None]]:
    """metrics.jsonl in order of steps. A step that was run again after a resume: the last line counts."""
    metric_lines = read_json_lines(path, METRICS_ADAPTER)
    by_step: dict[float, dict[str, float | None]] = {}
    for number, row in enumerate(metric_lines.rows, start=1):
        step = row.get("step")
        if step is None:
            raise ValueError(f"{path}:{number}: step: a metrics line must have a step")
        by_step[step] = row
    again = len(metric_lines.rows) - len(by_step)
    notes = [metric_lines.note] if metric_lines.note else []
    notes += [f"{again} steps were run again after a resume: the last run of a step is shown"] if again else []
    return JsonLines(tuple(by_step[step] for step in sorted(by_step)), "; ".join(notes) or None)


def list_rollout_files(run_dir: Path) -> dict[int, Path]:
    """Step -> its rollout file, in order of steps."""
    paths = (path for path in run_dir.glob("rollouts/step_*.jsonl") if path.stem[len("step_") :].isdecimal())
    return dict(sorted((int(path.stem[len("step_") :]), path) for path in paths))


def read_rollouts(path: Path) -> JsonLines[RolloutRecord]:
    """One step's replies, by group and index. A reply written twice: the last line counts."""
    record_lines = read_json_lines(path, TypeAdapter(RolloutRecord))
    unique = {(record.group, record.index): record for record in record_lines.rows}
    return JsonLines(tuple(unique[key] for key in sorted(unique)), record_lines.note)


class JudgedReply(BaseModel):
    """What the judges said, of a rollout record: without its tokens, so that many steps can be read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    prompt_id: str
    group: int
    index: int
    scores: dict[str, VerdictRecord]
    second: dict[str, VerdictRecord] = {}
    seconds: NullableNumber = None
    judge_latency_s: NullableNumber = None


def read_judged_replies(path: Path) -> JsonLines[JudgedReply]:
    """What the judges said about one step's replies, by group and index."""
    reply_lines = read_json_lines(path, TypeAdapter(JudgedReply))
    unique = {(reply.group, reply.index): reply for reply in reply_lines.rows}
    return JsonLines(tuple(unique[key] for key in sorted(unique)), reply_lines.note)


def read_clip(run_dir: Path, relative: str) -> AudioClip | str:
    """An audio file of the run, or why there is none. A link out of the run directory is not followed."""
    path = (run_dir / relative).resolve()
    if not path.is_relative_to(run_dir.resolve()):
        return f"{relative} leads out of the run directory"
    if path.suffix not in MEDIA_TYPES:
        return f"{relative} is not one of {', '.join(MEDIA_TYPES)}"
    if not path.is_file():
        return f"{relative} is not there"
    if path.stat().st_size > MAX_PAGE_CLIP_BYTES:
        return f"{relative} is too large for a page: {path.stat().st_size} bytes, more than {MAX_PAGE_CLIP_BYTES}"
    return AudioClip(MEDIA_TYPES[path.suffix], path.read_bytes())


class _LenientModel(BaseModel):
    """Only what the page shows: a config of another version must still be readable."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


ShownText = Annotated[str, BeforeValidator(str)]


class RunPart(_LenientModel):
    """config.yaml: run."""

    name: ShownText | None = None
    steps: int | None = None
    seed: ShownText | None = None
    staleness: ShownText | None = None


class ModelPart(_LenientModel):
    """config.yaml: model."""

    family: ShownText | None = None
    path: ShownText | None = None


class RolloutPart(_LenientModel):
    """config.yaml: rollout."""

    engine: ShownText | None = None
    prompts_per_step: ShownText | None = None
    group_size: ShownText | None = None


class JudgePart(_LenientModel):
    """config.yaml: judge."""

    scale_lo: float | None = None
    scale_hi: float | None = None


class AlgoPart(_LenientModel):
    """config.yaml: algo."""

    name: ShownText | None = None
    preference: dict[str, float] = {}

    @property
    def preferred(self) -> str | None:
        """The channels that carry the preference loss."""
        return ", ".join(name for name, weight in self.preference.items() if weight) or None


class RunConfigFile(_LenientModel):
    """config.yaml, as far as the page shows it; ``text`` is the whole file."""

    text: str = ""
    run: RunPart = RunPart()
    model: ModelPart = ModelPart()
    rollout: RolloutPart = RolloutPart()
    judge: JudgePart = JudgePart()
    algo: AlgoPart = AlgoPart()

    @property
    def scale(self) -> tuple[float, float] | None:
        """Of the scores, when the file tells both ends."""
        lo, hi = self.judge.scale_lo, self.judge.scale_hi
        return None if lo is None or hi is None else (lo, hi)


def read_run_config(run_dir: Path) -> RunConfigFile | None:
    """config.yaml; None when it is not there. ValueError: not YAML, or a shown field of the wrong type."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return RunConfigFile.model_validate({**(yaml.safe_load(text) or {}), "text": text})
    except ValidationError as error:
        raise ValueError(f"{path}: {format_first_problem(error)}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path}: must be a YAML mapping: {' '.join(str(error).split())}") from None


def read_versions(run_dir: Path) -> list[tuple[str, str]] | None:
    """versions.json as (dotted name, value); None when it is not there. ValueError: not a JSON object."""
    path = run_dir / "versions.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: must be JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object: got {type(content).__name__}")
    return [(name, "none" if value is None else str(value)) for name, value in flatten_mapping(content)]


def flatten_mapping(content: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of everything in nested mappings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten_mapping(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
