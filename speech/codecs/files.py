"""What the codecs on disk have in common: a fingerprint of their files, and rates that must agree."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from speech.checkpoints.folder import read_json


def fingerprint_files(folder: Path, files: Sequence[Path]) -> str:
    """Of the files' names below ``folder`` and their contents, in whatever order they are named."""
    digest = hashlib.sha256()
    for file in sorted(set(files)):
        with file.open("rb") as content:
            own = hashlib.file_digest(content, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder)} {own}\n".encode())
    return digest.hexdigest()


def check_same_rate(file: Path, field: str, rate: float, source: Path) -> None:
    """ValueError: ``file`` is there and its ``field`` is another rate than the one that ``source`` gives."""
    declared = read_json(file).get(field) if file.is_file() else None
    if declared is not None and declared != rate:
        rule = f"codec rate mismatch: {field} must be {rate:g}, which is what {source.name} says"
        raise ValueError(f"{file}: {rule}: got {declared}")
