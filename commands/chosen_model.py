"""Which model ``wavgate say`` and ``eval`` run, and with which settings.

    wavgate say ... --model RUN                               the run's settings, its final/ weights
    wavgate say ... --model FOLDER                            train.yaml; the family that wavgate.json names,
                                                              with its preset
    wavgate say ... model=vita_audio model.path=FOLDER ...    settings as for train, on top of either

Invariant: a model that ``train`` would refuse is refused here, in the same line.
"""

from collections.abc import Sequence
from pathlib import Path

from actors.errors import UserError
from conf.keys import CONFIG_GROUPS
from conf.load import load_config, read_config
from conf.schema import Config
from speech.checkpoints.folder import read_json

CURRENT_FOLDER_OVERRIDE = "model.path=."  # where a preset wants one; what was named takes its place
CODEC_WITHIN = "model.codec=null"  # where a preset wants one: the folder may hold or name its codec


def load_model_config(model: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The settings, with the path and the family of the model. UserError, ConfigError: it cannot be used."""
    from actors.checks.prepare import check_engine, load_usable_family

    placed = any(override.startswith("model.path=") for override in overrides)
    if model is not None and placed:
        raise UserError(f"model.path: is what --model names as well, give one of the two: got --model {model}")
    if model is not None and (model / "config.yaml").is_file():
        config, path = _load_run_config(model, overrides), (model / "final").absolute()
        if not path.is_dir():
            raise UserError(f"{model}: has no final/ yet: `wavgate export {model}` writes its newest checkpoint")
    else:
        settings = [*overrides, *([CURRENT_FOLDER_OVERRIDE] if model is not None else [])]
        config = load_config(settings)
        path = config.model.path if model is None else model.absolute()
        declared = (
            config.model.family
            if _has_family_override(overrides)
            else _read_declared_family(path, config.model.family)
        )
        if declared != config.model.family and declared in CONFIG_GROUPS["model"]:
            config = load_config([f"model={declared}", CODEC_WITHIN, *settings])
    family = (
        config.model.family if _has_family_override(overrides) else _read_declared_family(path, config.model.family)
    )
    model_config = config.model.model_copy(update={"path": path, "family": family})
    config = config.model_copy(update={"model": model_config})
    check_engine(config)
    load_usable_family(config)
    return config


def _load_run_config(run: Path, overrides: Sequence[str]) -> Config:
    if not overrides:
        return read_config(run / "config.yaml")
    quoted = str(run.absolute()).replace("'", "\\'")
    return load_config([f"resume='{quoted}'", *overrides])


def _has_family_override(overrides: Sequence[str]) -> bool:
    return any(override.startswith(("model=", "model.family=")) for override in overrides)


def _read_declared_family(path: Path, default: str) -> str:
    """What the folder's wavgate.json says."""
    file = path / "wavgate.json"
    try:
        family = read_json(file).get("family", default) if file.is_file() else default
    except ValueError as error:
        raise UserError(str(error)) from error
    if not isinstance(family, str):
        raise UserError(f"{file}: family must be a name: got {family}")
    return family
