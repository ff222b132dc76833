import json
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.panel import LOGGED_FAULTS, MAX_JUDGED_AUDIO_S, build_panel, combine_axes
from judge.rules.acoustic import measure_sound
from judge.types import JudgeTask, MissingVerdict, ScoredVerdict, Verdict
from judge.worker import JudgeWorker
from rollout.types import Speech
from tests.helpers.judge_builders import (
    CONFIG,
    RATE,
    REPLIES,
    SCALE,
    WORLD,
    Broken,
    Parrot,
    codec,
    codes_of,
    judge,
    panel_hearing,
    reply,
    speech,
    spoken,
    task,
    value,
)

TEXT = "the answer is twelve"
OPEN = JudgeTask(task_type="chat", question="?", match=None, answer=None, style=None)


@pytest.mark.parametrize("text", REPLIES)
def test_a_right_reply_in_the_shipped_voice_scores_high(text: str) -> None:
    judged = judge(text, spoken(text))
    assert value(judged.reward) >= 4.5
    assert judged.figures["text_right"] == judged.figures["heard_right"] == 1


def test_what_is_wrong_with_a_wave_is_logged_as_it_was_measured() -> None:
    for text in REPLIES:
        judged = judge(text, spoken(text))
        sound = measure_sound(speech(spoken(text)), text)
        assert {name: judged.figures[name] for name in LOGGED_FAULTS} == {
            name: getattr(sound, name) for name in LOGGED_FAULTS
        }
        assert judged.figures["unjudgeable"] == 0


