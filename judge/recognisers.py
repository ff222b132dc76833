"""The recogniser that the settings name.

Invariant: each is imported only when it is asked for, so that what a run does not use need not be installed.
"""

from pathlib import Path

from conf.judging import AsrConfig
from judge.asr import Recogniser
from judge.ear import Listener
from judge.endpoint import endpoint_of
from judge.installed import tiny_en
from judge.transcription import Transcriber


def recogniser_from(config: AsrConfig, root: Path) -> Listener:
    """The listener of ``judge.asr``; relative paths start at ``root``.

    ValueError: a file, folder, field or package that it needs is not there.
    """
    match config.by:
        case "pocketsphinx":
            model, words = (p and root / p for p in (config.language_model, config.dictionary))
            return Recogniser(model, words)
        case "endpoint":
            return Transcriber(endpoint_of(config), config.language)
    from judge import whisper

    if config.by == "faster_whisper":
        return whisper.FasterWhisper(root / config.path if config.path else tiny_en(), config.language)
    assert config.path is not None, "the config demands a path"
    return whisper.Whisper(root / config.path, config.language)
