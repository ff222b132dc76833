"""Admission: how far generation may run ahead of learning, as one inequality.

    accepted + running <= (S + step) * B

``step`` is the step being learnt (1 is the first), B the prompts of a step, S the allowed staleness.
S=0: a batch is admitted only when its own step begins, so every reply is exactly on-policy.
S=1: the next batch is admitted while this one is learnt. Counters only; no reply lives here.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class AdmissionControl:
    """Counts prompts admitted since the start of the run.

    Example:
        admission = AdmissionControl(staleness=0, batch=16)
        if admission.admits(step):
            admission.start()   # before the batch is sampled
            ...
            admission.finish()  # when all its replies are judged
    """

    staleness: int
    batch: int
    accepted: int = 0
    running: int = 0

    def remaining_prompts(self, step: int) -> int:
        """Prompts that may still be admitted while ``step`` is the step being learnt."""
        return (self.staleness + step) * self.batch - self.accepted - self.running

    def admits(self, step: int) -> bool:
        """Whether one more batch may start."""
        return self.remaining_prompts(step) >= self.batch

    def start(self) -> None:
        """One batch starts to run."""
        self.running += self.batch

    def finish(self) -> None:
        """One running batch is complete."""
        assert self.running >= self.batch, (self.running, self.batch)
        self.running -= self.batch
        self.accepted += self.batch

    def resume_at(self, step: int) -> None:
        """Count the batches of the steps up to ``step`` as accepted; nothing runs."""
        self.accepted, self.running = step * self.batch, 0
