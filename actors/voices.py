"""The voice of a policy, measured on the start policy's own replies before anything is judged.

Invariant: a run has one voice, that of its start: it is kept in voice.json before the first verdict and the
driver of a resumed run reads it again. Judges have it from the driver alone, for on a shared folder another
node may not see a new file for a while. Where it cannot be had, an acoustic axis that counts is refused.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from actors.collect import encode
from actors.errors import RunError
from actors.fleet import Fleet
from conf.judging import JudgeConfig
from conf.schema import Config
from judge.voice import FEWEST, TRIED, UNKNOWN, VoiceSample, fitted, keep, norms_of
from rollout.request import prompt_of
from rollout.sampling import greedy_sampling
from speech.manifest import Row


def is_needed(judge: JudgeConfig) -> bool:
    """Whether a reward rests on how the voice speaks when nothing is asked of it."""
    paced = any(rule.measure == "pace" for rule in judge.vetoes)
    return paced or (judge.acoustic > 0 and judge.acoustic_by == "local")


async def measure_voice(fleet: Fleet, config: Config, manifest: Path, rows: Sequence[Row], run: Path) -> str | None:
    """Measure it where it is not known, keep it and tell the judges.

    ``rows``: of which those that ask for no style are tried. Returns what there is to say of it; None: it was
    known already. RunError: it is needed and cannot be measured.
    """
    known = norms_of(config.model.path, run)
    if known is not None:
        await fleet.judges.know_voice(known)
        return None
    asked = [row for row in rows[: 4 * TRIED] if row.style is None][:TRIED]
    samples = await _samples(fleet, config, manifest, asked) if asked else []
    norms = fitted(samples)
    if norms is None:
        count = f"{len(samples)} of {len(asked)} replies of the start policy end by themselves and say words"
        if is_needed(config.judge):
            raise RunError(f"judge.acoustic: {count}, {FEWEST} are needed to measure its voice; {UNKNOWN}")
        return f"the voice was not measured: {count}"
    keep(norms, run)
    await fleet.judges.know_voice(norms)
    pace = f"{norms.seconds_per_word:.3f} s a word + {norms.seconds_per_letter:.3f} s a letter"
    return f"the voice, measured on {len(samples)} replies: {pace}, {norms.level_dbfs:.1f} dBFS (voice.json)"


async def _samples(fleet: Fleet, config: Config, manifest: Path, rows: Sequence[Row]) -> list[VoiceSample]:
    prompts = [prompt_of(example) for example in await encode(fleet.rollout, manifest, rows)]
    looks: list[asyncio.Task[VoiceSample | None]] = []
    async with asyncio.TaskGroup() as group:
        replies = fleet.rollout.generate(prompts, greedy_sampling(config.rollout), config.rollout.deadline_s)
        async for reply, speech in replies:
            if reply.finish == "stop":
                looks.append(group.create_task(fleet.judges.sample(reply, speech)))
    return [sample for look in looks if (sample := look.result()) is not None]
