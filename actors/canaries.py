"""Replies that deserve nothing, put to the API judge before the first step and every so often.

Invariant: every check leaves a line per reply in canaries.jsonl; a judge that pays for one is an event, and
by ``judge.api.canary_stop`` the end of the run. Nothing of this is learnt from.
"""

from actors.collect import row_to_judge_task
from actors.context import RunContext
from actors.errors import CanaryPaid
from actors.run.record import is_due
from judge.llm.canary import CanaryResult
from judge.types import MissingVerdict
from speech.sound import audio

CANARIES_FILE = "canaries.jsonl"


class CanaryChecks:
    """The checks of a run. They are made of the first training row's reference reply.

    Example:
        await canaries.check(0)
    """

    def __init__(self, context: RunContext) -> None:
        job, self._run, self._fleet, self._monitor = context
        self._row, self._manifest, self._config = job.train[0], job.config.data.train, job.config.judge

    def is_due_at(self, step: int) -> bool:
        """Whether the judge is to be checked at this step."""
        return bool(self._config.api_axes) and is_due(step, self._config.api.canary_every)

    async def check(self, step: int) -> None:
        """Put canaries to the judge, if one is asked. CanaryPaid: it pays for one, and the settings say stop."""
        if not self._config.api_axes:
            return
        self._monitor.begin_phase("canaries")
        clips = [audio.resolve_inside(self._manifest.parent, clip) for clip in self._row.sft_target_audio]
        task = row_to_judge_task(self._row, self._manifest)
        results = await self._fleet.endpoints[0].canaries(task, self._row.sft_target_text, clips)
        for result in results:
            self._run.append(CANARIES_FILE, _result_to_line(step, result))
        paid = [result.describe() for result in results if result.paid]
        if paid:
            detail = f"the judge pays for replies that deserve nothing: {'; '.join(paid)}"
            self._run.event("canary", detail, count=len(paid))
            if self._config.api.canary_stop:
                raise CanaryPaid(f"{detail} (judge.api.canary_stop)")


def _result_to_line(step: int, result: CanaryResult) -> dict[str, object]:
    verdict = result.verdict
    return {
        "step": step,
        "axis": result.axis,
        "name": result.name,
        "judge": verdict.judge,
        "value": None if isinstance(verdict, MissingVerdict) else verdict.value,
        "most": result.most,
        "fate": "paid" if result.paid else "passed" if result.passed else "unknown",
        "detail": result.describe(),
    }
