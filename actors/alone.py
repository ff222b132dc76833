"""One checkpoint in this process, without Ray: ``wavgate say`` and ``wavgate eval``."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actors.errors import UserError
from conf.schema import Config
from report.records import Evaluation
from speech.checkpoint import step_of
from speech.manifest import Row

if TYPE_CHECKING:  # nothing heavy is imported until a command needs it
    from judge.types import Judged, Task
    from rollout.types import Prompt, Reply, Speech

OK, FAILED = 0, 1
SPEECH = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def say(prompt: str, out: Path, model: Path | None, overrides: Sequence[str] = ()) -> int:
    """One greedy reply, from one engine in this process; its words go to stdout, its sound to ``out``."""
    from actors.chosen_model import model_of
    from rollout.request import check_fits
    from rollout.sampling import greedy_sampling
    from rollout.types import Prompt
    from speech import audio
    from speech.dataset import Encoder
    from speech.families import load_family
    from speech.turns import Turn

    if not prompt.strip():
        raise UserError("prompt: must be words, or name a sound file: got nothing")
    if out.suffix.lower() not in audio.FORMATS:
        raise UserError(f"{out}: must end in one of {' '.join(audio.FORMATS)}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: no folder {out.absolute().parent}")
    config = model_of(model, overrides)
    family = load_family(config.model)
    try:
        if prompt.lower().endswith(SPEECH):
            file = Path(prompt)
            turn = Encoder(family, file.parent, config.data.max_seconds).turn("user", (file.name,))
        else:
            turn = Turn.of("user", prompt)
        encoded = family.prompt([turn])
        asked = Prompt(id="say", ids=encoded.ids, features=encoded.features)
        check_fits([asked], greedy_sampling(config.rollout), config.model.max_length)
    except ValueError as error:
        raise UserError(f"prompt: {error}") from error
    text, seconds = asyncio.run(_say(config, asked, out))
    print(text)
    if not seconds:
        print("no audio in the reply: nothing written", file=sys.stderr)
        return FAILED
    print(f"{out}: {seconds:.1f} s", file=sys.stderr)
    return OK


async def _say(config: Config, prompt: "Prompt", out: Path) -> tuple[str, float]:
    from rollout.sampling import greedy_sampling
    from rollout.worker import build_worker
    from speech import audio

    worker = build_worker(config, Path.cwd())
    sampling = greedy_sampling(config.rollout)
    try:
        async for reply, speech in worker.generate([prompt], sampling):
            if len(speech.wave):
                audio.write(out, speech.wave, speech.sample_rate)
            return reply.text, speech.seconds
    finally:
        worker.close()
    raise AssertionError("the engine gave no reply")


def evaluate(
    manifest: Path | None,
    model: Path | None,
    to: Path | None,
    limit: int | None,
    overrides: Sequence[str] = (),
) -> int:
    """Greedy replies of a checkpoint to a manifest, judged; a table, and JSON on request.

    In this process, without Ray.
    """
    from actors.chosen_model import model_of
    from actors.prepare import check_judge, unusable
    from speech.families import load_family
    from speech.manifest import ManifestError, read

    if limit is not None and limit < 1:
        raise UserError(f"--limit: must be at least 1: got {limit}")
    if to is not None and (to.is_dir() or not to.absolute().parent.is_dir()):
        raise UserError(f"--json: must be a file in a folder that is there: got {to}")
    config = model_of(model, overrides)
    check_judge(config)
    path = (manifest or config.data.test).absolute()
    rows = read(path, config.data.max_seconds)[:limit]
    if problems := list(unusable(rows, path, load_family(config.model), config)):
        raise ManifestError(problems)
    found = asyncio.run(_evaluate(config, path, rows))
    print(
        "\n".join(
            f"{name:<16} {_shown(value)}"
            for name, value in found.model_dump().items()
            if name not in ("split", "when", "by_task", "took_s")
        )
    )
    print("\n".join(f"  {name:<14} {_shown(value)}" for name, value in found.by_task.items()))
    if to is not None:
        to.write_text(found.model_dump_json(indent=1) + "\n")
    return OK


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


async def judge_of(config: Config, *, user_audio: bool) -> "Callable[[Reply, Speech, Task], Awaitable[Judged]]":
    """The judges of these settings in this process; ``user_audio``: some prompts were spoken.

    UserError: an API judge that is not usable.
    """
    from conf.endpoints import SecondConfig
    from judge.api import Access, api_panel, limits_of, probed
    from judge.limits import Limiter
    from judge.panel import panel_from

    judge = config.judge.model_copy(update={"second": SecondConfig()})  # nobody would look at its opinion
    where = (judge, Path.cwd(), config.model.path)
    try:
        if not judge.api_axes:
            panel = panel_from(*where)

            async def local(reply: "Reply", speech: "Speech", task: "Task") -> "Judged":
                return panel.score(reply, speech, task)

            return local
        found = await probed(judge, user_audio=user_audio)
        access = Access(judge=Limiter(limits_of(judge.api)), second=None)
        asked = api_panel(*where, found, access, log=None)
    except ValueError as error:
        raise UserError(f"judge: {error}") from error
    print(found.judge.describe(), file=sys.stderr)
    return asked.score


async def _evaluate(config: Config, manifest: Path, rows: Sequence[Row]) -> Evaluation:
    from actors.collect import Harvest, task_of
    from actors.decide import Group
    from actors.evaluate import summed_up
    from judge.types import Judged
    from rollout.request import prompt_of
    from rollout.sampling import greedy_sampling
    from rollout.types import Reply, Speech
    from rollout.worker import build_worker
    from speech.dataset import Encoder
    from speech.families import load_family
    from speech.manifest import asks_aloud

    encoder = Encoder(load_family(config.model), manifest.parent, config.data.max_seconds)
    prompts = [prompt_of(encoder.encode(row)) for row in rows]
    tasks = {row.id: task_of(row, manifest) for row in rows}
    scores = await judge_of(config, user_audio=asks_aloud(rows))
    judged: dict[str, tuple[Reply, Judged]] = {}

    async def score(reply: Reply, speech: Speech) -> None:
        judged[reply.prompt_id] = (reply, await scores(reply, speech, tasks[reply.prompt_id]))

    worker = build_worker(config, Path.cwd())
    sampling = greedy_sampling(config.rollout)
    try:
        async with asyncio.TaskGroup() as group:
            async for reply, speech in worker.generate(prompts, sampling):
                group.create_task(score(reply, speech))
    finally:
        worker.close()
    groups = tuple(Group(prompt=prompt, replies=(judged[prompt.id],)) for prompt in prompts)
    harvest, step = Harvest(groups=groups, generate_s=0.0, judge_s=0.0), step_of(config.model.path)
    return summed_up(rows, harvest, step=step, split="test", when="after" if step else "before")
