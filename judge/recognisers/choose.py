"""The recogniser that the settings name.

Invariant: each is imported only when it is asked for, so that what a run does not use need not be installed.
"""

from pathlib import Path

from conf.judging import AsrConfig
from judge.endpoint.address import endpoint_from_config
from judge.recognisers.endpoint import EndpointRecogniser
from judge.recognisers.installed import locate_tiny_en
from judge.recognisers.pocketsphinx import PocketsphinxRecogniser
from judge.recognisers.remembered import SpeechRecogniser


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
    from judge.recognisers import whisper

    if config.by == "faster_whisper":
        return whisper.FasterWhisperRecogniser(
            root / config.path if config.path else locate_tiny_en(), config.language
        )
    assert config.path is not None, "the config demands a path"
    return whisper.WhisperRecogniser(root / config.path, config.language)
