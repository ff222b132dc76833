"""The recogniser that the settings name.

Invariant: each is imported only when it is asked for, so that what a run does not use need not be installed.
"""

from pathlib import Path

from conf.judging import AsrConfig
from judge.asr import PocketsphinxRecogniser
from judge.ear import SpeechRecogniser
from judge.endpoint import endpoint_from_config
from judge.installed import locate_tiny_en
from judge.transcription import EndpointRecogniser


def build_recogniser(config: AsrConfig, root: Path) -> SpeechRecogniser:
    """The listener of ``judge.asr``; relative paths start at ``root``.

    ValueError: a file, folder, field or package that it needs is not there.
    """
    match config.by:
        case "pocketsphinx":
            model, words = (p and root / p for p in (config.language_model, config.dictionary))
            return PocketsphinxRecogniser(model, words)
        case "endpoint":
            return EndpointRecogniser(endpoint_from_config(config), config.language)
    from judge import whisper

    if config.by == "faster_whisper":
        return whisper.FasterWhisperRecogniser(
            root / config.path if config.path else locate_tiny_en(), config.language
        )
    assert config.path is not None, "the config demands a path"
    return whisper.WhisperRecogniser(root / config.path, config.language)
