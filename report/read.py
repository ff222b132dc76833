"""Small typed readers of a run directory that may be partial or still growing.

A file that is not there is a sentence, not an error: the page says what is missing. The last line of a
jsonl file may be torn (the run is writing it): it is left out and said so. Any other bad line is a
ValueError that names file and line. Nothing here writes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from report.records import Number, RolloutRecord, Verdict

T = TypeVar("T")
MEDIA = {".ogg": "audio/ogg", ".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg"}
LARGEST_CLIP = 1_000_000  # bytes; a larger clip would eat the page

Metrics = TypeAdapter(dict[str, Number])


@dataclass(frozen=True, slots=True)
class Lines(Generic[T]):
    """What a jsonl file holds. ``note``: why something is not in ``rows``, for the reader of the page."""

    rows: tuple[T, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """One audio file as it is on disk."""

    media: str
    content: bytes


def lines(path: Path, kind: TypeAdapter[T]) -> Lines[T]:
    """Every line of a jsonl file. ValueError: a malformed line that is not the last one, as file:line."""
    if not path.is_file():
        return Lines((), f"{path.name} is not there")
    # Split at \n only: str.splitlines would also cut at U+2028 inside a JSON string.
    pieces = path.read_bytes().split(b"\n")
    pieces = pieces[:-1] if not pieces[-1] else pieces
    rows: list[T] = []
    for number, piece in enumerate(pieces, start=1):
        try:
            rows.append(kind.validate_json(piece))
        except ValidationError as error:
            if number == len(pieces):
                return Lines(tuple(rows), f"{path.name}: line {number}, the last, is left out: {_first(error)}")
            raise ValueError(f"{path}:{number}: {_first(error)}") from None
    return Lines(tuple(rows), None if rows else f"{path.name} is empty")


def _first(error: ValidationError) -> str:
    """The first problem in one line: field and rule."""
    problem = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    return f"{field}: {problem['msg']}" if field else problem["msg"]


def metric_rows(path: Path) -> Lines[dict[str, float | None]]:
    """metrics.jsonl in order of steps. A step that was run again after a resume: the last line counts."""
    found = lines(path, Metrics)
    by_step: dict[float, dict[str, float | None]] = {}
    for number, row in enumerate(found.rows, start=1):
        step = row.get("step")
        if step is None:
            raise ValueError(f"{path}:{number}: step: a metrics line must have a step")
        by_step[step] = row
    again = len(found.rows) - len(by_step)
    notes = [found.note] if found.note else []
    notes += [f"{again} steps were run again after a resume: the last run of a step is shown"] if again else []
    return Lines(tuple(by_step[step] for step in sorted(by_step)), "; ".join(notes) or None)


def rollout_files(run_dir: Path) -> dict[int, Path]:
    """Step -> its rollout file, in order of steps."""
    paths = (path for path in run_dir.glob("rollouts/step_*.jsonl") if path.stem[len("step_") :].isdecimal())
    return dict(sorted((int(path.stem[len("step_") :]), path) for path in paths))


def rollouts(path: Path) -> Lines[RolloutRecord]:
    """One step's replies, by group and index. A reply written twice: the last line counts."""
    found = lines(path, TypeAdapter(RolloutRecord))
    unique = {(record.group, record.index): record for record in found.rows}
    return Lines(tuple(unique[key] for key in sorted(unique)), found.note)


class JudgedReply(BaseModel):
    """What the judges said, of a rollout record: without its tokens, so that many steps can be read."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    prompt_id: str
    group: int
    index: int
    scores: dict[str, Verdict]
    second: dict[str, Verdict] = {}
    seconds: Number = None
    judge_latency_s: Number = None


def verdicts(path: Path) -> Lines[JudgedReply]:
    """What the judges said about one step's replies, by group and index."""
    found = lines(path, TypeAdapter(JudgedReply))
    unique = {(reply.group, reply.index): reply for reply in found.rows}
    return Lines(tuple(unique[key] for key in sorted(unique)), found.note)


def clip(run_dir: Path, relative: str) -> Clip | str:
    """An audio file of the run, or why there is none. A link out of the run directory is not followed."""
    path = (run_dir / relative).resolve()
    if not path.is_relative_to(run_dir.resolve()):
        return f"{relative} leads out of the run directory"
    if path.suffix not in MEDIA:
        return f"{relative} is not one of {', '.join(MEDIA)}"
    if not path.is_file():
        return f"{relative} is not there"
    if path.stat().st_size > LARGEST_CLIP:
        return f"{relative} is too large for a page: {path.stat().st_size} bytes, more than {LARGEST_CLIP}"
    return Clip(MEDIA[path.suffix], path.read_bytes())


class _Loose(BaseModel):
    """Only what the page shows: a config of another version must still be readable."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


Shown = Annotated[str, BeforeValidator(str)]


class RunPart(_Loose):
    """config.yaml: run."""

    name: Shown | None = None
    steps: int | None = None
    seed: Shown | None = None
    staleness: Shown | None = None


class ModelPart(_Loose):
    """config.yaml: model."""

    family: Shown | None = None
    path: Shown | None = None


class RolloutPart(_Loose):
    """config.yaml: rollout."""

    engine: Shown | None = None
    prompts_per_step: Shown | None = None
    group_size: Shown | None = None


class JudgePart(_Loose):
    """config.yaml: judge."""

    scale_lo: float | None = None
    scale_hi: float | None = None


class AlgoPart(_Loose):
    """config.yaml: algo."""

    name: Shown | None = None
    preference: dict[str, float] = {}

    @property
    def preferred(self) -> str | None:
        """The channels that carry the preference loss."""
        return ", ".join(name for name, weight in self.preference.items() if weight) or None


class RunConfigFile(_Loose):
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


def config(run_dir: Path) -> RunConfigFile | None:
    """config.yaml; None when it is not there. ValueError: not YAML, or a shown field of the wrong type."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        return RunConfigFile.model_validate({**(yaml.safe_load(text) or {}), "text": text})
    except ValidationError as error:
        raise ValueError(f"{path}: {_first(error)}") from None
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{path}: must be a YAML mapping: {' '.join(str(error).split())}") from None


def versions(run_dir: Path) -> list[tuple[str, str]] | None:
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
    return [(name, "none" if value is None else str(value)) for name, value in leaves(content)]


def leaves(content: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted name, value) of everything in nested mappings."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
