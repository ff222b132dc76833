"""An event loop whose clock a test puts forward: what happens after a while is seen without letting it pass.

Real processes and sockets go on at their own pace meanwhile, so nothing depends on how fast they are.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Forward(asyncio.SelectorEventLoop):
    """``ahead``: seconds that its clock is before that of the machine."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def run(work: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``."""
    with asyncio.Runner(loop_factory=Forward) as runner:
        return runner.run(work)


def now() -> float:
    return asyncio.get_running_loop().time()


def put_forward(seconds: float) -> None:
    """Timers that are due by then ring in the next turn of the loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Forward)
    loop.ahead += seconds
