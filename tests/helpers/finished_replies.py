"""What the tests of offline judging share: manifests of hums, and an endpoint beside the commands."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commands.judge.offline import OfflineJudges, ReplyScorer, score_local
from commands.judge.replies import FinishedReply
from judge.panel import build_panel
from judge.types import ReplyJudgement
from speech.data.manifest import ManifestError
from speech.sound import audio
from tests.helpers.judge_builders import RATE
from tests.helpers.judge_server import MODEL, Body, JudgeServer, recordings, said
from tests.helpers.processes import HANG_S

Row = dict[str, Any]


def hum(path: Path, hertz: float, seconds: float = 0.4) -> None:
    time = np.arange(int(RATE * seconds)) / RATE
    audio.write(path, np.asarray(0.2 * np.sin(2 * np.pi * hertz * time), np.float32), RATE)


def manifest(folder: Path, count: int = 6, **more: Any) -> Path:
    """Replies of different sound to prompts of two each; the transcript is given: no recogniser is needed."""
    lines = []
    for i in range(count):
        hum(folder / f"{i}.wav", 150 + 40 * i)
        row = {
            "id": f"r{i}",
            "prompt_id": f"p{i // 2}",
            "question": "What is six plus six?",
            "audio": f"{i}.wav",
        }
        lines.append(json.dumps(row | {"transcript": f"twelve {i}"} | more))
    path = folder / "replies.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def refused(read: Callable[[Path], Any], path: Path) -> list[str]:
    with pytest.raises(ManifestError) as error:
        read(path)
    return str(error.value).splitlines()


def table(path: Path) -> list[Row]:
    import pyarrow.parquet

    rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def settings(server: JudgeServer, *more: str) -> list[str]:
    where = [f"judge.api.base_url={server.base_url}", f"judge.api.model={MODEL}", "judge.api.deadline_s=300"]
    return ["judge=openai", *where, *more]


def served(scenario: Callable[[JudgeServer], Any], server: JudgeServer | None = None) -> None:
    """The commands have an event loop of their own, so they run in a thread beside the server's."""

    async def whole() -> None:
        async with server or JudgeServer() as running:
            await asyncio.to_thread(scenario, running)

    asyncio.run(asyncio.wait_for(whole(), HANG_S))


def asked(bodies: list[Body]) -> list[Body]:
    """All but the probe's questions: those about its second of hum."""
    return [b for b in bodies if "six plus six" in said(b) or [len(w) for w, _ in recordings(b)] == [6400]]


@asynccontextmanager
async def in_this_process(judges: OfflineJudges) -> AsyncIterator[ReplyScorer]:
    """``open_local_judges`` without processes of their own, which take seconds to start."""
    panel = build_panel(judges.config, judges.root, judges.voice)

    async def judge(item: FinishedReply) -> ReplyJudgement:
        return score_local(panel, judges, item)

    yield judge
