"""What the judges' endpoints can do, asked before anything starts."""

import asyncio
from collections.abc import Iterable

from actors.errors import UserError
from conf.judging import JudgeConfig
from judge.llm.build import ProbedEndpoints, probe_endpoints
from speech.data.manifest import ManifestRow, has_spoken_question


def probe_for_run(config: JudgeConfig, group_size: int, rows: Iterable[ManifestRow]) -> ProbedEndpoints | None:
    """What the endpoints can do of what a run on these rows will ask; else as ``probe_judge``."""
    return probe_judge(config, group_size, user_audio=config.holistic > 0 and has_spoken_question(rows))


def probe_judge(config: JudgeConfig, group_size: int = 1, *, user_audio: bool = True) -> ProbedEndpoints | None:
    """What the endpoints can do, asked before anything starts; None: no axis is judged by api.

    ``group_size``, ``user_audio``: as in ``judge.llm.build.probe_endpoints``. UserError: one does not answer, or
    cannot do what the axes need, or the calibration is not for it.
    """
    if not config.api_axes:
        return None
    try:
        return asyncio.run(probe_endpoints(config, group_size, user_audio=user_audio))
    except ValueError as error:
        raise UserError(f"judge.api: {error}") from error