def test_canaries_score_clearly_below_a_right_reply() -> None:
    random = np.random.default_rng(0)

    def canaries(text: str) -> dict[str, float]:
        wave = spoken(text)
        waves = {
            "silence": np.zeros_like(wave),
            "white noise": random.normal(0, 0.1, len(wave)),
            "one word": np.tile(spoken("dog"), len(text.split())),
            "truncated": wave[: len(wave) // 2],
            "ten times louder": np.clip(10 * wave, -1, 1),
            "beyond full scale": 10 * wave,
        }
        return {name: value(judge(text, canary).reward) for name, canary in waves.items()}

    scores = [canaries(text) for text in REPLIES]
    for name in scores[0]:
        assert max(row[name] for row in scores) <= 3.8, name
    for name in ("silence", "white noise", "one word"):
        assert np.mean([row[name] for row in scores]) <= 1.3, name


def test_saying_only_the_answer_again_and_again_does_not_pay() -> None:
    said = "twelve " * 6
    assert value(judge(TEXT, np.tile(spoken("twelve"), 6), said=said).reward) <= 3.8


def test_random_codes_lower_the_acoustic_score() -> None:
    random = np.random.default_rng(1)

    def mean_score(share: float) -> float:
        scores = []
        for text in REPLIES:
            codes = np.array(codes_of(text))
            hit = random.random(len(codes)) < share
            codes[hit] = random.integers(codec().size, size=hit.sum())
            scores.append(value(judge(text, codec().decode(codes.tolist())).axes["acoustic"]))
        return float(np.mean(scores))

    intact, some, many = mean_score(0.0), mean_score(0.1), mean_score(0.4)
    assert intact - 0.2 > some > many + 0.5


@pytest.mark.parametrize(
    ("made", "wave", "why"),
    [
        (reply(TEXT, channels="TTTTE"), np.zeros(0), "no audio"),
        (reply(TEXT), np.zeros(0), "no audio"),
        (reply(TEXT, channels="TTTTE"), spoken("dog"), "no audio"),
        (reply(""), spoken("dog"), "no words"),
        (reply(" ?! "), spoken("dog"), "no words"),
        (reply(TEXT), np.float32([0, np.nan, 0]), "not finite"),
        (reply(TEXT), np.float32([0, np.inf, 0]), "not finite"),
        (reply(TEXT), np.zeros(int(RATE * MAX_JUDGED_AUDIO_S) + 1), "must not exceed"),
    ],
)
@pytest.mark.parametrize("asked", [task(TEXT, "slow"), OPEN])
def test_an_unjudgeable_reply_gets_the_floor_and_no_recogniser_hears_it(
    made: object, wave: np.ndarray, why: str, asked: JudgeTask
) -> None:
    listener = Parrot(TEXT)
    judged = panel_hearing(listener).score(made, speech(wave), asked)  # type: ignore[arg-type]
    for verdict in (*judged.axes.values(), judged.reward):
        assert isinstance(verdict, ScoredVerdict)
        assert verdict.value == SCALE.lo and why in verdict.why and "floor/1" in verdict.judge
    assert set(judged.axes) == {"semantic", "acoustic"}
    assert listener.calls == 0 and judged.transcript is None
    assert judged.figures["unjudgeable"] == 1 and not set(LOGGED_FAULTS) & set(judged.figures)
    assert judged.figures.get("heard_right", 0) == 0 and judged.figures.get("style_followed", 0) == 0
    assert all(isfinite(figure) for figure in judged.figures.values())


def test_a_failing_recogniser_is_missing_and_may_be_asked_again() -> None:
    panel = panel_hearing(Broken(RuntimeError("no such device"), 1, TEXT))
    first, second = (panel.score(reply(TEXT), speech(spoken(TEXT)), task(TEXT)) for _ in range(2))
    for verdict in (*first.axes.values(), first.reward):
        assert isinstance(verdict, MissingVerdict) and verdict.retryable and "no such device" in verdict.reason
    assert first.transcript is None and "heard_right" not in first.figures and "wer" not in first.figures
    assert value(second.reward) == SCALE.hi, "a failure is not remembered"


def test_an_aborted_reply_is_missing_not_bad() -> None:
    listener = Parrot(TEXT)
    judged = panel_hearing(listener).score(reply(TEXT, finish="abort"), speech(spoken(TEXT)), task(TEXT))
    assert isinstance(judged.reward, MissingVerdict) and listener.calls == 0


def test_a_weighted_axis_that_is_missing_makes_the_reward_missing() -> None:
    judged = panel_hearing(Parrot(TEXT)).score(reply(TEXT), speech(spoken(TEXT)), OPEN)
    assert isinstance(judged.reward, MissingVerdict) and "no checkable answer" in judged.reward.reason
    assert not judged.reward.retryable
    assert value(judged.axes["acoustic"]) == SCALE.hi
    assert "text_right" not in judged.figures and "heard_right" not in judged.figures


def test_an_axis_of_weight_zero_is_reported_but_not_counted() -> None:
    panel = panel_hearing(Parrot("the answer is eleven"), semantic=0.0, acoustic=1.0)
    judged = panel.score(reply("the answer is eleven"), speech(spoken("the answer is eleven")), task(TEXT))
    assert value(judged.axes["semantic"]) == SCALE.lo
    assert value(judged.reward) == value(judged.axes["acoustic"]) == SCALE.hi
    unchecked = panel.score(reply(TEXT), speech(spoken(TEXT)), OPEN)
    assert isinstance(unchecked.axes["semantic"], MissingVerdict) and isinstance(unchecked.reward, ScoredVerdict)


VERDICT = st.one_of(
    st.builds(ScoredVerdict, value=st.floats(1, 5), judge=st.just("j/1"), spread=st.floats(0, 2)),
    st.builds(
        MissingVerdict, judge=st.just("j/1"), reason=st.just("down"), kind=st.just("server"), retryable=st.booleans()
    ),
)


@given(VERDICT, VERDICT, st.floats(0, 3), st.floats(0.01, 3))
def test_the_reward_is_the_weighted_mean_or_missing(a: Verdict, b: Verdict, wa: float, wb: float) -> None:
    reward = combine_axes({"semantic": a, "acoustic": b}, {"semantic": wa, "acoustic": wb})
    counted = [(w, verdict) for w, verdict in ((wa, a), (wb, b)) if w > 0]
    if any(isinstance(verdict, MissingVerdict) for _, verdict in counted):
        assert isinstance(reward, MissingVerdict) and "down" in reward.reason
    else:
        expected = sum(w * value(verdict) for w, verdict in counted) / sum(w for w, _ in counted)
        assert value(reward) == pytest.approx(expected)


def test_a_wave_heard_before_is_not_recognised_again() -> None:
    listener = Parrot(TEXT)
    panel = panel_hearing(listener)
    first = panel.score(reply(TEXT), speech(spoken(TEXT)), task(TEXT))
    again = panel.score(reply(TEXT), speech(spoken(TEXT).copy()), task(TEXT))
    other_rate = panel.score(reply(TEXT), Speech(wave=spoken(TEXT), sample_rate=22_050), task(TEXT))
    assert listener.calls == 2
    flags = [judged.reward.cached for judged in (first, again, other_rate) if isinstance(judged.reward, ScoredVerdict)]
    assert flags == [False, True, False]
    assert value(first.reward) == value(again.reward)


def test_the_same_reply_gets_the_same_score_from_two_panels() -> None:
    one, two = (build_panel(CONFIG, WORLD / "data", WORLD / "base") for _ in range(2))
    for text in REPLIES:
        one.score(reply(text), speech(spoken(text, "slow")), task(text, "slow"))  # panel one has a past
    for text in REPLIES:
        verdicts = [panel.score(reply(text), speech(spoken(text)), task(text)).reward for panel in (one, two)]
        assert value(verdicts[0]) == value(verdicts[1])


def test_the_policys_text_does_not_change_what_was_heard() -> None:
    wave = spoken("the answer is eleven")
    judged = judge(TEXT, wave, said="the answer is twelve")
    assert value(judged.axes["semantic"]) == SCALE.lo
    assert judged.figures["text_right"] == 1 and judged.figures["heard_right"] == 0


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80), st.sampled_from([None, "slow", "loud"]))
def test_any_text_and_transcript_are_judged_on_the_scale(text: str, heard: str, style: str | None) -> None:
    judged = panel_hearing(Parrot(heard)).score(reply(text), speech(spoken("dog")), task(TEXT, style))
    assert SCALE.lo <= value(judged.reward) <= SCALE.hi
    assert all(isfinite(figure) for figure in judged.figures.values())
    json.dumps(dict(judged.figures), allow_nan=False)


