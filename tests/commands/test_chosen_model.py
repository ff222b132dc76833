"""``wavgate say`` and ``eval``: a folder that names its family is run with that family's settings."""

import json
from pathlib import Path

import pytest

from actors.checks import prepare
from actors.errors import UserError
from commands.chosen_model import load_model_config
from conf.load import load_config


@pytest.mark.parametrize("by", ["--model", "model.path="])
def test_a_folder_that_names_its_family_has_that_ones_preset(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "load_usable_family", lambda config: None)
    (tmp_path / "wavgate.json").write_text(json.dumps({"family": "glm4_voice"}))
    preset = load_config(["model=glm4_voice", "model.path=.", "model.codec=codec"])
    config = (
        load_model_config(tmp_path, ["model.codec=codec"])
        if by == "--model"
        else load_model_config(None, [f"{by}{tmp_path}", "model.codec=codec"])
    )
    assert config.model == preset.model.model_copy(update={"path": tmp_path})
    assert (config.rollout, config.judge.asr) == (preset.rollout, preset.judge.asr)
    assert load_model_config(tmp_path).model.codec is None  # it may be within
    assert load_model_config(tmp_path, ["model=vita_audio", "model.codec=codec"]).model.family == "vita_audio"


def test_a_folder_that_names_a_family_that_nobody_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wavgate.json").write_text(json.dumps({"family": "nobodys"}))
    with pytest.raises(UserError, match="nobodys"):
        load_model_config(tmp_path)
