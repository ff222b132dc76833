"""One batch: rows -> replies, streamed -> verdicts as replies finish -> groups in a fixed order.

    encode -> generate ==reply==> judge (while the others are still being sampled) -> JudgedBatch

Invariant: a judged batch holds every (prompt, index) exactly once, in prompt order, whatever arrived first and
whichever worker died; a reply whose speech was lost with its worker is sampled again from its own seed.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.answer_pool import SpeechLost
from actors.errors import JudgeOutage, RunError, UserError
from actors.judge_pool import JudgePool
from actors.pool import RolloutPool
from conf.schema import Config
from judge.noise import add_judge_noise
from judge.types import JudgeTask, MissingVerdict, ReplyJudgement
from learner.decide import ReplyGroup
from rollout.request import example_to_prompt
from rollout.sampling import build_step_sampling
from rollout.types import Prompt, Reply, ReplyKey, Sampling
from speech.data.manifest import AUDIO_MARKER, ManifestRow
from speech.data.pairs import PairRow
from speech.dataset import Example, PairExample
from speech.sound.audio import resolve_inside

ReplyWithSpeech = tuple[Reply, list[Any]]  # a reply and, in a list, the reference to its speech

MAX_SAMPLING_ROUNDS = 8  # how often lost speech is sampled again before the run gives up


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedBatch:
    """Judged groups, in prompt order, and where the time went."""

    groups: tuple[ReplyGroup, ...]
    generate_s: float  # until the last reply arrived
    judge_s: float  # from then until the last verdict
    overlap_s: float = 0.0  # of ``generate_s``, in which verdicts were in the making

    @classmethod
    def without_replies(cls) -> "JudgedBatch":
        """Of a step that samples nothing."""
        return cls(groups=(), generate_s=0.0, judge_s=0.0)

    @property
    def replies(self) -> list[tuple[Reply, ReplyJudgement]]:
        """All replies, group by group."""
        return [pair for group in self.groups for pair in group.replies]

    def map_verdicts(self, change: Callable[[ReplyJudgement], ReplyJudgement]) -> "JudgedBatch":
        """The same replies with changed verdicts."""
        groups = [
            replace(group, replies=tuple((reply, change(judged)) for reply, judged in group.replies))
            for group in self.groups
        ]
        return replace(self, groups=tuple(groups))


def join_judged_batches(first: JudgedBatch, second: JudgedBatch) -> JudgedBatch:
    """Two judged batches, one after the other."""
    return JudgedBatch(
        groups=first.groups + second.groups,
        generate_s=first.generate_s + second.generate_s,
        judge_s=first.judge_s + second.judge_s,
        overlap_s=first.overlap_s + second.overlap_s,
    )


class _BusyClock:
    """Seconds in which at least one reply or group was being judged."""

    def __init__(self) -> None:
        self._running, self._since, self._seconds = 0, 0.0, 0.0

    def seconds(self) -> float:
        """As of now."""
        return self._seconds + (time.perf_counter() - self._since if self._running else 0.0)

    @contextmanager
    def count_as_busy(self) -> Iterator[None]:
        """While this is entered the clock runs, however many have entered it."""
        if not self._running:
            self._since = time.perf_counter()
        self._running += 1
        try:
            yield
        finally:
            self._seconds = self.seconds()
            self._since = time.perf_counter()
            self._running -= 1


def row_to_text_task(row: ManifestRow) -> JudgeTask:
    """What a reply to this row is held against, without the user's audio."""
    match, answer = (row.answer.match, row.answer.value) if row.answer else (None, None)
    return JudgeTask(task_type=row.task_type, question=row.question_text, match=match, answer=answer, style=row.style)


def row_to_judge_task(row: ManifestRow, manifest: Path) -> JudgeTask:
    """What a reply to this row of a manifest is held against."""
    first = len(row.audios) - row.messages[-1].content.count(AUDIO_MARKER)
    clips = tuple(resolve_inside(manifest.parent, clip) for entry in row.audios[first:] for clip in entry)
    return replace(row_to_text_task(row), user_audio=clips)


async def encode_rows(rollout: RolloutPool, manifest: Path, rows: Sequence[ManifestRow]) -> list[Example]:
    """Rows to ids, in order. UserError: a row that the model cannot express."""
    examples: list[Example] = await _ask_engine(rollout, "encode", manifest, rows)
    return examples


async def encode_pairs(rollout: RolloutPool, manifest: Path, rows: Sequence[PairRow]) -> list[PairExample]:
    """Pairs to ids, in order. UserError: a row that the model cannot express, or ids of another family."""
    pairs: list[PairExample] = await _ask_engine(rollout, "encode_pairs", manifest, rows)
    return pairs


async def _ask_engine(rollout: RolloutPool, how: str, manifest: Path, rows: Sequence[Any]) -> Any:
    try:
        return await rollout.ask_engine(how, manifest, list(rows))
    except ValueError as error:
        cause = getattr(error, "cause", None) or error
        raise UserError(f"{manifest}: {str(cause).splitlines()[-1]}") from error


