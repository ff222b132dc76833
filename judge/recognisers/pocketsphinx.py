"""What a recogniser hears in a waveform: pocketsphinx, a third party that saw neither the model nor its text.

Invariant: the same wave gives the same words whatever was decoded before: cepstral means are taken per
utterance, the dither comes from a fixed seed, no state is carried over.
"""

from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt

from speech.answers.words import split_words, unify_accents

POCKETSPHINX_SAMPLE_RATE = 16_000
PADDING_S = 0.4  # seconds of near silence before and after
DITHER_DEVIATION = 2e-4
NORMALISED_PEAK = 0.5  # peak the recogniser gets

FAST_DECODER_OPTIONS = {"ds": 2, "lw": 12.0}  # measured on held-out replies: half the time, no more errors


class PocketsphinxRecogniser:
    """Transcribes short replies; without a language model it listens for any English.

    Example:
        recogniser = PocketsphinxRecogniser(data / "asr.arpa", data / "asr.dict")
        recogniser.transcribe(wave, 16_000)  # "the answer is twelve"
    """

    def __init__(self, language_model: Path | None, dictionary: Path | None, **settings: Any) -> None:
        try:
            import pocketsphinx
        except ImportError as missing:
            raise ValueError("the recogniser needs pocketsphinx: pip install pocketsphinx") from missing
        for path in (language_model, dictionary):
            if path is not None and not path.is_file():
                raise ValueError(f"recogniser file must exist, got {path}")
        options: dict[str, Any] = {"loglevel": "FATAL", "cmn": "batch"}
        if language_model is not None:
            options |= FAST_DECODER_OPTIONS | {"lm": str(language_model)}
        if dictionary is not None:
            options["dict"] = str(dictionary)
        self._decoder = pocketsphinx.Decoder(**(options | settings))

    def transcribe(self, wave: npt.NDArray[np.float32], sample_rate: int) -> str:
        """The words heard, lower case; nothing heard, an empty string."""
        if sample_rate <= 0:
            raise ValueError(f"sample rate must be positive, got {sample_rate}")
        if not len(wave) or not np.abs(wave).max() > 1e-5:
            return ""
        samples = _prepare_samples(wave, sample_rate)
        self._decoder.reinit_feat()  # else noise removal remembers earlier waves and words change
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return "" if hypothesis is None else str(hypothesis.hypstr)


def _prepare_samples(wave: npt.NDArray[np.float32], sample_rate: int) -> npt.NDArray[np.int16]:
    if sample_rate != POCKETSPHINX_SAMPLE_RATE:
        import soxr

        wave = soxr.resample(wave, sample_rate, POCKETSPHINX_SAMPLE_RATE)
    silence = np.zeros(int(PADDING_S * POCKETSPHINX_SAMPLE_RATE), np.float32)
    padded = np.concatenate([silence, wave * (NORMALISED_PEAK / np.abs(wave).max()), silence])
    noise = np.random.default_rng(0).normal(0, DITHER_DEVIATION, len(padded))
    return np.asarray(np.clip(padded + noise, -1, 1) * 32767, np.int16)


def word_error_rate(reference: str, transcript: str) -> float:
    """Edits per reference word; nothing said and nothing heard is 0, words heard in silence 1."""
    expected, recognised = unify_accents(split_words(reference), split_words(transcript))
    if not expected:
        return float(bool(recognised))
    return float(jiwer.wer(" ".join(expected), " ".join(recognised)))
