"""The run directory: created once, appended to, cut back on resume; readable without this code (docs/design.md §4).

Invariant: after a resume from step k no metric, evaluation, held-out reply, sample, rollout, audio file or
checkpoint of a later step is left, so no step appears twice; events.jsonl tells all that happened and
loses no whole line.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from actors.collect import row_to_judge_task
from actors.errors import UserError
from actors.run import checkpoint
from actors.run.provenance import collect_versions
from conf.algorithm import AlgoConfig
from conf.load import dump_config
from conf.schema import Config
from judge.types import JudgeTask, MissingVerdict, Verdict
from learner.decide import ReplyGroup, StepDecision, reward_of
from learner.objectives import weigh_positions
from learner.rows import letters_to_channels
from learner.types import StepBatch, StepResult
from report.records import Event, MissingScoreRecord, RolloutRecord, ScoreRecord
from rollout.types import Reply, ReplyKey
from speech.data.manifest import ManifestRow
from store.files import write_atomically
from store.lines import append_json_line, keep_json_lines

TRUNCATION_ADVICE = (
    "raise rollout.max_new_tokens (model.max_length must hold prompt and reply), or first train on reference"
    " replies that fit (algo=sft)"
)


class RunDirectory:
    """Writes the files of one run.

    Example:
        run = RunDirectory.create(config)
        run.event("restart", "judge worker 0 replaced: died", step=3)
        run.append("metrics.jsonl", {"step": 1, "lambda": 0.2})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.step = 0  # for events
        self.on_event: Callable[[Event], None] = lambda event: None

    @classmethod
    def create(cls, config: Config) -> "RunDirectory":
        """A fresh directory; a name that is taken gets a number."""
        wanted = config.run.root / config.run.name
        path, number = wanted, 2
        while not _make_folder(path):
            path, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
        run = cls(path.absolute())
        run._describe(config)
        return run

    @classmethod
    def reopen(cls, path: Path, step: int) -> "RunDirectory":
        """An existing directory, as it is; ``discard_after`` cuts it once the run can go on from ``step``."""
        run = cls(path.absolute())
        checkpoint.remove_unfinished_snapshots(run.path)
        run.step = step
        return run

    def discard_after(self, step: int, config: Config, last_step_with_audio: int | None = None) -> None:
        """Forget everything after ``step``; from here on these settings hold.

        ``last_step_with_audio``: the last step whose replies were sampled already, and keep their audio.
        """
        self._remove_later_files(step, last_step_with_audio or step)
        self._describe(config)

    def _describe(self, config: Config) -> None:
        write_atomically(self.path / "config.yaml", dump_config(config))
        write_atomically(self.path / "versions.json", json.dumps(collect_versions(), indent=1) + "\n")

    def _remove_later_files(self, step: int, last_step_with_audio: int) -> None:
        def stays(line: Mapping[str, Any]) -> bool:
            return line.get("step", 0) <= step and line.get("when") != "after"

        def is_whole(line: Mapping[str, Any]) -> bool:
            """Whether an evaluation of this step, which is made again otherwise, came to its end."""
            file = heldout_file(line.get("split", "test"), line["when"], step)
            return line.get("step", 0) < step or (self.path / file).exists()

        for name in ("metrics.jsonl", "canaries.jsonl", "diagnostics.jsonl"):
            keep_json_lines(self.path / name, stays)
        for name in ("evaluations.jsonl", "samples.jsonl"):
            keep_json_lines(self.path / name, lambda line: stays(line) and is_whole(line))
        for entry in [*self.path.glob("rollouts/step_*"), *self.path.glob("audio/step_*")]:
            if int(entry.stem.removeprefix("step_")) > (last_step_with_audio if entry.is_dir() else step):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for file in self.path.glob("heldout/*.jsonl"):
            _, _, when = file.stem.partition("_")
            if when == "after" or (when.startswith("step_") and int(when.removeprefix("step_")) > step):
                file.unlink()
        for snapshot in checkpoint.list_snapshots(self.path):
            if snapshot.name > checkpoint.snapshot_folder(self.path, step).name:
                shutil.rmtree(snapshot)
        shutil.rmtree(self.path / "final", ignore_errors=True)

    def append(self, name: str, line: Mapping[str, Any] | BaseModel) -> None:
        """One line to a jsonl file."""
        append_json_line(self.path / name, line)

    def write(self, name: str, lines: Sequence[BaseModel]) -> None:
        """A whole jsonl file, or none of it."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, "".join(line.model_dump_json() + "\n" for line in lines))

    def event(self, kind: str, detail: str, **extra_fields: Any) -> None:
        """One event, with its reason, now."""
        self.on_event(self.record_event(kind, detail, **extra_fields))

    def record_event(self, kind: str, detail: str, **extra_fields: Any) -> Event:
        """The same without telling anybody."""
        event = Event(**{"time": time.time(), "kind": kind, "detail": detail, "step": self.step, **extra_fields})
        self.append("events.jsonl", event)
        return event

    def reply_audio_path(self, step: int, reply: Reply) -> Path:
        """Where a reply of a step keeps its audio."""
        return self.path / "audio" / f"step_{step:06d}" / f"{reply.prompt_id}_{reply.index}.ogg"

    def make_audio_lookup(self, step: int) -> Callable[[Reply], str | None]:
        """Reply -> its audio relative to the run directory, None when it was not kept."""

        def relative(reply: Reply) -> str | None:
            path = self.reply_audio_path(step, reply)
            return str(path.relative_to(self.path)) if path.exists() else None

        return relative


def _make_folder(path: Path) -> bool:
    """Whether the folder is new and now there. UserError: there can be none."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if path.is_dir():
            return False  # also where another run has just made it
        raise UserError(f"run.root: {path} cannot be made: it is a file") from None
    except OSError as error:
        raise UserError(f"run.root: {path} cannot be made: {error.strerror}") from error
    return True


