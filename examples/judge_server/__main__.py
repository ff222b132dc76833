"""Serves the tiny world's judge until it is interrupted.

python -m examples.judge_server --port 8001
wavgate train judge=openai judge.api.base_url=http://127.0.0.1:8001/v1 judge.api.model=tiny-world-judge
"""

import argparse
import asyncio
import os
import re
import signal
import sys
from math import isfinite
from pathlib import Path

from examples.judge_server import web
from examples.judge_server.opinion import world
from examples.judge_server.service import MODEL, Judge, Troubles


def number(text: str) -> float:
    value = float(text)
    if not (isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"must be finite and not negative: got {text}")
    return value


def share(text: str) -> float:
    value = number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1]: got {text}")
    return value


def options_of(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.judge_server", description="the tiny world's judge, OpenAI-compatible"
    )
    parser.add_argument("--port", type=int, default=8001, help="0: a free one (default: 8001)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--model", default=MODEL, help=f"the name it answers to (default: {MODEL})")
    parser.add_argument("--key-env", help="NAME of the variable that holds the key clients must send")
    parser.add_argument("--seed", type=int, default=0, help="of what fails and of noise")
    parser.add_argument("--fail", type=share, default=0.0, help="share of the answers that hold no score")
    parser.add_argument("--noise", type=number, default=0.0, help="standard deviation of its opinion, in levels")
    parser.add_argument("--delay", type=number, default=0.0, help="milliseconds before each answer")
    parser.add_argument("--down-file", type=Path, help="while this file is there, every request gets a 503")
    options = parser.parse_args(arguments)
    if options.key_env is not None:
        if not re.fullmatch("[A-Z_][A-Z0-9_]*", options.key_env):
            parser.error("--key-env must be the NAME of a variable; what was given is not shown")
        if not os.environ.get(options.key_env):
            parser.error(f"environment variable {options.key_env} must hold the key")
    return options


async def serve(options: argparse.Namespace) -> None:
    """Until SIGINT or SIGTERM."""
    troubles = Troubles(
        fail=options.fail,
        delay_s=options.delay / 1000,
        down_file=options.down_file,
        noise=options.noise,
        seed=options.seed,
    )
    world()  # now, so that the first answer does not wait for it
    judge = Judge(troubles, model=options.model, key_env=options.key_env)
    server = await web.listen(options.host, options.port, judge.answer)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"judge: http://{f'[{host}]' if ':' in host else host}:{port}/v1 model {options.model}", flush=True)
    stopped = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, stopped.set)
    async with server:
        await stopped.wait()


def main() -> int:
    options = options_of(sys.argv[1:])
    try:
        asyncio.run(serve(options))
    except OSError as error:
        print(f"judge server: {options.host}:{options.port}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
