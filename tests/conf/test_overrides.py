"""What people type as key=value: paths of any letters, nothing at all, variables, sweeps, settings of their own."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from commands.cli import main
from conf.keys import LEAF_KEYS
from conf.load import ConfigError, expand_sweep, load_config
from conf.overrides import quote_override, takes_text


def problem_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(list(overrides))
    (line,) = caught.value.problems
    return line.removeprefix("conf: ")


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1))
def test_quoted_text_is_read_back_whatever_is_in_it(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quote_override(text)}").value() == text


@pytest.mark.parametrize(
    "typed",
    [
        "/data/train (1).jsonl", "/data/训练.jsonl", "/data/lr=1/train.jsonl", "/data/it's.jsonl", "/data/a & b;c!<d>#e",
        "/data/[x].jsonl", "/data/{x}.jsonl", '/data/"x".jsonl', "/data/x\\y", "/data/x`y`|z?*", "/data/ü:ß@x%20", "/data/f(x",
    ],
)  # fmt: skip
def test_a_path_is_taken_as_it_was_typed(typed: str) -> None:
    assert load_config([f"data.train={typed}"]).data.train == Path(typed)
    assert load_config([f"data.train={quote_override(typed)}"]).data.train == Path(typed)
    assert [load_config(run).data.train for run in expand_sweep([f"data.train={typed}", "run.seed=0,1"])] == [
        Path(typed)
    ] * 2


@pytest.mark.parametrize("typed", ["~/train.jsonl", "~/(1)/train.jsonl"])
def test_a_tilde_is_the_home(typed: str) -> None:
    assert load_config([f"data.train={typed}"]).data.train == Path(typed).expanduser()


@pytest.mark.parametrize("typed", ["20261130", "1e3", "true", "007", "1_000"])
def test_a_name_that_looks_like_a_number_is_that_name(typed: str) -> None:
    assert load_config([f"run.name={typed}"]).run.name == typed


@pytest.mark.parametrize("value", ["", "  ", "''"])
@pytest.mark.parametrize("key", sorted(key for key in LEAF_KEYS if takes_text(key) and key != "model.system"))
def test_an_empty_value_is_refused_by_its_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([f"{key}={value}"])
    rule = f"conf: {key}: must not be empty: is a variable of the shell not set? (got nothing)"
    assert rule in caught.value.problems


def test_no_system_turn_is_a_choice() -> None:
    assert load_config(["model.system="]).model.system == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("resume=", "resume: must not be empty: is a variable of the shell not set? (got nothing)"),
        ("resume=~/no (1)", "resume: must be a run directory with a config.yaml (got "),
        ("foo.bar=(1", "foo.bar: unknown key"),
        ("algo=(1", "algo: must be one of dpo_all, "),
        ("learner.lr=(1", "learner.lr: must be a valid number (got (1)"),
        ("data.train=/a,b.jsonl", "data.train: a list of choices needs --multirun; a comma in one value: "),
        (
            "data.train=${oc.env:WAVGATE_NONE}/x",
            "data.train: the environment variable WAVGATE_NONE is not set",
        ),
        ("experiment=/nowhere/x.yaml", "experiment: must be a .yaml file that exists (got /nowhere/x.yaml)"),
        ("hydra.searchpath=[/nowhere]", "--config-dir: no folder at /nowhere"),
    ],
)
def test_a_mistake_is_told_by_its_own_key(override: str, message: str) -> None:
    assert problem_of(override).startswith(message)


def test_a_path_may_hold_a_variable_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVGATE_DATA", "/data (1)")
    assert load_config(["data.train=${oc.env:WAVGATE_DATA}/x.jsonl"]).data.train == Path("/data (1)/x.jsonl")
    assert load_config(["data.train=${oc.env:WAVGATE_NONE,/other}/x"]).data.train == Path("/other/x")


def test_a_glob_chooses_among_the_options_of_a_group() -> None:
    assert expand_sweep(["algo=glob(grpo*)"]) == [["algo=grpo_all"], ["algo=grpo_text"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algo=glob(none*)", "algo: must match one of dpo_all"),
        ("run.seed=glob(*)", "run.seed: only groups have options to match"),
        ("learner.lr=interval(0,1)", "learner.lr: an interval has no list of values: give them, or a range"),
    ],
)
def test_a_sweep_over_nothing_is_told_by_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"conf: {message}"):
        expand_sweep([override])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of a user's own settings."""
    for name, text in {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /algo: slow\nrun:\n  steps: 7\n",
        "algo/slow.yaml": "defaults:\n  - gated\ngate:\n  alpha: 0.99\n",
        "experiment/deep/er.yaml": "# @package _global_\nrun:\n  steps: 8\n",
    }.items():
        file = tmp_path / "my conf (1)" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "my conf (1)"


def test_groups_of_a_folder_of_ones_own_are_options_beside_the_projects(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"hydra.searchpath=[{quote_override(str(own))}]"
    config = load_config([folder, "experiment=mine", "run.seed=3"])
    assert (config.run.steps, config.algo.gate.alpha, config.run.seed) == (7, 0.99, 3)
    assert load_config([folder, "experiment=deep/er"]).run.steps == 8
    assert main(["train", "--cfg", "job", "--config-dir", str(own), "experiment=mine"]) == 0
    assert "steps: 7" in capsys.readouterr().out
    assert main(["train", "--cfg", "job", f"--config-dir={own}", "experiment=none"]) == 2
    assert "must be one of smoke, deep/er, mine (got none)" in capsys.readouterr().err


def test_an_experiment_may_be_a_file_anywhere(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own / "experiment" / "smoke.yaml").write_text("# @package _global_\nrun:\n  steps: 9\n")
    assert load_config([f"experiment={own}/experiment/smoke.yaml"]).run.steps == 9, "not the project's smoke"
    monkeypatch.chdir(own)
    assert load_config(["experiment=experiment/deep/er.yaml"]).run.steps == 8


def test_an_option_of_the_project_cannot_be_replaced_unseen(own: Path) -> None:
    (own / "algo" / "sft.yaml").write_text("loss: grpo\n")
    folder = f"hydra.searchpath=[{quote_override(str(own))}]"
    assert problem_of(folder, "algo=sft").endswith("sft.yaml has the name of an option of the project")
