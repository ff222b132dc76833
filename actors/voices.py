"""The voice of a policy, measured on the start policy's own replies before anything is judged.

Invariant: a run has one voice, that of its start: it is kept in voice.json before the first verdict and the
driver of a resumed run reads it again. Judges have it from the driver alone, for on a shared folder another
node may not see a new file for a while. Where it cannot be had, an acoustic axis that counts is refused.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from actors.collect import encode_rows
from actors.errors import RunError
from actors.fleet import Fleet
from conf.judging import JudgeConfig
from conf.schema import Config, RolloutConfig
from judge.rules.voice import (
    MAX_VOICE_REPLIES,
    MIN_VOICE_REPLIES,
    UNKNOWN_VOICE_REASON,
    VoiceSample,
    find_voice_norms,
    fit_voice_norms,
    save_voice_norms,
)
from rollout.request import example_to_prompt
from rollout.sampling import build_greedy_sampling
from speech.data.manifest import ManifestRow


def is_voice_needed(judge: JudgeConfig) -> bool:
    """Whether a reward rests on how the voice speaks when nothing is asked of it."""
    paced = any(rule.measure == "pace" for rule in judge.vetoes)
    return paced or (judge.acoustic > 0 and judge.acoustic_by == "local")


async def measure_voice(
    fleet: Fleet, config: Config, manifest: Path, rows: Sequence[ManifestRow], run: Path
) -> str | None:
    """Measure it where it is not known, keep it and tell the judges.

    ``rows``: of which those that ask for no style are tried. Returns what there is to say of it; None: it was
    known already. RunError: it is needed and cannot be measured.
    """
    known = find_voice_norms(config.model.path, run)
    if known is not None:
        await fleet.judges.know_voice(known)
        return None
    unstyled = [row for row in rows[: 4 * MAX_VOICE_REPLIES] if row.style is None][:MAX_VOICE_REPLIES]
    samples = await _collect_voice_samples(fleet, config.rollout, manifest, unstyled) if unstyled else []
    norms = fit_voice_norms(samples)
    if norms is None:
        count = f"{len(samples)} of {len(unstyled)} replies of the start policy end by themselves and say words"
        if is_voice_needed(config.judge):
            raise RunError(
                f"judge.acoustic: {count}, {MIN_VOICE_REPLIES} are needed to measure its voice; {UNKNOWN_VOICE_REASON}"
            )
        return f"the voice was not measured: {count}"
    save_voice_norms(norms, run)
    await fleet.judges.know_voice(norms)
    pace = f"{norms.seconds_per_word:.3f} s a word + {norms.seconds_per_letter:.3f} s a letter"
    return f"the voice, measured on {len(samples)} replies: {pace}, {norms.level_dbfs:.1f} dBFS (voice.json)"


async def _collect_voice_samples(
    fleet: Fleet, config: RolloutConfig, manifest: Path, rows: Sequence[ManifestRow]
) -> list[VoiceSample]:
    prompts = [example_to_prompt(example) for example in await encode_rows(fleet.rollout, manifest, rows)]
    looks: list[asyncio.Task[VoiceSample | None]] = []
    async with asyncio.TaskGroup() as group:
        replies = fleet.rollout.generate(prompts, build_greedy_sampling(config), config.deadline_s)
        async for reply, speech in replies:
            if reply.finish == "stop":
                looks.append(group.create_task(fleet.judges.sample_voice(reply, speech)))
    return [sample for look in looks if (sample := look.result()) is not None]
