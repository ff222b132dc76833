"""The families by name. A checkpoint folder says in ``wavgate.json`` which family it belongs to."""

from collections.abc import Callable
from pathlib import Path

from speech.families.base import Family
from speech.families.tiny import TinyFamily

FAMILIES: dict[str, Callable[[Path], Family]] = {"tiny": TinyFamily.load}


def load_family(name: str, path: Path) -> Family:
    """The family ``name``, built from a checkpoint folder. ValueError: unknown name or unfit folder."""
    if name not in FAMILIES:
        raise ValueError(f"model family must be one of {', '.join(sorted(FAMILIES))}: got {name}")
    return FAMILIES[name](Path(path))
