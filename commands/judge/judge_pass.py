"""One pass of a judge over finished replies, with a line of progress now and then."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from commands.judge.offline import OfflineJudges, build_api_scorer, open_local_judges, score_replies
from commands.judge.replies import FinishedReply
from judge.endpoint.limits import Limiter
from judge.llm.build import ProbedEndpoints
from judge.types import MissingVerdict, ReplyJudgement

JUDGE_PROGRESS_INTERVAL_S = 10.0  # between lines of progress


async def judge_all_items(
    judges: OfflineJudges,
    items: Sequence[FinishedReply],
    probe_result: ProbedEndpoints | None,
    limiter: Limiter,
    keep: Callable[[FinishedReply, ReplyJudgement], None],
) -> None:
    """Ask about every item once and hand each verdict to ``keep``. ``probe_result``: what an API judge can do."""
    start, judged_count, missing = time.monotonic(), 0, 0

    def keep_and_count(item: FinishedReply, judged: ReplyJudgement) -> None:
        nonlocal judged_count, missing
        keep(item, judged)
        judged_count, missing = judged_count + 1, missing + isinstance(judged.reward, MissingVerdict)

    def tell() -> None:
        pace = judged_count / (time.monotonic() - start)
        open_s = (len(items) - judged_count) / pace if pace else None
        left = f", about {open_s / 60:.0f} min left" if open_s else ""
        limits = limiter.state()
        calls = f", {limits.requests} calls, spent {limits.spent:g}" if probe_result is not None else ""
        print(
            f"judge: {judged_count} of {len(items)} replies, {missing} without a reward, {pace:.1f}/s{calls}{left}",
            file=sys.stderr,
        )

    async with _report_periodically(tell):
        if probe_result is None:
            async with open_local_judges(judges) as judge:
                await score_replies(items, judge, judges.at_once, keep_and_count)
        else:
            await score_replies(items, build_api_scorer(judges, probe_result, limiter), judges.at_once, keep_and_count)
    if probe_result is not None:
        tell()


@asynccontextmanager
async def _report_periodically(tell: Callable[[], None]) -> AsyncIterator[None]:
    async def again() -> None:
        while True:
            await asyncio.sleep(JUDGE_PROGRESS_INTERVAL_S)
            tell()

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
