"""What was tuned on the embedded world is in no run of another model or other data, in whatever order and
combination the groups are chosen; and what a user says wins.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.judging import AsrConfig
from conf.keys import CONFIG_GROUPS
from conf.load import ConfigError, load_config
from conf.schema import Config

TINY_MODEL = load_config([])  # the values that were tuned
OWN = ["data.train=a.jsonl", "data.validation=b.jsonl", "data.test=c.jsonl", "data.pairs=d.jsonl"]
ENDPOINT = ["judge.api.base_url=http://127.0.0.1:8000/v1", "judge.api.model=judge"]
FOLDERS = ["model.path=base", "model.codec=codec"]
OF_THE_MODEL = (
    ("run", "steps"), ("run", "eval_every"), ("run", "checkpoint_every"),
    ("rollout", "max_new_tokens"), ("rollout", "deadline_s"),
    ("learner", "lr"), ("learner", "warmup_steps"), ("learner", "tokens_per_microbatch"),
    ("learner", "activation_checkpointing"), ("learner", "timeout_s"),
    ("model", "max_length"), ("model", "dtype"), ("model", "family"),
)  # fmt: skip
SECONDS = 30.0
IDS_PER_SECOND = {  # of a reply: codes, and what stands beside them
    "vita_audio": 12.5 * (1 + 4 / 8 + 2 / 8),  # 4 text ids and 2 boundaries for 8 codes
    "glm4_voice": 12.5 * (1 + 13 / 26),
    "step_audio2": 25.0 * (1 + 1 / 4),
    "kimi_audio": 12.5 * 2,
}


def combinations(model: str) -> Iterator[list[str]]:
    """The model with each of the data, and with every judge, cluster and objective; the groups' order turns."""
    for place, (data, algo) in enumerate(itertools.product(CONFIG_GROUPS["data"], CONFIG_GROUPS["algo"])):
        judge, cluster = (CONFIG_GROUPS[name][place % len(CONFIG_GROUPS[name])] for name in ("judge", "cluster"))
        chosen = [f"model={model}", f"data={data}", f"judge={judge}", f"cluster={cluster}", f"algo={algo}"]
        more = [*(OWN if data == "manifest" else OWN[-1:]), *(FOLDERS if model != "tiny" else [])]
        more += ["judge.noise=0.5", "judge.readings=2"] if judge == "local" else [*ENDPOINT, "judge.api.repeats=2"]
        more += ["run.root=/shared"] if cluster == "multi" else []
        yield [*chosen[place % 5 :], *chosen[: place % 5], *more]


def tiny_values(config: Config) -> list[str]:
    """The settings that have the embedded model's value."""
    return [
        f"{section}.{name}"
        for section, name in OF_THE_MODEL
        if getattr(getattr(config, section), name) == getattr(getattr(TINY_MODEL, section), name)
    ]


def chosen_in(options: list[str], group: str) -> str:
    return next(option.partition("=")[2] for option in options if option.startswith(f"{group}="))


@pytest.mark.parametrize("model", CONFIG_GROUPS["model"])
def test_no_combination_of_presets_has_a_value_that_was_tuned_on_the_embedded_world(model: str) -> None:
    for options in combinations(model):
        config = load_config(options)
        data = chosen_in(options, "data")
        if (model, data) == ("tiny", "tiny"):
            assert config.judge.asr == TINY_MODEL.judge.asr, options
        else:
            assert config.judge.asr == AsrConfig(), options
            assert (config.judge.asr.by, config.judge.asr.path) == ("faster_whisper", None)
        assert tiny_values(config) == ([f"{s}.{n}" for s, n in OF_THE_MODEL] if model == "tiny" else []), options


def test_the_embedded_values_are_what_they_were() -> None:
    config = load_config([])
    assert (config.learner.lr, config.run.steps, config.rollout.max_new_tokens) == (3e-4, 60, 160)
    assert config.judge.asr.by == "pocketsphinx"
    assert [path and path.name for path in (config.judge.asr.language_model, config.judge.asr.dictionary)] == [
        "asr.arpa",
        "asr.dict",
    ]


@pytest.mark.parametrize("model", [name for name in CONFIG_GROUPS["model"] if name != "tiny"])
def test_a_real_familys_preset_has_the_papers_rate_and_a_budget_for_thirty_seconds(model: str) -> None:
    config = load_config([f"model={model}", "data=manifest", *OWN, *FOLDERS])
    assert config.learner.lr == 1e-6 and config.learner.activation_checkpointing
    need = SECONDS * IDS_PER_SECOND[model]
    assert need <= config.rollout.max_new_tokens <= 1.1 * need
    assert config.rollout.max_new_tokens <= config.model.max_length / 2, "as much again for what is asked"


