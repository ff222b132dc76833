"""One checkpoint in this process, without Ray: ``wavgate say`` and ``wavgate eval``."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.errors import UserError
from actors.exits import FAILED, OK
from conf.schema import Config
from report.records import Evaluation
from speech.checkpoints.folder import read_export_step
from speech.data.manifest import ManifestRow

if TYPE_CHECKING:  # nothing heavy is imported until a command needs it
    from judge.types import JudgeTask, ReplyJudgement
    from rollout.types import Prompt, Reply, Speech

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def write_spoken_reply(prompt: str, out: Path, model: Path | None, overrides: Sequence[str] = ()) -> int:
    """One greedy reply, from one engine in this process; its words go to stdout, its sound to ``out``."""
    from commands.chosen_model import load_model_config
    from rollout.request import check_prompts_fit
    from rollout.sampling import build_greedy_sampling
    from rollout.types import Prompt
    from speech.dataset import RowEncoder
    from speech.families import load_family
    from speech.sound import audio
    from speech.turns import Turn

    if not prompt.strip():
        raise UserError("prompt: must be words, or name a sound file: got nothing")
    if out.suffix.lower() not in audio.WRITE_FORMATS:
        raise UserError(f"{out}: must end in one of {' '.join(audio.WRITE_FORMATS)}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no folder {out.absolute().parent}")
    config = load_model_config(model, overrides)
    family = load_family(config.model)
    try:
        if prompt.lower().endswith(AUDIO_SUFFIXES):
            file = Path(prompt)
            turn = RowEncoder(family, file.parent, config.data.max_seconds).encode_turn("user", (file.name,))
        else:
            turn = Turn.from_parts("user", prompt)
        encoded = family.encode_prompt([turn])
        request = Prompt(id="say", ids=encoded.ids, features=encoded.features)
        check_prompts_fit([request], build_greedy_sampling(config.rollout), config.model.max_length)
    except ValueError as error:
        raise UserError(f"prompt: {error}") from error
    text, seconds = asyncio.run(_generate_reply(config, request, out))
    print(text)
    if not seconds:
        print("no audio in the reply: nothing written", file=sys.stderr)
        return FAILED
    print(f"{out}: {seconds:.1f} s", file=sys.stderr)
    return OK


async def _generate_reply(config: Config, prompt: "Prompt", out: Path) -> tuple[str, float]:
    from rollout.sampling import build_greedy_sampling
    from rollout.worker import build_rollout_worker
    from speech.sound import audio

    worker = build_rollout_worker(config, Path.cwd())
    sampling = build_greedy_sampling(config.rollout)
    try:
        async for reply, speech in worker.generate([prompt], sampling):
            if len(speech.wave):
                audio.write(out, speech.wave, speech.sample_rate)
            return reply.text, speech.seconds
    finally:
        worker.close()
    raise AssertionError("the engine gave no reply")


def evaluate_checkpoint(
    manifest: Path | None,
    model: Path | None,
    to: Path | None,
    limit: int | None,
    overrides: Sequence[str] = (),
) -> int:
    """Greedy replies of a checkpoint to a manifest, judged; a table, and JSON on request.

    In this process, without Ray.
    """
    from actors.checks.prepare import check_judge, find_unusable_rows
    from commands.chosen_model import load_model_config
    from speech.data.manifest import ManifestError, read_manifest
    from speech.families import load_family

    if limit is not None and limit < 1:
        raise UserError(f"--limit: must be at least 1: got {limit}")
    if to is not None and (to.is_dir() or to.is_fifo() or not to.absolute().parent.is_dir()):
        raise UserError(f"--json: must be a file in a folder that is there: got {to}")
    config = load_model_config(model, overrides)
    check_judge(config.judge)
    path = (manifest or config.data.test).absolute()
    rows = read_manifest(path, config.data.max_seconds)[:limit]
    if problems := list(find_unusable_rows(rows, path, load_family(config.model), config)):
        raise ManifestError(problems)
    evaluation = asyncio.run(_evaluate_rows(config, path, rows))
    print(
        "\n".join(
            f"{name:<16} {_format_figure(value)}"
            for name, value in evaluation.model_dump().items()
            if name not in ("split", "when", "by_task", "took_s")
        )
    )
    print("\n".join(f"  {name:<14} {_format_figure(value)}" for name, value in evaluation.by_task.items()))
    if to is not None:
        to.write_text(evaluation.model_dump_json(indent=1) + "\n")
    return OK


def _format_figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


async def build_in_process_judge(
    config: Config, *, user_audio: bool
) -> "Callable[[Reply, Speech, JudgeTask], Awaitable[ReplyJudgement]]":
    """The judges of these settings in this process; ``user_audio``: some prompts were spoken.

    UserError: an API judge that is not usable.
    """
    from judge.llm.build import build_api_panel, probe_endpoints
    from judge.panel import build_panel

    judge = config.without_second_opinion().judge
    folders = (judge, Path.cwd(), config.model.path)
    try:
        if not judge.api_axes:
            panel = build_panel(*folders)

            async def local(reply: "Reply", speech: "Speech", task: "JudgeTask") -> "ReplyJudgement":
                return panel.score(reply, speech, task)

            return local
        probe_result = await probe_endpoints(judge, user_audio=user_audio)
        api_panel = build_api_panel(*folders, probe_result, log=None)
    except ValueError as error:
        raise UserError(f"judge: {error}") from error
    print(probe_result.judge.describe(), file=sys.stderr)
    return api_panel.score


async def _evaluate_rows(config: Config, manifest: Path, rows: Sequence[ManifestRow]) -> Evaluation:
    from actors.collect import JudgedBatch, row_to_judge_task
    from actors.evaluate import summarise_evaluation
    from judge.types import ReplyJudgement
    from learner.decide import ReplyGroup
    from rollout.request import example_to_prompt
    from rollout.sampling import build_greedy_sampling
    from rollout.types import Reply, Speech
    from rollout.worker import build_rollout_worker
    from speech.data.manifest import has_spoken_question
    from speech.dataset import RowEncoder
    from speech.families import load_family

    encoder = RowEncoder(load_family(config.model), manifest.parent, config.data.max_seconds)
    prompts = [example_to_prompt(encoder.encode(row)) for row in rows]
    tasks = {row.id: row_to_judge_task(row, manifest) for row in rows}
    scores = await build_in_process_judge(config, user_audio=has_spoken_question(rows))
    judged: dict[str, tuple[Reply, ReplyJudgement]] = {}

    async def score(reply: Reply, speech: Speech) -> None:
        judged[reply.prompt_id] = (reply, await scores(reply, speech, tasks[reply.prompt_id]))

    worker = build_rollout_worker(config, Path.cwd())
    sampling = build_greedy_sampling(config.rollout)
    try:
        async with asyncio.TaskGroup() as group:
            async for reply, speech in worker.generate(prompts, sampling):
                group.create_task(score(reply, speech))
    finally:
        worker.close()
    groups = tuple(ReplyGroup(prompt=prompt, replies=(judged[prompt.id],)) for prompt in prompts)
    judged_batch, step = JudgedBatch(groups=groups, generate_s=0.0, judge_s=0.0), read_export_step(config.model.path)
    return summarise_evaluation(rows, judged_batch, step=step, split="test", when="after" if step else "before")
