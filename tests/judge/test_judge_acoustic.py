import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.tiny_world.speak import REPLY_MANNERS
from examples.tiny_world.tasks import FAMILIES
from judge.rules import measure
from judge.rules.acoustic import DEFAULT_NORMS, Ramp, is_style_followed, measure_sound, rate_manner, score_acoustics
from judge.rules.voice import (
    SpeechNorms,
    VoiceSample,
    find_voice_norms,
    fit_voice_norms,
    measure_voice_sample,
    save_voice_norms,
)
from rollout.types import Speech
from speech.answers.words import split_words
from tests.helpers.judge_builders import RATE, REPLIES, SCALE, recorded, speech, spoken, task

STYLES = (None, "slow", "loud")
SAMPLE = [  # replies of every task
    item.reply for family in FAMILIES.values() for item in Random(1).sample(list(family()), 15)
]


def tone(seconds: float, amplitude: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def hush(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def test_level_is_that_of_the_speech_alone() -> None:
    alone = measure.measure_speech_level(tone(1), RATE)
    assert alone == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.01)
    assert measure.measure_speech_level(np.concatenate([hush(2), tone(1), hush(3)]), RATE) == pytest.approx(
        alone, abs=0.05
    )
    assert measure.measure_speech_level(tone(1) / 10, RATE) == pytest.approx(alone - 20, abs=0.01)


def test_pauses_are_measured_in_seconds_and_shares() -> None:
    wave = np.concatenate([tone(1), hush(0.5), tone(1), hush(1.5)])
    assert measure.silence_share(wave, RATE) == pytest.approx(0.5)
    assert measure.longest_pause(wave, RATE) == pytest.approx(1.5)
    assert measure.longest_pause(tone(1), RATE) == 0


def test_clipping_is_the_share_of_samples_at_full_scale() -> None:
    wave = tone(1)
    wave[:160] = 1
    assert measure.clipping_share(wave) == pytest.approx(0.01)
    assert measure.clipping_share(np.float32([3, -3, 0, 0])) == 0.5


def test_syllables_are_counted_per_second_of_speech() -> None:
    bursts = np.concatenate([np.concatenate([tone(0.15), hush(0.1)]) for _ in range(8)])
    assert measure.syllable_rate(bursts, RATE) == pytest.approx(8 / 1.6, rel=0.35)


def test_slow_speech_has_fewer_syllables_per_second() -> None:
    normal, slow = (
        np.mean([measure.syllable_rate(recorded(text, style), RATE) for text in SAMPLE]) for style in (None, "slow")
    )
    assert slow < 0.92 * normal


def test_a_loop_is_told_from_speech_and_noise() -> None:
    texts = list(REPLIES)
    assert max(measure.measure_self_similarity(spoken(text), RATE) for text in texts) < 0.75
    assert measure.measure_self_similarity(np.concatenate([spoken(text) for text in texts]), RATE) < 0.6
    assert measure.measure_self_similarity(noise(5), RATE) < 0.3
    assert measure.measure_self_similarity(np.tile(spoken(texts[0]), 3), RATE) > 0.95
    assert measure.measure_self_similarity(np.tile(spoken("dog"), 8), RATE) > 0.95
    assert measure.measure_self_similarity(tone(3), RATE) > 0.95


def test_a_loop_agrees_with_the_plain_sum_over_lags() -> None:
    wave = np.concatenate([spoken("the answer is twelve"), spoken("the answer is seven")])
    bands = measure._band_energies(wave, RATE)
    x = bands - bands.mean(axis=0)
    expected = max(
        float((x[lag:] * x[:-lag]).sum() / np.sqrt((x[lag:] ** 2).sum() * (x[:-lag] ** 2).sum()))
        for lag in range(50, len(x) - max(50, len(x) // 3) + 1)
    )
    assert measure.measure_self_similarity(wave, RATE) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40_000),
    st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 1e30]),
    st.sampled_from([8_000, 16_000, 22_050, 48_000]),
)
def test_every_finite_wave_gets_finite_measures(samples: int, amplitude: float, rate: int) -> None:
    wave = (amplitude * np.random.default_rng(samples).uniform(-1, 1, samples)).astype(np.float32)
    measures = (
        measure.measure_speech_level,
        measure.silence_share,
        measure.longest_pause,
        measure.syllable_rate,
        measure.measure_self_similarity,
    )
    figures = [function(wave, rate) for function in measures] + [measure.clipping_share(wave)]
    assert np.isfinite(figures).all()
    assert 0 <= measure.silence_share(wave, rate) <= 1 and 0 <= measure.measure_self_similarity(wave, rate) <= 1
    assert measure.longest_pause(wave, rate) <= samples / rate + measure.FRAME_S + 1e-9


