"""What can stop a run: the user's mistakes, and infrastructure whose budget is spent. One line each."""


class UserError(ValueError):
    """A setting, file or checkpoint that cannot be used. Exit 2, one line, nothing written."""


class RunError(RuntimeError):
    """The run cannot go on. Exit 1, one line, which leaves how to go on to ``actors.launch``: it knows whether
    there is a checkpoint.
    """


class RestartBudgetSpent(RunError):
    """A worker was replaced as often as ``cluster.restarts`` allows, and failed again."""


class LearnerFailed(RunError):
    """A learner rank died or did not answer in time: the group cannot go on."""


class JudgeOutage(RunError):
    """A larger share of verdicts is missing than ``judge.max_missing`` allows."""


class CanaryPaid(RunError):
    """The judge pays for replies that deserve nothing."""


class WeightSyncFailed(RunError):
    """Learner and engine do not agree on the policy version."""


def describe_error(error: BaseException, deadline: float | None = None) -> str:
    """An error on one line: the cause that a Ray error carries, without its traceback; a group's first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "no answer in time" if deadline is None else f"not finished within {deadline:g} s"
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:400]
