"""A prepared job, run to its end in this process: its folder taken, its judge probed, Ray up and down again.

Invariant: nobody else works in the run directory meanwhile, and however it ends it says how to go on.
"""

import asyncio
import shlex
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from actors.checks.endpoints import probe_for_run
from actors.checks.prepare import Job
from actors.cluster import Cluster
from actors.context import RunContext
from actors.fleet import Fleet
from actors.loop import Driver
from actors.run import checkpoint
from actors.run.interrupt import interrupt_on_termination, run_until_terminated
from actors.run.lock import lock_folder
from actors.run.monitor import Monitor
from actors.run.record import RunDirectory
from actors.run.terminal import call_when_output_lost
from judge.llm.build import ProbedEndpoints
from report.run import page


def run_job(job: Job) -> RunDirectory:
    """Run a prepared job to its end, in this process, on Ray.

    KeyboardInterrupt, with how to go on, after the checkpoint is written. UserError: the API judge is not
    usable, or somebody else is at work in the run directory.
    """
    with interrupt_on_termination(), ExitStack() as resources:
        if job.snapshot is not None:
            _lock_run_directory(resources, job.config.run.root / job.config.run.name)
            checkpoint.check_still_newest(job.snapshot[0])
        probed = probe_for_run(
            job.config.judge, job.config.rollout.group_size, chain(job.train, job.validation, job.test)
        )
        print("starting Ray" if job.config.cluster.address == "local" else "joining Ray", flush=True)
        cluster = Cluster(job.config.cluster, job.layout)  # before anything is written
        try:
            return _run_on_cluster(cluster, job, probed, resources)
        finally:
            cluster.close(logs=None)  # where nothing was written yet; else it is closed already


def _lock_run_directory(resources: ExitStack, path: Path) -> None:
    """Nobody else may run in this folder until ``resources`` is closed."""
    resources.enter_context(lock_folder(path, "a run"))


def _run_on_cluster(cluster: Cluster, job: Job, probed: ProbedEndpoints | None, resources: ExitStack) -> RunDirectory:
    if job.snapshot is None:
        directory = RunDirectory.create(job.config)
        _lock_run_directory(resources, directory.path)
    else:
        directory = RunDirectory.reopen(job.config.run.root / job.config.run.name, job.snapshot[1].step)
    board = directory.path / "tensorboard" if job.config.log.tensorboard else None
    call_when_output_lost(
        lambda: directory.record_event("output", "nobody reads it any more: the run goes on in silence")
    )
    with Monitor(job.config.run.steps, tensorboard=board) as monitor:
        directory.on_event = monitor.event
        for note in job.notes:
            monitor.say(note)
        monitor.say(f"run directory: {directory.path}")
        for line in probed.describe() if probed is not None else ():
            directory.event("judge", line)
        fleet = Fleet(job.config, cluster, directory, probed)
        try:
            asyncio.run(run_until_terminated(Driver(RunContext(job, directory, fleet, monitor)).train()))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise KeyboardInterrupt(report_unfinished_run(directory.path)) from None
        except Exception:  # whatever ended it, what is there can be looked at and gone on with
            monitor.say(report_unfinished_run(directory.path))
            raise
        finally:
            fleet.close()
            cluster.close(directory.path / "infra")
    return directory


def report_unfinished_run(run: Path) -> str:
    """Draw the report of a run that did not come to its end; where it is, and how to go on."""
    try:
        report = str(page.write_run_page(run))
    except (OSError, ValueError) as error:  # a full disk, say: it must not hide why the run ended
        report = f"not drawn: {error}"
    goes_on = f"go on with: wavgate train {shlex.quote(f'resume={run}')}"
    return f"report: {report}\n" + (
        goes_on if checkpoint.list_snapshots(run) else "there is no checkpoint to go on from: start again"
    )