def test_figures_name_what_was_measured() -> None:
    made = reply(TEXT, channels="TTTTBAAABE", finish="length")
    figures = panel_hearing(Parrot(TEXT)).score(made, speech(spoken(TEXT, "slow")), task(TEXT, "slow")).figures
    assert figures["text_tokens"] == 4 and figures["audio_tokens"] == 3
    assert figures["truncated"] == 1 and figures["well_formed"] == 1 and figures["wer"] == 0
    assert figures["style_followed"] == 1
    assert figures["seconds"] == pytest.approx(len(spoken(TEXT, "slow")) / RATE)
    assert figures["rate"] == pytest.approx(4 / figures["seconds"])
    assert figures["latency_s"] >= 0 and figures["level"] < 0
    plain = panel_hearing(Parrot(TEXT)).score(made, speech(spoken(TEXT)), task(TEXT)).figures
    assert "style_followed" not in plain


def test_a_very_short_wave_is_judged_by_the_real_recogniser() -> None:
    for samples in (1, 50, 700):
        assert value(judge(TEXT, np.full(samples, 0.3)).reward) == SCALE.lo


def test_a_missing_recogniser_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must exist"):
        build_panel(CONFIG, tmp_path, tmp_path)


def test_the_worker_keeps_the_audio_and_returns_the_same_verdict(tmp_path: Path) -> None:
    worker = JudgeWorker(panel_hearing(Parrot(TEXT)))
    path = tmp_path / "audio" / "reply.ogg"
    kept = worker.score(reply(TEXT), speech(spoken(TEXT)), task(TEXT), path)
    unkept = worker.score(reply(TEXT), speech(spoken(TEXT)), task(TEXT), None)
    assert value(kept.reward) == value(unkept.reward)
    header = soundfile.info(str(path))
    assert header.samplerate == RATE and header.frames == len(spoken(TEXT))


@pytest.mark.parametrize("wave", [np.zeros(0), np.float32([0, np.nan])])
def test_the_worker_writes_no_file_when_there_is_nothing_to_hear(tmp_path: Path, wave: np.ndarray) -> None:
    path = tmp_path / "reply.ogg"
    judged = JudgeWorker(panel_hearing(Parrot(TEXT))).score(reply(TEXT), speech(wave), task(TEXT), path)
    assert value(judged.reward) == SCALE.lo and not path.exists()
