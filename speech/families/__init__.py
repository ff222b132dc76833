"""The families, one file each, found by name."""

from collections.abc import Collection
from importlib import import_module
from pkgutil import iter_modules

from conf.schema import ModelConfig
from speech.families.base import Family

COMMON_SETTINGS = {"family", "path", "dtype", "max_length", "codec"}  # settings of every family


def family_names() -> list[str]:
    """Every family that there is a file for."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "base")


def load_family(model: ModelConfig) -> Family:
    """The family of a checkpoint folder. ValueError: unknown name or unfit folder."""
    if model.family not in family_names():
        raise ValueError(f"model family must be one of {', '.join(family_names())}: got {model.family}")
    module = import_module(f"{__name__}.{model.family}")
    _check_options(model, module.OPTIONS)
    family: Family = module.load(model)
    if model.ear is not None and family.make_audio_encoder is None:
        raise ValueError(f"model.ear: the model at {model.path} hears codes only: got {model.ear}")
    return family


def _check_options(model: ModelConfig, known: Collection[str]) -> None:
    """ValueError: a setting that only other families have, which this one would ignore."""
    for name, field in ModelConfig.model_fields.items():
        value = getattr(model, name)
        if name not in COMMON_SETTINGS and name not in known and value != field.default:
            raise ValueError(f"model.{name} is no setting of {model.family}: got {value}")