def test_the_norms_are_those_of_the_shipped_voice() -> None:
    def pace(style: str | None) -> float:
        durations = [len(recorded(text, style)) / RATE for text in SAMPLE]
        expected = [DEFAULT_NORMS.seconds(text) for text in SAMPLE]
        return float(np.exp(np.mean(np.log(durations) - np.log(expected))))

    def heard_level(style: str | None) -> float:
        return float(np.mean([measure.measure_speech_level(spoken(text, style), RATE) for text in REPLIES]))

    assert pace(None) == pytest.approx(1, rel=0.03)
    assert pace("slow") / pace(None) == pytest.approx(DEFAULT_NORMS.slow_ratio, rel=0.03)
    assert heard_level(None) == pytest.approx(DEFAULT_NORMS.level_dbfs, abs=0.7)
    assert heard_level("loud") - heard_level(None) == pytest.approx(DEFAULT_NORMS.loud_db, abs=0.7)


@pytest.mark.parametrize("asked", STYLES)
@pytest.mark.parametrize("spoken_style", STYLES)
def test_a_style_is_followed_when_it_was_asked_for(asked: str | None, spoken_style: str | None) -> None:
    sounds = [measure_sound(speech(recorded(text, spoken_style)), text) for text in SAMPLE]
    followed = np.mean([is_style_followed(sound, asked) for sound in sounds])
    graded = np.mean([rate_manner(sound, asked) for sound in sounds])
    if asked == spoken_style:
        assert followed >= 0.93 and graded >= 0.88
    else:
        assert followed <= 0.08 and graded <= 0.15


def test_more_of_the_style_asked_for_is_no_fault_but_less_is() -> None:
    sound = measure_sound(speech(spoken("the answer is twelve", "slow")), "the answer is twelve")

    def at(pace: float) -> float:
        return rate_manner(replace(sound, pace=pace), "slow")

    grades = [at(DEFAULT_NORMS.slow_ratio**step) for step in (0, 0.4, 0.6, 1, 1.5)]
    assert grades == sorted(grades) and grades[0] == 0 and grades[-1] == 1


def test_an_unknown_style_is_refused() -> None:
    sound = measure_sound(speech(spoken("the answer is twelve")), "the answer is twelve")
    with pytest.raises(ValueError, match="style must be"):
        rate_manner(sound, "whispered")


def test_intelligibility_leads_and_manner_counts_only_for_what_was_understood() -> None:
    text = "the answer is twelve"
    sound = measure_sound(speech(spoken(text)), text)
    both = score_acoustics(sound, text, text, task(text), SCALE).value
    wrong_manner = score_acoustics(sound, text, text, task(text, "loud"), SCALE).value
    half = score_acoustics(sound, text, "the answer", task(text), SCALE).value
    nothing = score_acoustics(sound, text, "", task(text), SCALE).value
    assert both == SCALE.hi
    assert wrong_manner == pytest.approx(SCALE.at(0.6))
    assert half == pytest.approx(SCALE.at(0.5))
    assert nothing == SCALE.lo


@pytest.mark.parametrize("fault", ["clipping", "silence", "pause", "loop", "drawl", "rush"])
def test_each_fault_takes_away_even_when_every_word_is_understood(fault: str) -> None:
    text = "the answer is twelve"
    wave = spoken(text)
    long_pause = np.concatenate([wave[:8000], hush(4), wave[8000:]])
    waves = {
        "clipping": np.clip(wave * 30, -1, 1),
        "silence": np.concatenate([*(part for word in text.split() for part in (spoken(word), hush(1.5)))]),
        "pause": long_pause,
        "loop": np.tile(spoken("twelve"), 4),
        "drawl": np.repeat(wave, 4),
        "rush": wave[::5],
    }
    verdict = score_acoustics(measure_sound(speech(waves[fault]), text), text, text, task(text), SCALE)
    assert fault in verdict.why
    assert verdict.value < SCALE.at(0.6)


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_ramp_never_rises(a: float, b: float) -> None:
    ramp = Ramp(1.0, 4.0)
    low, high = sorted((a, b))
    assert 1 >= ramp.factor_at(low) >= ramp.factor_at(high) >= 0


