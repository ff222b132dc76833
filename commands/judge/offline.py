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

from commands.judge.replies import FinishedReply, build_reply_task, build_rollout_reply, read_reply_speech
from conf.judging import JudgeConfig
from judge.endpoint.limits import Limiter
from judge.llm.build import ProbedEndpoints, build_api_panel
from judge.llm.panel import ApiPanel
from judge.panel import Panel, build_panel, combine_reward
from judge.rules import acoustic
from judge.rules.voice import SpeechNorms, fit_voice_norms, measure_voice_sample
from judge.types import MissingVerdict, ReplyJudgement

ReplyScorer = Callable[[FinishedReply], Awaitable[ReplyJudgement]]

WORD_BASED_MEASURES = {"pace", "words_per_second"}  # measures that need the reply's own words
UNKNOWN_WORDS = "unknown"  # stands for words that are not known, where the panel wants some
UNKNOWN_WORDS_VERDICT = MissingVerdict(
    judge=acoustic.ACOUSTIC_JUDGE, kind="nothing_to_check", reason="the reply's own words (text) are not known"
)
MAX_NORM_REPLIES = 64  # replies that a voice is measured on
FINAL_KINDS = {"spend_cap", "quota", "breaker"}  # after these there is no point in asking on


class EndpointStopped(Exception):
    """The endpoint will not answer any more for now; what was judged is kept."""


class JudgeWorkerDied(Exception):
    """A judge process died; what was judged is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineJudges:
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


def measure_norms(items: Sequence[FinishedReply], folder: Path, max_seconds: float) -> SpeechNorms | None:
    """The voice that these replies show where no style was asked for; None: too few have known words."""
    plain = [item for item in items if item.text is not None and item.style is None][:MAX_NORM_REPLIES]
    looks = [measure_voice_sample(item.text or "", read_reply_speech(item, folder, max_seconds)) for item in plain]
    return fit_voice_norms([look for look in looks if look is not None])


def check_vetoes(config: JudgeConfig, items: Iterable[FinishedReply]) -> None:
    """ValueError: a veto rests on the words of a reply whose words are not known."""
    rules = sorted({rule.measure for rule in config.vetoes} & WORD_BASED_MEASURES)
    wordless = next((item.id for item in items if item.text is None), None)
    if rules and wordless is not None:
        raise ValueError(f"judge.vetoes on {' and '.join(rules)} need the text of every reply: {wordless} has none")


async def score_replies(
    items: Iterable[FinishedReply],
    score: ReplyScorer,
    at_once: int,
    keep: Callable[[FinishedReply, ReplyJudgement], None],
) -> None:
    """Judge every item, ``at_once`` at a time; ``keep`` gets each verdict as it comes.

    Stopped: the spend cap or the account is used up, or the endpoint stayed down; that reply is not kept.
    Whatever is raised, nothing is left running.
    """
    waiting, running = iter(items), dict[asyncio.Task[ReplyJudgement], FinishedReply]()
    try:
        while True:
            for item in islice(waiting, at_once - len(running)):
                running[asyncio.create_task(_await_score(score, item))] = item
            if not running:
                return
            finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            stop: BaseException | None = None
            for task in finished:
                item, failure = running.pop(task), task.exception()
                failure = failure or _stop_for_verdict(task.result())
                if failure is None:
                    keep(item, task.result())
                stop = stop or failure
            if stop is not None:
                raise stop
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _await_score(score: ReplyScorer, item: FinishedReply) -> ReplyJudgement:
    return await score(item)


def _stop_for_verdict(judged: ReplyJudgement) -> EndpointStopped | None:
    for verdict in judged.axes.values():
        if isinstance(verdict, MissingVerdict) and verdict.kind in FINAL_KINDS:
            return EndpointStopped(f"{verdict.kind}: {verdict.reason}")
    return None


@asynccontextmanager
async def open_local_judges(judges: OfflineJudges) -> AsyncIterator[ReplyScorer]:
    """The local panel in ``workers`` processes. JudgeWorkerDied: one of them was killed."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy this process's event loop and threads
    loop = asyncio.get_running_loop()
    pool = ProcessPoolExecutor(judges.config.workers, spawn, initializer=_start_worker)
    try:
        yield lambda item: loop.run_in_executor(pool, _score_in_worker, judges, item)
    except BrokenProcessPool as error:
        raise JudgeWorkerDied("a judge process was killed (memory?)") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """In a worker: an interrupt is the parent's to handle, and a worker does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to every process
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


_worker_panel: Panel | None = None  # of a worker process, made with its first reply: what is wrong is raised there


def _score_in_worker(judges: OfflineJudges, item: FinishedReply) -> ReplyJudgement:
    global _worker_panel
    if _worker_panel is None:
        _worker_panel = build_panel(judges.config, judges.root, judges.voice)
    return score_local(_worker_panel, judges, item)


def build_api_scorer(judges: OfflineJudges, probed_endpoints: ProbedEndpoints, limiter: Limiter) -> ReplyScorer:
    """The endpoint on its axes, in this process.

    ValueError: a file of the recogniser is not there, or the cache cannot be used.
    """
    panel = build_api_panel(judges.config, judges.root, judges.voice, probed_endpoints, log=None, limiter=limiter)
    return partial(score_api, panel, judges)


def score_local(panel: Panel, judges: OfflineJudges, item: FinishedReply) -> ReplyJudgement:
    """One reply by the local panel. ValueError: its sound has changed since it was looked at."""
    speech = read_reply_speech(item, judges.folder, judges.max_seconds)
    task = build_reply_task(item, judges.folder)
    return _without_unknown_words(
        panel.score(build_rollout_reply(item, _known_words_or_placeholder(item)), speech, task, item.transcript),
        judges,
        item,
    )


async def score_api(panel: ApiPanel, judges: OfflineJudges, item: FinishedReply) -> ReplyJudgement:
    """One reply, some axes by the endpoint. ValueError: as ``score_local``, or as ``ApiPanel.score``."""
    speech = await asyncio.to_thread(read_reply_speech, item, judges.folder, judges.max_seconds)
    task = build_reply_task(item, judges.folder)
    judged = await panel.score(
        build_rollout_reply(item, _known_words_or_placeholder(item)), speech, task, item.transcript
    )
    return _without_unknown_words(judged, judges, item)


def _known_words_or_placeholder(item: FinishedReply) -> str:
    return UNKNOWN_WORDS if item.text is None else item.text


def _without_unknown_words(judged: ReplyJudgement, judges: OfflineJudges, item: FinishedReply) -> ReplyJudgement:
    """Without the verdict that was only true of the words that stood in for unknown ones."""
    if item.text is not None or judged.transcript is None or "acoustic" in judges.config.api_axes:
        return judged
    axes = {**judged.axes, "acoustic": UNKNOWN_WORDS_VERDICT}
    return replace(judged, axes=axes, reward=combine_reward(axes, judged, judges.config.weights))
