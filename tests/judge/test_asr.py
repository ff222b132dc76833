"""The recogniser: what it hears depends on the wave alone."""

from pathlib import Path

import numpy as np
import pytest

from judge.recognisers.pocketsphinx import split_words, word_error_rate

pytest.importorskip("pocketsphinx")

from examples.tiny_world.build import DATA
from examples.tiny_world.speak import read_clips
from judge.recognisers.pocketsphinx import PocketsphinxRecogniser
from speech.sound.mel import FloatArray


def say(text: str, style: str = "") -> FloatArray:
    return read_clips(DATA, [f"bank/rms{style}/{word}.flac" for word in text.split()])


@pytest.fixture(scope="module")
def recogniser() -> PocketsphinxRecogniser:
    return PocketsphinxRecogniser(DATA / "asr.arpa", DATA / "asr.dict")


SENTENCES = [
    "the answer is twelve",
    "the opposite of hot is cold",
    "my old doctor sleeps",
    "after may comes june",
]


def test_it_hears_what_was_said(recogniser: PocketsphinxRecogniser) -> None:
    heard = [recogniser.transcribe(say(text), 16_000) for text in SENTENCES]
    assert np.mean([word_error_rate(a, b) for a, b in zip(SENTENCES, heard, strict=True)]) <= 0.1


def test_what_is_heard_does_not_depend_on_what_was_heard_before(recogniser: PocketsphinxRecogniser) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    styles = ["", "-slow", "-loud", ""]
    waves = [*map(say, SENTENCES, styles), noise]
    forward = [recogniser.transcribe(wave, 16_000) for wave in waves]
    backward = [recogniser.transcribe(wave, 16_000) for wave in reversed(waves)][::-1]
    fresh = PocketsphinxRecogniser(DATA / "asr.arpa", DATA / "asr.dict")
    assert forward == backward
    assert forward[3] == fresh.transcribe(waves[3], 16_000)


def test_level_does_not_change_what_is_heard(recogniser: PocketsphinxRecogniser) -> None:
    wave = say(SENTENCES[0])
    assert recogniser.transcribe(wave * np.float32(0.25), 16_000) == recogniser.transcribe(wave, 16_000)


def test_another_sample_rate_is_resampled(recogniser: PocketsphinxRecogniser) -> None:
    import soxr

    wave = soxr.resample(say(SENTENCES[0]), 16_000, 24_000)
    assert recogniser.transcribe(wave, 24_000) == SENTENCES[0]


def test_silence_and_nothing_are_heard_as_no_words(recogniser: PocketsphinxRecogniser) -> None:
    assert recogniser.transcribe(np.zeros(0, np.float32), 16_000) == ""
    assert recogniser.transcribe(np.zeros(8000, np.float32), 16_000) == ""


def test_a_missing_file_or_a_rate_of_zero_is_refused(recogniser: PocketsphinxRecogniser) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.arpa"):
        PocketsphinxRecogniser(Path("nowhere.arpa"), None)
    with pytest.raises(ValueError, match="positive, got 0"):
        recogniser.transcribe(np.zeros(10, np.float32), 0)


def test_words_are_lower_case_spelled_out_and_without_punctuation() -> None:
    assert split_words("The answer is 12, don't ask!") == ["the", "answer", "is", "twelve", "don't", "ask"]
    assert split_words("21") == ["21"]


def test_word_error_rate_counts_edits_per_word_said() -> None:
    assert word_error_rate("the answer is twelve", "the answer is twelve") == 0
    assert word_error_rate("the answer is 12", "The answer is nine.") == 0.25
    assert word_error_rate("", "") == 0
    assert word_error_rate("", "noise") == 1
    assert word_error_rate("hello", "") == 1


def test_numbers_up_to_twelve_are_words_and_others_stay_however_long() -> None:
    assert split_words("7 07 twelve 12 21") == ["seven", "seven", "twelve", "twelve", "21"]
    assert split_words("9" * 5000) == ["9" * 5000]