async def sample_and_judge(
    rollout: RolloutPool,
    judges: JudgePool,
    prompts: Sequence[Prompt],
    tasks: Mapping[str, JudgeTask],
    sampling: Sampling,
    *,
    deadline: float,
    audio: Callable[[Reply], Path | None] = lambda reply: None,
    progress: Callable[[int, int], None] = lambda replies, tokens: None,
) -> JudgedBatch:
    """Sample and judge: each reply as it arrives or, where judges compare, each group when it is whole.

    ``audio``: where a reply keeps its sound; ``progress`` is told of each reply and its tokens.
    """
    size = sampling.group_size
    together = judges.together and size > 1  # one reply has nothing to be compared with
    start = last = time.perf_counter()
    judged_replies: dict[ReplyKey, tuple[Reply, ReplyJudgement]] = {}
    busy, overlap = _BusyClock(), 0.0

    async def judge(group: Sequence[ReplyWithSpeech]) -> None:
        with busy.count_as_busy(), suppress(SpeechLost):  # then they are sampled again
            verdicts = await _judge_replies(judges, group, tasks[group[0][0].prompt_id], audio, together)
            for (reply, _), judged in zip(group, verdicts, strict=True):
                judged_replies[reply.key] = (reply, judged)

    for _ in range(MAX_SAMPLING_ROUNDS):
        todo = [prompt for prompt in prompts if any((prompt.id, i) not in judged_replies for i in range(size))]
        if not todo:
            break
        gathered = _GroupCollector(size if together else 1)
        async with asyncio.TaskGroup() as running:
            async for reply, speech in rollout.generate(todo, sampling, deadline):
                last, overlap = time.perf_counter(), busy.seconds()
                progress(1, len(reply.ids))
                group = [] if reply.key in judged_replies else gathered.add(reply, speech)
                if group:
                    running.create_task(judge(group))
    else:
        raise RunError(f"speech of replies was lost {MAX_SAMPLING_ROUNDS} times in a row")
    groups = tuple(
        ReplyGroup(prompt=prompt, replies=tuple(judged_replies[prompt.id, i] for i in range(size)))
        for prompt in prompts
    )
    return JudgedBatch(groups=groups, generate_s=last - start, judge_s=time.perf_counter() - last, overlap_s=overlap)


async def sample_and_judge_step(
    rollout: RolloutPool,
    judges: JudgePool,
    config: Config,
    manifest: Path,
    rows: Sequence[ManifestRow],
    examples: Sequence[Example],
    step: int,
    *,
    audio: Callable[[Reply], Path | None],
    progress: Callable[[int, int], None],
) -> JudgedBatch:
    """Judged groups of these rows of a manifest, drawn as at ``step``, with ``judge.noise``."""
    sampling = build_step_sampling(config.rollout, config.run.seed, step)
    judged_batch = await sample_and_judge(
        rollout,
        judges,
        [example_to_prompt(example) for example in examples],
        {row.id: row_to_judge_task(row, manifest) for row in rows},
        sampling,
        deadline=config.rollout.deadline_s,
        audio=audio,
        progress=progress,
    )
    if not config.judge.noise:
        return judged_batch
    return judged_batch.map_verdicts(lambda judged: add_judge_noise(judged, config.judge, sampling.seed))


async def _judge_replies(
    judges: JudgePool,
    group: Sequence[ReplyWithSpeech],
    task: JudgeTask,
    audio: Callable[[Reply], Path | None],
    together: bool,
) -> list[ReplyJudgement]:
    """Verdicts on one reply, or on a whole group ``together``. SpeechLost: the worker that has the sound died."""
    replies, speeches = [reply for reply, _ in group], [speech for _, speech in group]
    paths = [audio(reply) for reply in replies]
    if together:
        return await judges.compare(replies, speeches, task, paths)
    return [await judges.score(replies[0], speeches[0], task, paths[0])]


class _GroupCollector:
    """Replies by prompt until ``size`` of one are there: what is judged at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: dict[str, dict[int, ReplyWithSpeech]] = defaultdict(dict)

    def add(self, reply: Reply, speech: list[Any]) -> list[ReplyWithSpeech]:
        """The prompt's replies in order, once the last has come; nothing before."""
        waiting = self._waiting[reply.prompt_id]
        waiting[reply.index] = (reply, speech)
        if len(waiting) < self._size:
            return []
        del self._waiting[reply.prompt_id]
        return [waiting[index] for index in sorted(waiting)]


def check_outage(judged: Sequence[ReplyJudgement], most: float) -> None:
    """JudgeOutage: more than a share ``most`` of the rewards is missing, or there will be no more."""
    for judgement in judged:
        if isinstance(judgement.reward, MissingVerdict) and judgement.reward.kind in ("spend_cap", "quota"):
            raise JudgeOutage(f"the judge can be asked no more: {judgement.reward.reason}")
    reasons = [judgement.reward.reason for judgement in judged if isinstance(judgement.reward, MissingVerdict)]
    if len(reasons) > most * len(judged):
        common = max(set(reasons), key=reasons.count)
        raise JudgeOutage(
            f"{len(reasons)} of {len(judged)} verdicts are missing, judge.max_missing={most:g} allows less; "
            f"most often: {common}"
        )