@given(st.lists(st.sampled_from(["a", "dog", "september", "12"]), min_size=1, max_size=9))
def test_a_longer_text_is_expected_to_last_longer(said: list[str]) -> None:
    assert DEFAULT_NORMS.seconds(" ".join(said)) < DEFAULT_NORMS.seconds(" ".join([*said, "a"]))
    assert split_words(" ".join(said))


def test_a_text_without_words_has_no_duration() -> None:
    with pytest.raises(ValueError, match="must have words"):
        DEFAULT_NORMS.seconds(" ... ")


def test_every_style_of_the_voice_is_known_here() -> None:
    assert set(REPLY_MANNERS) == set(STYLES)


def test_a_checkpoint_may_speak_with_another_voice(tmp_path: Path) -> None:
    voice = {"seconds_per_word": 0.1, "seconds_per_letter": 0.05, "level_dbfs": -30, "slow_ratio": 1.5}
    (tmp_path / "wavgate.json").write_text(json.dumps({"family": "x", "voice": voice}))
    assert find_voice_norms(tmp_path) == SpeechNorms(**voice)


def test_the_embedded_voice_is_that_of_the_family_tiny_alone(tmp_path: Path) -> None:
    assert find_voice_norms(tmp_path) is None
    (tmp_path / "wavgate.json").write_text('{"family": "tiny", "codec": "codec.safetensors"}')
    assert find_voice_norms(tmp_path) == DEFAULT_NORMS
    (tmp_path / "wavgate.json").write_text('{"family": "x"}')
    assert find_voice_norms(tmp_path) is None


def test_a_run_keeps_the_voice_for_its_resumption_and_its_final_weights(tmp_path: Path) -> None:
    base, final = tmp_path / "models" / "base", tmp_path / "run" / "final"
    for folder in (base, final):
        folder.mkdir(parents=True)
    assert find_voice_norms(base, tmp_path / "run") is None
    norms = SpeechNorms(seconds_per_word=0.3, seconds_per_letter=0.01 / 3, level_dbfs=-20.5)
    save_voice_norms(norms, tmp_path / "run")
    assert norms == find_voice_norms(base, tmp_path / "run") == find_voice_norms(final)
    assert find_voice_norms(base) is None


def test_a_voice_is_measured_on_replies_and_not_on_too_few() -> None:
    said = [(3, 12, -20), (5, 30, -22), (2, 5, -24), (9, 31, -21), (7, 41, -23), (1, 9, -60), (4, 16, -22)]
    samples = [
        VoiceSample(words=w, letters=n, seconds=0.2 * w + 0.05 * n, level_dbfs=level)
        for w, n, level in [*said, (6, 22, -22)]
    ]
    norms = fit_voice_norms(samples)
    assert norms is not None and norms.level_dbfs == -22
    assert (norms.seconds_per_word, norms.seconds_per_letter) == pytest.approx((0.2, 0.05))
    assert fit_voice_norms(samples[:-1]) is None
    quiet = Speech(wave=np.zeros(8000, np.float32), sample_rate=8000)
    assert measure_voice_sample("words", quiet) is None and measure_voice_sample("...", quiet) is None
    loud = Speech(wave=np.full(8000, 0.1, np.float32), sample_rate=8000)
    voice_sample = measure_voice_sample("12 cats", loud)
    assert voice_sample is not None and (voice_sample.words, voice_sample.letters, voice_sample.seconds) == (2, 10, 1)
    assert voice_sample.level_dbfs == pytest.approx(-20, abs=0.01)


@pytest.mark.parametrize(
    "voice", ['{"pace": 1}', '{"slow_ratio": 0}', '{"slow_ratio": "fast"}', "[]", '{"loud_db": NaN}']
)
def test_a_voice_that_is_no_voice_is_refused(voice: str, tmp_path: Path) -> None:
    (tmp_path / "wavgate.json").write_text(f'{{"voice": {voice}}}')
    with pytest.raises(ValueError, match="voice"):
        find_voice_norms(tmp_path)
