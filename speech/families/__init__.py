"""The families, one file each, found by name."""

from importlib import import_module
from pkgutil import iter_modules

from conf.schema import ModelConfig
from speech.families.base import Family


def family_names() -> list[str]:
    """Every family that there is a file for."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "base")


def load_family(model: ModelConfig) -> Family:
    """The family of a checkpoint folder. ValueError: unknown name or unfit folder."""
    if model.family not in family_names():
        raise ValueError(f"model family must be one of {', '.join(family_names())}: got {model.family}")
    family: Family = import_module(f"{__name__}.{model.family}").load(model)
    return family
