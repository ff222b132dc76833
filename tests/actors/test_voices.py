"""A run measures the voice of its start policy before it judges, keeps it, and refuses an axis without it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.errors import RunError
from actors.handles import JudgeActor
from actors.judge_pool import JudgePool
from actors.voices import is_voice_needed, measure_voice
from conf.load import load_config
from conf.schema import Config
from judge.rules.voice import MIN_VOICE_REPLIES, TINY_VOICE_NORMS, SpeechNorms, VoiceSample, find_voice_norms
from judge.types import JudgeTask, MissingVerdict, ScoredVerdict
from rollout.types import Reply, Sampling, Speech
from speech.data.manifest import ManifestRow
from tests.helpers.judge_builders import reply as reply_saying

OWN = [
    "data=manifest",
    "data.train=a.jsonl",
    "data.validation=a.jsonl",
    "data.test=a.jsonl",
    "model=glm4_voice",
]
RATE = 16_000


class Fleet:
    """Replies of three words at half a second a word; every second is cut off when ``cut``."""

    def __init__(self, cut: bool = False) -> None:
        self.cut, self.asked, self.judges_know = cut, list[str](), list[SpeechNorms]()
        self.rollout = self.judges = self

    async def know_voice(self, norms: SpeechNorms) -> None:
        self.judges_know.append(norms)

    async def ask_engine(self, how: str, manifest: Path, rows: Sequence[ManifestRow]) -> list[Any]:
        assert how == "encode"
        return [SimpleNamespace(id=row.id, prompt=[1], features=()) for row in rows]

    async def generate(
        self, prompts: Sequence[Any], sampling: Sampling, deadline: float
    ) -> AsyncIterator[tuple[Reply, list[Any]]]:
        for place, prompt in enumerate(prompts):
            self.asked.append(prompt)
            finish = "length" if self.cut and place % 2 else "stop"
            yield reply_saying("one two three", finish=finish), ["speech"]

    async def sample_voice(self, reply: Reply, speech: list[Any]) -> VoiceSample:
        return VoiceSample(words=3, letters=11, seconds=1.5, level_dbfs=-30.0)


def rows(count: int, style: str | None = None) -> list[Any]:
    return [SimpleNamespace(id=f"p{i}", style=style) for i in range(count)]


def config_of(folder: Path, *more: str) -> Config:
    return load_config([*OWN, f"model.path={folder}", "model.codec=codec", *more])


def measured(fleet: Fleet, config: Config, asked: list[Any], run: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    monkeypatch.setattr("actors.voices.example_to_prompt", lambda example: example.id)
    return asyncio.run(measure_voice(fleet, config, Path("a.jsonl"), asked, run))  # type: ignore[arg-type]


def test_the_voice_is_measured_once_and_read_again_by_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, config, run = Fleet(), config_of(tmp_path / "base"), tmp_path / "run"
    run.mkdir()
    notice = measured(fleet, config, rows(40), run, monkeypatch)
    assert notice is not None and notice.startswith("the voice, measured on 32 replies")
    norms = find_voice_norms(config.model.path, run)
    assert norms is not None and norms.level_dbfs == -30 and norms.seconds("one two three") == pytest.approx(1.5)
    assert fleet.judges_know == [norms]
    before = (run / "voice.json").read_bytes()
    assert measured(fleet, config, rows(40), run, monkeypatch) is None
    assert fleet.judges_know == [norms, norms], "a resumed run's judges are told too"
    assert len(fleet.asked) == 32 and (run / "voice.json").read_bytes() == before


@pytest.mark.parametrize("asked", [rows(MIN_VOICE_REPLIES - 1), rows(40, style="slow"), []])
def test_a_voice_that_cannot_be_measured_refuses_the_acoustic_axis_and_nothing_else(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"judge\.acoustic: .* are needed to measure its voice"):
        measured(Fleet(), config_of(tmp_path), asked, tmp_path, monkeypatch)
    notice = measured(Fleet(), config_of(tmp_path, "judge.acoustic=0"), asked, tmp_path, monkeypatch)
    assert notice is not None and notice.startswith("the voice was not measured")
    assert not (tmp_path / "voice.json").exists()


def test_replies_that_were_cut_off_are_no_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notice = measured(Fleet(cut=True), config_of(tmp_path), rows(32), tmp_path, monkeypatch)
    assert notice is not None and "measured on 16 replies" in notice


def test_the_embedded_voice_is_known_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet()
    assert measured(fleet, load_config([]), rows(40), tmp_path, monkeypatch) is None and not fleet.asked
    assert fleet.judges_know == [TINY_VOICE_NORMS]


def test_a_judge_that_is_replaced_knows_the_voice_before_it_is_given_work() -> None:
    knows: list[SpeechNorms] = []

    async def hello() -> dict[str, str]:
        return {"source": "same", "node": "here"}

    async def know(norms: SpeechNorms) -> None:
        knows.append(norms)

    judge: Any = SimpleNamespace(hello=SimpleNamespace(remote=hello), know_voice=SimpleNamespace(remote=know))
    pool: Any = JudgePool.__new__(JudgePool)
    pool.role, pool._source, pool.handles = "judge", "same", [judge, judge]
    asyncio.run(pool.wait_until_ready(judge))
    assert knows == []
    asyncio.run(pool.know_voice(TINY_VOICE_NORMS))
    asyncio.run(pool.wait_until_ready(judge))
    assert knows == [TINY_VOICE_NORMS] * 3


def test_an_endpoint_that_hears_the_sound_needs_no_norms(tmp_path: Path) -> None:
    api = ["judge.api.base_url=http://127.0.0.1:9/v1", "judge.api.model=m"]
    assert is_voice_needed(config_of(tmp_path).judge)
    assert not is_voice_needed(config_of(tmp_path, "judge=openai", *api).judge)
    vetoes = "judge.vetoes=[{measure:pace,most:2}]"
    assert is_voice_needed(config_of(tmp_path, "judge=openai", *api, vetoes).judge)


def test_a_judge_that_started_before_the_voice_was_known_uses_it_from_then_on(tmp_path: Path) -> None:
    config = load_config([*OWN, f"model.path={tmp_path / 'base'}", "model.codec=codec", "judge.asr.by=pocketsphinx"])
    judge = JudgeActor(config)
    tone = np.sin(np.arange(RATE * 2) / 9).astype(np.float32) * 0.2
    speech, asked = (
        Speech(wave=tone, sample_rate=RATE),
        JudgeTask(task_type="t", question="q", match=None, answer=None, style=None),
    )
    reply = reply_saying("one two three")
    verdict = judge.score(reply, speech, asked, None).axes["acoustic"]
    assert isinstance(verdict, MissingVerdict) and "how this voice speaks is not known" in verdict.reason
    assert judge.sample_voice("one two three", speech) is not None
    judge.know_voice(SpeechNorms(seconds_per_word=0.5, seconds_per_letter=0.0, level_dbfs=-20.0))
    assert isinstance(judge.score(reply, speech, asked, None).axes["acoustic"], ScoredVerdict)


def test_prompts_are_the_rows_that_ask_for_no_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, mixed = Fleet(), rows(20)
    for row in mixed[::2]:
        row.style = "loud"
    measured(fleet, config_of(tmp_path), mixed, tmp_path, monkeypatch)
    assert fleet.asked == [row.id for row in mixed[1::2]]
