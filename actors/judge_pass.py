"""One pass of a judge over finished replies, with a line of progress now and then."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from judge.api import Probed
from judge.limits import Limiter
from judge.offline import Judges, api_judges, local_judges, score_all
from judge.replies import Item
from judge.types import Judged, Missing

EVERY_S = 10.0  # between lines of progress


async def judge_all(
    judges: Judges,
    items: Sequence[Item],
    found: Probed | None,
    limiter: Limiter,
    keep: Callable[[Item, Judged], None],
) -> None:
    """Ask about every item once and hand each verdict to ``keep``. ``found``: what an API judge can do."""
    start, done, missing = time.monotonic(), 0, 0

    def kept(item: Item, judged: Judged) -> None:
        nonlocal done, missing
        keep(item, judged)
        done, missing = done + 1, missing + isinstance(judged.reward, Missing)

    def tell() -> None:
        pace = done / (time.monotonic() - start)
        open_s = (len(items) - done) / pace if pace else None
        left = f", about {open_s / 60:.0f} min left" if open_s else ""
        asked = limiter.state()
        calls = f", {asked.requests} calls, spent {asked.spent:g}" if found is not None else ""
        print(
            f"judge: {done} of {len(items)} replies, {missing} without a reward, {pace:.1f}/s{calls}{left}",
            file=sys.stderr,
        )

    async with _telling(tell):
        if found is None:
            async with local_judges(judges) as judge:
                await score_all(items, judge, judges.at_once, kept)
        else:
            await score_all(items, api_judges(judges, found, limiter), judges.at_once, kept)
    if found is not None:
        tell()


@asynccontextmanager
async def _telling(tell: Callable[[], None]) -> AsyncIterator[None]:
    async def again() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            tell()

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