def heldout_file(split: str, when: str, step: int) -> str:
    """Where an evaluation keeps its replies, relative to the run directory. Written last: where it is, the rest is."""
    return f"heldout/{split}_{f'step_{step:06d}' if when == 'during' else when}.jsonl"


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every n-th step (0: never) happens at this one."""
    return every > 0 and step % every == 0


def record_step(
    run: RunDirectory,
    step: int,
    rows: Sequence[ManifestRow],
    groups: Sequence[ReplyGroup],
    decision: StepDecision,
    result: StepResult,
    config: Config,
    metrics: Mapping[str, float],
) -> None:
    """Write a step's metrics, its drops with reasons and, every ``log.rollouts_every`` steps, replies."""
    run.append("metrics.jsonl", {name: value for name, value in metrics.items() if isfinite(value)})
    for reason, count in Counter(decision.dropped.values()).items():
        run.event("drop", reason, count=count)
    if are_all_truncated(groups):
        budget = f"rollout.max_new_tokens={config.rollout.max_new_tokens}"
        run.event("truncated", f"no reply came to its end within {budget}: {TRUNCATION_ADVICE}")
    if is_due(step, config.log.rollouts_every):
        tasks = {row.id: row_to_judge_task(row, config.data.train) for row in rows}
        for record in build_rollout_records(
            step, groups, tasks, decision, result, config.algo, run.make_audio_lookup(step)
        ):
            run.append(f"rollouts/step_{step:06d}.jsonl", record)


def are_all_truncated(groups: Sequence[ReplyGroup]) -> bool:
    """Whether replies were sampled, and every one used up its budget."""
    finishes = {reply.finish for group in groups for reply, _ in group.replies}
    return finishes == {"length"}


def build_rollout_records(
    step: int,
    groups: Sequence[ReplyGroup],
    tasks: Mapping[str, JudgeTask],
    decision: StepDecision,
    result: StepResult,
    algo: AlgoConfig,
    audio: Callable[[Reply], str | None],
) -> list[RolloutRecord]:
    """One record per reply, in group order. From these lambda and every advantage can be recomputed."""
    weights, advantages = _compute_token_weights(decision.batch, algo), decision.advantages
    records = []
    for place, group in enumerate(groups):
        for reply, judged in group.replies:
            key = reply.key
            task, advantage = tasks[reply.prompt_id], advantages.get(key)
            logps = result.learner_logps.get(key)
            records.append(
                RolloutRecord(
                    step=step,
                    prompt_id=reply.prompt_id,
                    group=place,
                    index=reply.index,
                    policy_version=reply.policy_version,
                    question=task.question,
                    expected=task.answer,
                    style=task.style,
                    prompt_ids=list(group.prompt.ids),
                    ids=list(reply.ids),
                    channels=reply.channels,
                    text=reply.text,
                    transcript=judged.transcript,
                    finish=reply.finish,
                    audio=audio(reply),
                    seconds=judged.figures.get("seconds"),
                    judge_latency_s=judged.figures.get("latency_s"),
                    scores={axis: verdict_to_score(verdict) for axis, verdict in judged.axes.items()},
                    second={axis: verdict_to_score(verdict) for axis, verdict in judged.second.items()},
                    reward=reward_of(judged),
                    missing=judged.reward.reason if isinstance(judged.reward, MissingVerdict) else None,
                    penalty=decision.penalties.get(key),
                    well_formed=reply.well_formed,
                    advantage=None if advantage is None else advantage.whole,
                    advantages=None if advantage is None or advantage.whole is not None else asdict(advantage),
                    weights=weights.get(key),
                    behaviour_logps=list(reply.logps),
                    learner_logps=None if logps is None else list(logps),
                    dropped=decision.dropped.get(key, None if decision.batch.weight else "lambda is 0"),
                )
            )
    return records


def _compute_token_weights(batch: StepBatch, algo: AlgoConfig) -> dict[ReplyKey, list[float | None]]:
    """Advantage times channel weight per token of each reply; of a pair, 1 or -1 times it."""
    if batch.weight == 0:
        return {}
    weights = {
        rollout.key: weigh_positions(rollout.reply, algo.preference)
        * rollout.advantage.per_position(letters_to_channels(rollout.reply.channels))
        for rollout in batch.rollouts
    }
    for pair in batch.pairs:
        for side, sign in ((pair.chosen, 1.0), (pair.rejected, -1.0)):
            weights[side.key] = weigh_positions(side.reply, algo.preference) * sign
    return {key: weight.tolist() for key, weight in weights.items() if key is not None}


def verdict_to_score(verdict: Verdict) -> ScoreRecord | MissingScoreRecord:
    """A verdict as the records have it."""
    if isinstance(verdict, MissingVerdict):
        return MissingScoreRecord(missing=verdict.reason, kind=verdict.kind)
    return ScoreRecord(
        value=verdict.value,
        spread=verdict.spread,
        judge=verdict.judge,
        why=verdict.why,
        cached=verdict.cached,
    )
