"""Whisper from a local folder, in two forms: transformers' and faster-whisper's. Nothing is downloaded.

Invariant: the same wave gives the same words: greedy, no temperature fallback, each window by itself. A
window without speech is not decoded at all: Whisper makes up words in silence.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from judge.recognisers.installed import WHISPER_INSTALL_HINT
from judge.rules import measure
from speech.checkpoints.folder import read_tensor_shapes
from speech.sound.audio import resample

WhisperWave = NDArray[np.float32]

WHISPER_SAMPLE_RATE = 16_000
WHISPER_WINDOW_S = 30.0  # seconds that the encoder takes
CPU_MODEL_OPTIONS: dict[str, Any] = {"device": "cpu", "compute_type": "int8", "cpu_threads": 1, "num_workers": 1}
SEAM_SEARCH_S = 5.0  # seconds at a window's end in which the quietest place is looked for


class WhisperRecogniser:
    """A Hugging Face folder of WhisperForConditionalGeneration; its weights as safetensors and nothing else.

    float32 on a CPU, bfloat16 on a GPU where there is one.

    Example:
        recogniser = WhisperRecogniser(Path("weights/whisper-small"), "en")
        recogniser.transcribe(wave, 24_000)  # "The answer is twelve."
    """

    def __init__(self, path: Path, language: str) -> None:
        """ValueError: no whole checkpoint of this kind in the folder."""
        import torch
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

        read_tensor_shapes(path)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._features = WhisperFeatureExtractor.from_pretrained(path, **local)
            self._tokens = WhisperTokenizer.from_pretrained(path, **local)
            model, loading_info = WhisperForConditionalGeneration.from_pretrained(
                path, use_safetensors=True, dtype=self._dtype, output_loading_info=True, **local
            )
        except (OSError, ValueError, KeyError, RuntimeError) as broken:
            raise ValueError(f"{path}: must be a Whisper checkpoint: {broken}") from broken
        if loading_info["missing_keys"]:  # they would be random
            raise ValueError(
                f"{path}: must have all weights: lacks {', '.join(sorted(loading_info['missing_keys'])[:3])}"
            )
        self._model = model.to(self._device).eval()
        many = getattr(self._model.generation_config, "is_multilingual", False)
        self._language_options = {"language": language, "task": "transcribe"} if many else {}

    def transcribe(self, wave: WhisperWave, sample_rate: int) -> str:
        """The words heard; silence, an empty string."""
        pieces = [self._transcribe_window(part) for part in split_speech_windows(wave, sample_rate)]
        return " ".join(text for text in pieces if text)

    def _transcribe_window(self, wave: WhisperWave) -> str:
        import torch

        features = self._features(
            wave, sampling_rate=WHISPER_SAMPLE_RATE, return_tensors="pt", return_attention_mask=True
        )
        with torch.inference_mode():
            ids = self._model.generate(
                features.input_features.to(self._device, self._dtype),
                attention_mask=features.attention_mask.to(self._device),
                do_sample=False,
                num_beams=1,
                **self._language_options,
            )
        return str(self._tokens.decode(ids[0], skip_special_tokens=True)).strip()


class FasterWhisperRecogniser:
    """A CTranslate2 folder, heard with faster-whisper.

    Its model.bin is CTranslate2's own format and not a pickle: it is parsed, and holds no code. On the CPU,
    one thread, 8-bit weights: judges work beside engines and learner, and there are several.

    Example:
        recogniser = FasterWhisperRecogniser(Path("weights/whisper-small-ct2"), "en")
    """

    def __init__(self, path: Path, language: str) -> None:
        """ValueError: faster-whisper is not installed, or there is no whole checkpoint in the folder."""
        try:
            from faster_whisper import WhisperModel
        except ImportError as missing:
            raise ValueError(
                f"judge.asr.by=faster_whisper needs the package faster-whisper: {WHISPER_INSTALL_HINT}"
            ) from missing
        for name in ("model.bin", "config.json", "tokenizer.json"):  # without the last it would download one
            if not (path / name).is_file():
                raise ValueError(f"{path}: a CTranslate2 checkpoint must hold {name}")
        try:
            self._model = WhisperModel(str(path), **CPU_MODEL_OPTIONS, local_files_only=True)
        except (RuntimeError, ValueError) as broken:
            raise ValueError(f"{path}: must be a CTranslate2 checkpoint: {broken}") from broken
        self._language = language

    def transcribe(self, wave: WhisperWave, sample_rate: int) -> str:
        """The words heard; silence, an empty string."""
        pieces = [self._transcribe_window(part) for part in split_speech_windows(wave, sample_rate)]
        return " ".join(text for text in pieces if text)

    def _transcribe_window(self, wave: WhisperWave) -> str:
        segments, _ = self._model.transcribe(
            wave,
            language=self._language,
            beam_size=1,
            best_of=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return "".join(segment.text for segment in segments).strip()


def split_speech_windows(wave: WhisperWave, sample_rate: int) -> Iterator[WhisperWave]:
    """The parts of a wave with speech in them, at 16 kHz, at most 30 s each, cut where it is quietest.

    ValueError: a rate that is none.
    """
    if sample_rate <= 0:
        raise ValueError(f"sample rate must be positive, got {sample_rate}")
    remaining = (
        wave
        if sample_rate == WHISPER_SAMPLE_RATE or not len(wave)
        else resample(wave, sample_rate, WHISPER_SAMPLE_RATE)
    )
    while len(remaining):
        end = _find_window_end(remaining)
        part, remaining = remaining[:end], remaining[end:]
        if measure.find_speech_frames(measure.measure_frame_levels(part, WHISPER_SAMPLE_RATE)).any():
            yield part


def _find_window_end(wave: WhisperWave) -> int:
    """Samples of the first window: all, or up to the quietest frame of its last ``SEAM_SEARCH_S`` seconds."""
    longest = round(WHISPER_WINDOW_S * WHISPER_SAMPLE_RATE)
    if len(wave) <= longest:
        return len(wave)
    start = longest - round(SEAM_SEARCH_S * WHISPER_SAMPLE_RATE)
    quietest = int(np.argmin(measure.measure_frame_levels(wave[start:longest], WHISPER_SAMPLE_RATE)))
    return start + round((quietest + 0.5) * measure.FRAME_S * WHISPER_SAMPLE_RATE)
