"""Finished replies judged outside a run, in this process tree and without Ray.

Invariant: the judges are those of a run. With an endpoint on an axis many replies are asked about at once
under its limits; without one the local panel, which only computes, works in processes of its own. What is
known of a reply is used (its words, a transcript) and nothing is made up for what is not: without the
reply's own words the local acoustic axis has nothing to compare with what was heard, and is Missing.
"""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from conf.judging import JudgeConfig
from judge import acoustic
from judge.api import Access, Probed, api_panel
from judge.api_panel import ApiPanel
from judge.limits import Limiter
from judge.panel import Panel, panel_from
from judge.replies import Item, reply_of, speech_of, task_of
from judge.types import Judged, Missing
from judge.voice import SpeechNorms, fitted, sample_of

Score = Callable[[Item], Awaitable[Judged]]

PACED = {"pace", "words_per_second"}  # measures that need the reply's own words
UNKNOWN = "unknown"  # stands for words that are not known, where the panel wants some
NO_WORDS = Missing(judge=acoustic.JUDGE, kind="nothing_to_check", reason="the reply's own words (text) are not known")
MEASURED = 64  # replies that a voice is measured on
LAST = {"spend_cap", "quota", "breaker"}  # after these there is no point in asking on


class Stopped(Exception):
    """The endpoint will not answer any more for now; what was judged is kept."""


class WorkerDied(Exception):
    """A judge process died; what was judged is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Who judges, and what they are given. ``norms``: of the voice that speaks; None: not known."""

    config: JudgeConfig
    root: Path
    norms: SpeechNorms | None
    folder: Path  # of the replies
    max_seconds: float

    def voice(self) -> SpeechNorms | None:
        """As panels ask for it."""
        return self.norms

    @property
    def at_once(self) -> int:
        """Replies in hand at a time."""
        return self.config.api.concurrency if self.config.api_axes else self.config.workers


def norms_in(items: Sequence[Item], folder: Path, max_seconds: float) -> SpeechNorms | None:
    """The voice that these replies show where no style was asked for; None: too few have known words."""
    plain = [item for item in items if item.text is not None and item.style is None][:MEASURED]
    looks = [sample_of(item.text or "", speech_of(item, folder, max_seconds)) for item in plain]
    return fitted([look for look in looks if look is not None])


def check_vetoes(config: JudgeConfig, items: Iterable[Item]) -> None:
    """ValueError: a veto rests on the words of a reply whose words are not known."""
    rules = sorted({rule.measure for rule in config.vetoes} & PACED)
    wordless = next((item.id for item in items if item.text is None), None)
    if rules and wordless is not None:
        raise ValueError(f"judge.vetoes on {' and '.join(rules)} need the text of every reply: {wordless} has none")


async def score_all(items: Iterable[Item], score: Score, at_once: int, keep: Callable[[Item, Judged], None]) -> None:
    """Judge every item, ``at_once`` at a time; ``keep`` gets each verdict as it comes.

    Stopped: the spend cap or the account is used up, or the endpoint stayed down; that reply is not kept.
    Whatever is raised, nothing is left running.
    """
    waiting, running = iter(items), dict[asyncio.Task[Judged], Item]()
    try:
        while True:
            for item in islice(waiting, at_once - len(running)):
                running[asyncio.create_task(_awaited(score, item))] = item
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            stop: BaseException | None = None
            for task in done:
                item, failure = running.pop(task), task.exception()
                failure = failure or _end(task.result())
                if failure is None:
                    keep(item, task.result())
                stop = stop or failure
            if stop is not None:
                raise stop
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _awaited(score: Score, item: Item) -> Judged:
    return await score(item)


def _end(judged: Judged) -> Stopped | None:
    for verdict in judged.axes.values():
        if isinstance(verdict, Missing) and verdict.kind in LAST:
            return Stopped(f"{verdict.kind}: {verdict.reason}")
    return None


@asynccontextmanager
async def local_judges(judges: Judges) -> AsyncIterator[Score]:
    """The local panel in ``workers`` processes. WorkerDied: one of them was killed."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy this process's event loop and threads
    loop = asyncio.get_running_loop()
    pool = ProcessPoolExecutor(judges.config.workers, spawn, initializer=_begin)
    try:
        yield lambda item: loop.run_in_executor(pool, _score_here, judges, item)
    except BrokenProcessPool as error:
        raise WorkerDied("a judge process was killed (memory?)") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """In a worker: an interrupt is the parent's to handle, and a worker does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_here: Panel | None = None  # of a worker process, made with its first reply: what is wrong is raised there


def _score_here(judges: Judges, item: Item) -> Judged:
    global _here
    if _here is None:
        _here = panel_from(judges.config, judges.root, judges.voice)
    return score_local(_here, judges, item)


def api_judges(judges: Judges, found: Probed, limiter: Limiter) -> Score:
    """The endpoint on its axes, in this process.

    ValueError: a file of the recogniser is not there, or the cache cannot be used.
    """
    access = Access(judge=limiter, second=None)
    panel = api_panel(judges.config, judges.root, judges.voice, found, access, log=None)
    return partial(score_api, panel, judges)


def score_local(panel: Panel, judges: Judges, item: Item) -> Judged:
    """One reply by the local panel. ValueError: its sound has changed since it was looked at."""
    speech = speech_of(item, judges.folder, judges.max_seconds)
    task = task_of(item, judges.folder)
    return _honest(panel.score(reply_of(item, _words(item)), speech, task, item.transcript), judges, item, panel)


async def score_api(panel: ApiPanel, judges: Judges, item: Item) -> Judged:
    """One reply, some axes by the endpoint. ValueError: as ``score_local``, or as ``ApiPanel.score``."""
    speech = await asyncio.to_thread(speech_of, item, judges.folder, judges.max_seconds)
    task = task_of(item, judges.folder)
    judged = await panel.score(reply_of(item, _words(item)), speech, task, item.transcript)
    return _honest(judged, judges, item, panel)


def _words(item: Item) -> str:
    return UNKNOWN if item.text is None else item.text


def _honest(judged: Judged, judges: Judges, item: Item, panel: Panel | ApiPanel) -> Judged:
    """Without the verdict that was only true of the words that stood in for unknown ones."""
    if item.text is not None or judged.transcript is None or "acoustic" in judges.config.api_axes:
        return judged
    axes = {**judged.axes, "acoustic": NO_WORDS}
    return replace(judged, axes=axes, reward=panel.reward(axes, judged))
