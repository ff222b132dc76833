"""Replies that deserve nothing, put to the API judge before the first step and every so often.

Invariant: every check leaves a line per reply in canaries.jsonl; a judge that pays for one is an event, and
by ``judge.api.canary_stop`` the end of the run. Nothing of this is learnt from.
"""

from actors.collect import task_of
from actors.errors import JudgePays
from actors.fleet import Fleet
from actors.monitor import Monitor
from actors.prepare import Job
from actors.record import RunDirectory, due
from judge.canary import CanaryResult
from judge.types import Missing
from speech import audio

FILE = "canaries.jsonl"


class Canaries:
    """The checks of a run. They are made of the first training row's reference reply.

    Example:
        await canaries.check(0)
    """

    def __init__(self, job: Job, run: RunDirectory, fleet: Fleet, monitor: Monitor) -> None:
        self._row, self._manifest, self._config = job.train[0], job.config.data.train, job.config.judge
        self._run, self._fleet, self._monitor = run, fleet, monitor

    def due(self, step: int) -> bool:
        """Whether the judge is to be checked at this step."""
        return bool(self._config.api_axes) and due(step, self._config.api.canary_every)

    async def check(self, step: int) -> None:
        """Put them to the judge, if there is one. JudgePays: it pays, and the settings say stop."""
        if not self._config.api_axes:
            return
        self._monitor.phase("canaries")
        clips = [audio.inside(self._manifest.parent, clip) for clip in self._row.sft_target_audio]
        task = task_of(self._row, self._manifest)
        found = await self._fleet.judges.canaries(task, self._row.sft_target_text, clips)
        for result in found:
            self._run.append(FILE, _line(step, result))
        paid = [result.describe() for result in found if result.paid]
        if paid:
            detail = f"the judge pays for replies that deserve nothing: {'; '.join(paid)}"
            self._run.event("canary", detail, count=len(paid))
            if self._config.api.canary_stop:
                raise JudgePays(f"{detail} (judge.api.canary_stop)")


def _line(step: int, result: CanaryResult) -> dict[str, object]:
    verdict = result.verdict
    return {
        "step": step,
        "axis": result.axis,
        "name": result.name,
        "judge": verdict.judge,
        "value": None if isinstance(verdict, Missing) else verdict.value,
        "most": result.most,
        "fate": "paid" if result.paid else "passed" if result.passed else "unknown",
        "detail": result.describe(),
    }
