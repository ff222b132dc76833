"""What everything that happens within a run is given: what to do, where it is kept, who does it, who watches."""

from typing import NamedTuple

from actors.checks.prepare import Job
from actors.fleet import Fleet
from actors.run.monitor import Monitor
from actors.run.record import RunDirectory


class RunContext(NamedTuple):
    """One run, from its start to its end."""

    job: Job
    run: RunDirectory
    fleet: Fleet
    monitor: Monitor
