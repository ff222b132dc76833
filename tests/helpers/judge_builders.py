"""What the judge tests share: replies of the shipped voice, spoken from its bank and decoded by its codec."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conf.judging import AsrConfig, JudgeConfig
from examples.tiny_world.speak import REPLY_MANNERS, read_clips
from judge.panel import Panel, build_panel
from judge.recognisers.remembered import SpeechRecogniser
from judge.types import JudgeTask, ReplyJudgement, Scale, ScoredVerdict, Verdict
from rollout.types import FinishReason, Reply, Speech
from speech.codecs.mel import MelCodec

WORLD = Path(__file__).parents[2] / "examples" / "tiny_world"
RATE = 16_000
SCALE = Scale(1.0, 5.0)
CONFIG = JudgeConfig(asr=AsrConfig(by="pocketsphinx", language_model=Path("asr.arpa"), dictionary=Path("asr.dict")))

REPLIES = {  # reply -> its task
    "the answer is twelve": ("final", "twelve"),
    "the bigger one is seven": ("final", "seven"),
    "after monday comes tuesday": ("final", "tuesday"),
    "the opposite of hot is cold": ("final", "cold"),
    "the old teacher laughs today": ("exact", "the old teacher laughs today"),
    "my dog is happy now": ("exact", "my dog is happy now"),
}


@cache
def codec() -> MelCodec:
    return MelCodec.load(WORLD / "base" / "codec.safetensors")


@cache
def codes_of(text: str, style: str | None = None) -> tuple[int, ...]:
    return tuple(codec().encode(recorded(text, style)))


def recorded(text: str, style: str | None = None) -> NDArray[np.float32]:
    """The wave of a text as the bank has it."""
    folder = REPLY_MANNERS[style].name
    return read_clips(WORLD / "data", [f"bank/{folder}/{word}.flac" for word in text.split()])


@cache
def spoken(text: str, style: str | None = None) -> NDArray[np.float32]:
    """The wave of a text as a listener hears it."""
    return codec().decode(codes_of(text, style))


def speech(wave: NDArray[np.float32]) -> Speech:
    return Speech(wave=np.asarray(wave, np.float32), sample_rate=RATE)


def task(text: str, style: str | None = None) -> JudgeTask:
    match, answer = REPLIES[text]
    return JudgeTask(task_type="test", question="?", match=match, answer=answer, style=style)


def reply(text: str, channels: str = "TTTBAAAABE", finish: FinishReason = "stop") -> Reply:
    n = len(channels)
    return Reply(
        prompt_id="p",
        index=2,
        ids=tuple(range(n)),
        logps=(-0.5,) * n,
        channels=channels,
        sampled=(True,) * n,
        versions=(1,) * n,
        finish=finish,
        text=text,
        well_formed=True,
    )


@cache
def shipped_panel() -> Panel:
    return build_panel(CONFIG, WORLD / "data", WORLD / "base")


class Parrot:
    """A recogniser that hears what it was told, and counts its calls."""

    def __init__(self, transcript: str) -> None:
        self.transcript = transcript
        self.calls = 0

    def transcribe(self, wave: NDArray[np.float32], sample_rate: int) -> str:
        self.calls += 1
        return self.transcript


class Broken:
    """A recogniser that fails ``failures`` times, then hears the transcript."""

    def __init__(self, failure: Exception, failures: int, transcript: str) -> None:
        self.failure = failure
        self.left = failures
        self.transcript = transcript

    def transcribe(self, wave: NDArray[np.float32], sample_rate: int) -> str:
        if self.left:
            self.left -= 1
            raise self.failure
        return self.transcript


def panel_hearing(listener: SpeechRecogniser, **changes: float) -> Panel:
    return Panel(CONFIG.model_copy(update=changes), listener)


def value(verdict: Verdict) -> float:
    assert isinstance(verdict, ScoredVerdict), verdict
    return verdict.value


def judge(text: str, wave: NDArray[np.float32], style: str | None = None, said: str | None = None) -> ReplyJudgement:
    """The shipped panel on a wave whose reply claims to say ``said`` (the task's own text by default)."""
    return shipped_panel().score(reply(said or text), speech(wave), task(text, style))