SAID = [
    ("learner.lr=2e-5", "learner", "lr", 2e-5),
    ("rollout.max_new_tokens=99", "rollout", "max_new_tokens", 99),
    ("run.steps=7", "run", "steps", 7),
    ("learner.activation_checkpointing=false", "learner", "activation_checkpointing", False),
]


@pytest.mark.parametrize(("said", "section", "name", "value"), SAID)
@pytest.mark.parametrize("before", [True, False])
def test_what_a_user_says_wins_before_and_after_the_groups(
    said: str, section: str, name: str, value: object, before: bool
) -> None:
    groups = ["model=glm4_voice", "data=manifest", *OWN, *FOLDERS]
    config = load_config([said, *groups] if before else [*groups, said])
    assert getattr(getattr(config, section), name) == value


def test_a_recogniser_that_a_user_names_wins_over_every_group() -> None:
    said = ["judge.asr.by=whisper", "judge.asr.path=weights"]
    for groups in (["judge=local"], ["data=manifest", "judge=local", *OWN]):
        assert load_config([*said, *groups]).judge.asr.by == load_config([*groups, *said]).judge.asr.by == "whisper"


def test_a_family_beside_another_models_preset_is_refused_with_the_preset_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"model\.family: must come with its preset, model=glm4_voice"):
        load_config(["model.family=glm4_voice", *FOLDERS])
    load_config(["model=glm4_voice", "model.family=glm4_voice", *FOLDERS])


FAMILY = "model:\n  family: glm4_voice\n"
PRESET = "defaults:\n  - override /model: glm4_voice\n"


def in_a_file(folder: Path, group: str, text: str) -> list[list[str]]:
    """The ways to choose a file of one's own: by its path, and by name from a folder."""
    (folder / group).mkdir()
    (folder / group / "mine.yaml").write_text(f"# @package _global_\n{text}")
    by_name = [f"hydra.searchpath=[file://{folder}]", f"{group}=mine"]
    return [[f"{group}={folder / group / 'mine.yaml'}", *FOLDERS], [*by_name, *FOLDERS]]


@pytest.mark.parametrize(
    ("group", "text", "more"),
    [
        ("experiment", FAMILY, []),
        ("experiment", "defaults:\n  - override /model: glm4_voice\nmodel:\n  family: vita_audio\n", []),
        ("experiment", "run:\n  seed: 1\n", ["model.family=glm4_voice"]),
        ("model", f"defaults:\n  - tiny\n  - _self_\n{FAMILY}", []),
        ("data", FAMILY, []),
        ("experiment", FAMILY, ["model=vita_audio"]),
    ],
)
def test_a_family_that_a_file_sets_beside_another_preset_is_refused(
    group: str, text: str, more: list[str], tmp_path: Path
) -> None:
    for overrides in in_a_file(tmp_path, group, text):
        with pytest.raises(ConfigError) as caught:
            load_config([*overrides, *more])
        (line,) = (line for line in caught.value.problems if line.startswith("conf: model.family:"))
        assert "must come with its preset, model=" in line and "`override /model: " in line


@pytest.mark.parametrize(
    ("group", "text", "more"),
    [
        ("experiment", PRESET, ["model.family=glm4_voice"]),
        ("experiment", PRESET + FAMILY, []),
        ("experiment", FAMILY, ["model=glm4_voice"]),
        ("model", f"defaults:\n  - glm4_voice\n  - _self_\n{FAMILY}", ["model.family=glm4_voice"]),
        ("model", FAMILY, []),
    ],
)
def test_a_family_with_its_preset_or_with_none_is_taken_wherever_it_is_said(
    group: str, text: str, more: list[str], tmp_path: Path
) -> None:
    for overrides in in_a_file(tmp_path, group, text):
        config = load_config([*overrides, *more])
        assert config.model.family == "glm4_voice" and config.learner.lr == 1e-6


def test_the_first_stage_is_half_of_the_run_where_nothing_else_is_said() -> None:
    assert load_config(["algo=two_stage"]).algo.sft_steps == 30
    assert load_config(["algo=two_stage", "run.steps=9"]).algo.sft_steps == 4
    assert load_config(["algo=two_stage", "algo.sft_steps=2"]).algo.sft_steps == 2
    assert load_config(["algo=two_stage", "model=glm4_voice", *FOLDERS]).algo.sft_steps == 200


def test_whisper_tiny_en_is_for_english_alone() -> None:
    with pytest.raises(ConfigError, match=r"judge\.asr\.path: must be a folder of weights for a language other"):
        load_config(["data=manifest", *OWN, "judge.asr.language=de"])
    load_config(["data=manifest", *OWN, "judge.asr.language=de", f"judge.asr.path={Path('weights')}"])
