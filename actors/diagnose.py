"""Diagnoses: the learner looks at itself at step 1 and every ``log.diagnose_every`` steps, before the update.

Invariant: every look leaves one line in diagnostics.jsonl and its figures in the step's metrics; a step that
was interrupted leaves neither. Nothing of this is learnt from.
"""

import time
from dataclasses import asdict

from actors.context import RunContext
from actors.run.record import is_due
from learner.diagnosis import PolicyDiagnosis
from learner.types import StepBatch
from report import records

DIAGNOSTICS_FILE = "diagnostics.jsonl"


class DiagnosticsRecorder:
    """The diagnoses of a run.

    Example:
        times["time/diagnose"] = await diagnoses.diagnose_if_due(decision.batch)
        ...  # the step
        metrics |= diagnoses.record(step)
    """

    def __init__(self, context: RunContext) -> None:
        job, self._run, self._fleet, self._monitor = context
        self._every = job.config.log.diagnose_every
        self._taken: dict[int, PolicyDiagnosis] = {}  # of a step that is not recorded yet

    def is_due_at(self, step: int) -> bool:
        """Whether there is a diagnosis at this step. The first one shows the start policy itself."""
        return self._every > 0 and (step == 1 or is_due(step, self._every))

    async def diagnose_if_due(self, batch: StepBatch) -> float:
        """Look at the policy that is about to learn from this batch, if it is time; the seconds it took."""
        if not self.is_due_at(batch.step):
            return 0.0
        self._monitor.begin_phase("diagnose")
        start = time.perf_counter()
        self._taken = {batch.step: await self._fleet.learner.diagnose(batch)}
        return time.perf_counter() - start

    def record(self, step: int) -> dict[str, float]:
        """Write down what was found at this step; its metrics."""
        diagnosis = self._taken.pop(step, None)
        if diagnosis is None:
            return {}
        self._run.append(DIAGNOSTICS_FILE, records.DiagnosisRecord.model_validate({"step": step, **asdict(diagnosis)}))
        return diagnosis.metrics()
