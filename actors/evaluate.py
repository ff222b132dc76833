"""Held-out evaluation: one greedy reply per prompt, judged as in training, summed up. Draws nothing.

Greedy has no seed: the same weights give the same figures at any time of the run.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from actors.collect import JudgedBatch, check_outage, encode_rows, row_to_judge_task, sample_and_judge
from actors.context import RunContext
from actors.judge_pool import JudgePool
from actors.pool import RolloutPool
from actors.run.metrics import mean_or_none
from actors.run.record import heldout_file, verdict_to_score
from conf.schema import RolloutConfig
from judge.types import JudgeTask, MissingVerdict, ReplyJudgement
from learner.decide import reward_of
from report.records import Evaluation, HeldOutReply, Sample
from rollout.request import example_to_prompt
from rollout.sampling import build_greedy_sampling
from rollout.types import Reply
from speech.data.manifest import ManifestRow
from speech.dataset import Example

EvaluationStage = Literal["before", "during", "after"]
HeldOutSplit = Literal["test", "validation"]
MAX_LISTENING_SAMPLES = 12  # held-out replies that keep their audio


class HeldOutEvaluator:
    """The held-out prompts of a run, encoded once.

    Example:
        await held_out.evaluate("test", "before", 0)
    """

    def __init__(self, context: RunContext) -> None:
        job, self._run, self._fleet, self._monitor = context
        self._config = job.config
        self._rows: dict[HeldOutSplit, tuple[ManifestRow, ...]] = {"test": job.test, "validation": job.validation}
        self._manifest: dict[HeldOutSplit, Path] = {
            "test": job.config.data.test,
            "validation": job.config.data.validation,
        }
        self._examples: dict[HeldOutSplit, list[Example]] = {}

    def is_done(self, split: HeldOutSplit, when: EvaluationStage, step: int) -> bool:
        """Whether this evaluation is in the run directory already."""
        return (self._run.path / heldout_file(split, when, step)).exists()

    async def evaluate(self, split: HeldOutSplit, when: EvaluationStage, step: int) -> Evaluation:
        """Evaluate; write heldout/ with a line per prompt, one line of evaluations.jsonl and, for the test
        set, the replies to listen to.

        JudgeOutage: too few verdicts to speak of a figure.
        """
        rows, folder = self._rows[split], self._run.path / "samples"
        self._monitor.begin_phase(f"read {split}")
        if split not in self._examples:
            self._examples[split] = await encode_rows(self._fleet.rollout, self._manifest[split], rows)
        chosen = choose_listening_prompts(rows) if split == "test" and when != "during" else []
        self._monitor.begin_phase(f"evaluate {split}", total=len(rows))
        batch = await judge_greedy_replies(
            self._fleet.rollout,
            self._fleet.judges,
            {row.id: row_to_judge_task(row, self._manifest[split]) for row in rows},
            self._examples[split],
            self._config.rollout,
            audio=lambda reply: folder / f"{when}_{reply.prompt_id}.ogg" if reply.prompt_id in chosen else None,
            progress=self._monitor.tick,
        )
        check_outage([judgement for _, judgement in batch.replies], self._config.judge.max_missing)
        evaluation = summarise_evaluation(rows, batch, step=step, split=split, when=when)
        records = [
            build_held_out_record(evaluation, row, *pair) for row, pair in zip(rows, batch.replies, strict=True)
        ]
        self._run.append("evaluations.jsonl", evaluation)
        for sample in build_listening_samples(rows, batch, chosen, when, folder) if when != "during" else ():
            self._run.append("samples.jsonl", sample)
        self._run.write(heldout_file(split, when, step), records)  # last: it says that all is there
        self._monitor.say(_format_evaluation(evaluation, batch))
        return evaluation


def _format_evaluation(evaluation: Evaluation, batch: JudgedBatch) -> str:
    shown = (
        ("right as heard", evaluation.heard_right),
        ("in text", evaluation.text_right),
        ("style", evaluation.style_followed),
        ("WER", evaluation.wer),
    )
    figures = "  ".join(f"{name} {value:.1%}" for name, value in shown if value is not None)
    took = f"({evaluation.count} prompts, {batch.generate_s + batch.judge_s:.1f} s)"
    return f"{evaluation.split} {evaluation.when} step {evaluation.step}: {figures}  {took}"


def choose_listening_prompts(rows: Sequence[ManifestRow]) -> list[str]:
    """Ids of the prompts whose replies can be heard in the report: spread evenly over the file."""
    count = min(MAX_LISTENING_SAMPLES, len(rows))
    return [rows[i * len(rows) // count].id for i in range(count)]


async def judge_greedy_replies(
    rollout: RolloutPool,
    judges: JudgePool,
    tasks: Mapping[str, JudgeTask],
    examples: Sequence[Example],
    config: RolloutConfig,
    audio: Callable[[Reply], Path | None] = lambda reply: None,
    progress: Callable[[int, int], None] = lambda replies, tokens: None,
) -> JudgedBatch:
    """One judged greedy reply per row."""
    prompts = [example_to_prompt(example) for example in examples]
    return await sample_and_judge(
        rollout,
        judges,
        prompts,
        tasks,
        build_greedy_sampling(config),
        deadline=config.deadline_s,
        audio=audio,
        progress=progress,
    )


def summarise_evaluation(
    rows: Sequence[ManifestRow], batch: JudgedBatch, *, step: int, split: HeldOutSplit, when: EvaluationStage
) -> Evaluation:
    """The figures of an evaluation. A share is over the replies that have the figure; null when none has."""
    judged = [judgement for _, judgement in batch.replies]
    types = sorted({row.task_type for row in rows})
    of_type = {kind: [j for row, j in zip(rows, judged, strict=True) if row.task_type == kind] for kind in types}
    return Evaluation(
        step=step,
        split=split,
        when=when,
        count=len(rows),
        heard_right=_average_figure(judged, "heard_right"),
        text_right=_average_figure(judged, "text_right"),
        style_followed=_average_figure(judged, "style_followed"),
        wer=_average_figure(judged, "wer"),
        reward=mean_or_none([reward for reward in map(reward_of, judged) if reward is not None]),
        seconds=_average_figure(judged, "seconds"),
        truncated=mean_or_none([float(reply.finish == "length") for reply, _ in batch.replies]),
        well_formed=mean_or_none([float(reply.well_formed) for reply, _ in batch.replies]),
        by_task={kind: _average_figure(group, "heard_right") for kind, group in of_type.items()},
        took_s=batch.generate_s + batch.judge_s or None,  # a batch that nobody timed has 0
    )


def build_held_out_record(of: Evaluation, row: ManifestRow, reply: Reply, judged: ReplyJudgement) -> HeldOutReply:
    """One prompt's line of an evaluation."""
    return HeldOutReply(
        split=of.split,
        when=of.when,
        step=of.step,
        row_id=row.id,
        task_type=row.task_type,
        style=row.style,
        text=reply.text,
        transcript=judged.transcript,
        finish=reply.finish,
        well_formed=reply.well_formed,
        seconds=judged.figures.get("seconds"),
        codes=[id for id, channel in zip(reply.ids, reply.channels, strict=True) if channel == "A"],
        scores={axis: verdict_to_score(verdict) for axis, verdict in judged.axes.items()},
        reward=reward_of(judged),
        missing=judged.reward.reason if isinstance(judged.reward, MissingVerdict) else None,
        figures=dict(judged.figures),
    )


def build_listening_samples(
    rows: Sequence[ManifestRow],
    batch: JudgedBatch,
    chosen: Sequence[str],
    when: Literal["before", "after"],
    folder: Path,
) -> list[Sample]:
    """The chosen replies, to listen to."""
    samples = []
    for row, (reply, judged) in zip(rows, batch.replies, strict=True):
        if row.id not in chosen:
            continue
        file = folder / f"{when}_{row.id}.ogg"
        right = judged.figures.get("heard_right")
        samples.append(
            Sample(
                when=when,
                row_id=row.id,
                question=row.question_text,
                expected=row.answer.value if row.answer else None,
                style=row.style,
                text=reply.text,
                transcript=judged.transcript,
                right=None if right is None else bool(right),
                audio=f"{folder.name}/{file.name}" if file.exists() else None,
            )
        )
    return samples


def _average_figure(judged: Sequence[ReplyJudgement], name: str) -> float | None:
    return mean_or_none([judgement.figures[name] for judgement in judged if name in judgement.figures])
