"""The configuration: every shipped file is good, every mistake is one line that names key, rule and value."""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.algorithm import AlgoConfig
from conf.keys import CONFIG_FOLDER, CONFIG_GROUPS, LEAF_KEYS, LIST_ITEM_KEYS, SETTING_KEYS
from conf.load import PROJECT_ROOT, ConfigError, dump_config, expand_sweep, load_config, read_config
from conf.schema import RolloutConfig

MANIFESTS = ["data.train=a.jsonl", "data.validation=b.jsonl", "data.test=c.jsonl"]
ENDPOINT = ["judge.api.base_url=http://127.0.0.1:8000/v1", "judge.api.model=judge"]
OWN_VALUES = {
    "model=step_audio2": ["model.path=examples/tiny_world/base"],
    "data=manifest": MANIFESTS,
    "model=kimi_audio": [
        "model.path=Kimi-Audio-7B-Instruct",
        "model.codec=codec",
    ],
    "model=vita_audio": ["model.path=VITA-Audio-Boost", "model.codec=codec"],
    "model=glm4_voice": ["model.path=glm-4-voice-9b", "model.codec=codec"],
    "cluster=multi": ["run.root=/shared/runs"],
    "algo=dpo_text": ["data.pairs=pairs.jsonl"],
    "algo=dpo_all": ["data.pairs=pairs.jsonl"],
    "algo=gated_denoised": ["judge.api.repeats=2"],
    "algo=two_stage": ["algo.sft_steps=2"],
    "judge=openai": ENDPOINT,
    "judge=panel": ENDPOINT,
}


def problems_of(overrides: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def paths_of(node: Any) -> Iterator[Path]:
    """Every path in a dumped configuration."""
    if isinstance(node, Path):
        yield node
    elif isinstance(node, dict | tuple | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from paths_of(value)


def rows() -> Iterator[list[str]]:
    """Option lists, one of each group, in which every two options of different groups meet."""
    groups = [[f"{group}={option}" for option in choices] for group, choices in CONFIG_GROUPS.items()]
    left = {pair for one, other in itertools.combinations(groups, 2) for pair in itertools.product(one, other)}
    while left:
        row = list(min(left))
        for group in groups:
            if not set(group) & set(row):
                row.append(max(group, key=lambda o: sum({(o, r), (r, o)} & left != set() for r in row)))
        left -= set(itertools.permutations(row, 2))
        yield row


def test_every_two_shipped_options_go_together() -> None:
    assert {"model", "data", "judge", "algo", "cluster", "log", "experiment"} == set(CONFIG_GROUPS)
    for chosen in rows():
        load_config(chosen + [extra for choice in chosen for extra in OWN_VALUES.get(choice, [])])


def test_the_default_is_the_gated_method_on_the_embedded_model_on_this_machine() -> None:
    config = load_config([])
    assert (config.algo.name, config.algo.mix, config.algo.loss) == ("gated", "gate", "grpo")
    assert (config.cluster.kind, config.cluster.address, config.learner.ranks) == ("local", "local", 2)
    assert re.fullmatch(r"gated-seed0-\d{8}-\d{6}", config.run.name)


def test_what_no_file_says_is_what_the_schema_says() -> None:
    assert load_config([]).algo == AlgoConfig()  # also where a section's default differs from its class's
    real = ["model=glm4_voice", *OWN_VALUES["model=glm4_voice"], "rollout.max_new_tokens=768"]
    assert load_config(real).rollout == RolloutConfig()


def test_algo_options_differ_where_the_method_says() -> None:
    sft, text, everything = (load_config([f"algo={name}"]).algo for name in ("sft", "grpo_text", "grpo_all"))
    assert (sft.mix, sft.fixed_lambda) == ("fixed", 0.0)
    assert (text.mix, text.fixed_lambda, text.preference.audio) == ("fixed", 0.5, 0.0)
    assert (everything.mix, everything.preference.audio, everything.preference.boundary) == ("fixed", 1, 1)


def test_every_yaml_file_says_in_its_first_lines_what_it_is_for() -> None:
    for path in CONFIG_FOLDER.rglob("*.yaml"):
        head = [line for line in path.read_text().splitlines()[:2] if not line.startswith("# @package")]
        assert re.match(r"# \w.{20,}", head[0]), path


def test_there_are_fewer_than_eighty_settings_and_each_is_documented() -> None:
    of_api_judge = re.compile(r"(judge\.(api\.|second\.|asr\.|\w+_by$)|algo\.)")
    assert len([key for key in LEAF_KEYS if not of_api_judge.match(key)]) < 80
    for key, field in (LEAF_KEYS | LIST_ITEM_KEYS).items():
        assert field.description and len(field.description) > 10, key


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rollout.group_sise=4", "rollout.group_sise: unknown key; did you mean rollout.group_size? (got 4)"),
        (
            "+rollout.group_sise=4",
            "rollout.group_sise: unknown key; did you mean rollout.group_size? (got 4)",
        ),
        (
            "++rollout.group_sise=4",
            "rollout.group_sise: unknown key; did you mean rollout.group_size? (got 4)",
        ),
        ("group_size=4", "group_size: unknown key; did you mean rollout.group_size? (got 4)"),
        ("algo.gate={alfa:0.5}", "algo.gate.alfa: unknown key; did you mean algo.gate.alpha? (got 0.5)"),
        ("hydra.run.dir=x", "hydra.run.dir: unknown key; `wavgate train --cfg job` lists all keys (got x)"),
        ("algoo=sft", "algoo: unknown key; did you mean algo? (got sft)"),
        (
            "algo=stf",
            "algo: must be one of dpo_all, dpo_text, gated, gated_all, gated_denoised, gated_no_ema, grpo_all,"
            " grpo_text, online_dpo, routed, sft, two_stage (got stf)",
        ),
        ("rollout.group_size", "override: must read key=value (got rollout.group_size)"),
        ("~algo.gate.alpha", "algo.gate.alpha: must be set to a value, not deleted (got ~algo.gate.alpha)"),
        ("run.seed=0,1", "run.seed: a list of choices needs --multirun (got run.seed=0,1)"),
        ("algo.gate.alpha=1.5", "algo.gate.alpha: must be less than 1 (got 1.5)"),
        ("algo.gate.alpha=nan", "algo.gate.alpha: must be a finite number (got nan)"),
        ("algo.gate.theta=inf", "algo.gate.theta: must be a finite number (got inf)"),
        ("algo.gate.theta=9", "algo.gate.theta: must lie on the judge's scale [1.0, 5.0] (got 9.0)"),
        ("learner.betas=[0.9,1]", "learner.betas.1: must be less than 1 (got 1)"),
        ("learner.ranks=-1", "learner.ranks: must be greater than or equal to 1 (got -1)"),
        ("learner.lr=0", "learner.lr: must be greater than 0 (got 0)"),
        ("rollout.group_size=four", "rollout.group_size: must be a valid integer (got four)"),
        ("rollout.group_size=2.5", "rollout.group_size: must be a valid integer (got 2.5)"),
        ("run.steps=true", "run.steps: must not be a truth value (got true)"),
        ("run.steps=null", "run.steps: must be a valid integer (got None)"),
        ("run.steps=", "run.steps: must not be empty: is a variable of the shell not set? (got nothing)"),
        ("rollout=4", "rollout: must be a valid dictionary or instance of RolloutConfig (got 4)"),
        ("model.dtype=float16", "model.dtype: must be 'float32' or 'bfloat16' (got float16)"),
        ("model.path=null", "model.path: must be a path (got None)"),
        (
            "rollout.top_p=0.9",
            "rollout.top_p: is no setting any more, replies are drawn from the whole distribution, the learner"
            " cannot score a truncated one (got 0.9)",
        ),
        (
            "rollout.group_size=1",
            "rollout.group_size: must be at least 2 for the group advantage of algo=gated (got 1)",
        ),
        (
            "cluster.weight_transfer=ipc",
            "cluster.weight_transfer: must be object_store when kind=local (got ipc)",
        ),
        (
            "rollout.max_new_tokens=512",
            "rollout.max_new_tokens: must be below model.max_length=512 to leave room for the prompt (got 512)",
        ),
        (
            "cluster.nodes=2",
            "cluster.nodes: must be 1 when kind=local: a run on CPU is one machine's (got 2)",
        ),
        (
            "cluster.address=ray://head:10001",
            "cluster.address: must be local, auto or host:port of a Ray head (got ray://head:10001)",
        ),
        ("resume=/nowhere", "resume: must be a run directory with a config.yaml (got /nowhere)"),
        (
            "cluster=multi",
            "run.root: must be set: Where run directories live. On a cluster: a file system that every node shares.",
        ),
    ],
)
def test_a_mistake_is_one_line_with_key_rule_and_value(override: str, expected: str) -> None:
    assert problems_of([override]) == [f"conf: {expected}"]


def test_all_mistakes_are_told_at_once_and_each_once() -> None:
    lines = problems_of(["rollout.grup_size=4", "algo=foo", "learner.lr=nan", "run.steps=0", "model.dtype=int8"])
    keys = [line.split(": ")[1] for line in lines]
    assert sorted(keys) == ["algo", "learner.lr", "model.dtype", "rollout.grup_size", "run.steps"]


def test_plain_sft_needs_no_group() -> None:
    assert load_config(["algo=sft", "rollout.group_size=1"]).rollout.group_size == 1


def test_a_plus_before_a_known_key_changes_nothing() -> None:
    assert load_config(["+rollout.group_size=8"]).rollout.group_size == 8
    assert load_config(["+experiment=smoke"]).run.steps == 3


def test_a_setting_typed_wins_over_experiment_and_group() -> None:
    config = load_config(["experiment=smoke", "run.steps=7", "cluster=gpu8", "learner.ranks=2"])
    assert (config.run.steps, config.learner.ranks, config.cluster.gpus_per_node) == (7, 2, 8)


@pytest.mark.parametrize("canary", ["sk-canary0123456789", "hf_canary0123456789", "0123456789abcdef0123456789abcdef"])
def test_a_secret_is_refused_and_never_repeated(canary: str) -> None:
    for key in ("run.name", "algo.name", "judge.api_key", "learner.lr", "model.path"):
        lines = problems_of([f"{key}={canary}"])
        assert all("canary" not in line and canary not in line for line in lines)


def test_an_environment_variable_is_not_read_into_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "canary")
    lines = problems_of(["algo.name=${oc.env:JUDGE_KEY}"])
    assert lines[0].startswith("conf: algo.name: must be the NAME of an environment variable")
    assert "canary" not in lines[0]


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=40))
def test_no_override_however_odd_ends_in_anything_but_a_config_or_its_error(text: str) -> None:
    try:
        load_config([text])
    except ConfigError as error:
        assert error.problems


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(SETTING_KEYS)), st.one_of(st.text(max_size=12), st.floats(), st.integers(), st.booleans())
)
def test_no_value_however_odd_ends_in_anything_but_a_config_or_its_error(key: str, value: object) -> None:
    try:
        load_config([f"{key}={value}"])
    except ConfigError as error:
        assert error.problems


def test_what_is_dumped_reads_back_as_the_same_configuration(tmp_path: Path) -> None:
    for overrides in (
        [],
        ["algo=sft", "learner.lr=1e-6", "run.name=a"],
        ["cluster=gpu8", "judge.asr.language_model=null"],
    ):
        config = load_config(overrides)
        (tmp_path / "config.yaml").write_text(dump_config(config))
        assert read_config(tmp_path / "config.yaml") == config


def test_resuming_takes_the_runs_own_settings_and_goes_on_in_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "moved"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(load_config(["algo=sft", "run.seed=5", "run.name=old"])))
    config = load_config([f"resume={run}", "run.steps=99"])
    assert (config.algo.name, config.run.seed, config.run.steps) == ("sft", 5, 99)
    assert (config.run.root / config.run.name, config.run.resume) == (run, run)
    assert problems_of([f"resume={run}", "algo=gated"]) == ["conf: algo: cannot change in a resumed run (got gated)"]


def test_the_embedded_data_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config([])
    assert config.data.train == PROJECT_ROOT / "examples/tiny_world/data/train.jsonl"
    assert config.run.root == tmp_path / "runs"
    paths = list(paths_of(config.model_dump()))
    assert len(paths) >= 6 and all(path.is_absolute() for path in paths)


def test_a_file_of_the_users_own_wins_over_the_embedded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "examples/tiny_world/data"
    own.mkdir(parents=True)
    (own / "train.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert load_config([]).data.train == own / "train.jsonl"


def test_a_ray_job_must_write_outside_its_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    assert problems_of([])[0].startswith("conf: run.root: must be absolute in a Ray job")
    assert load_config([f"run.root={tmp_path}"]).run.root == tmp_path


def test_a_sweep_is_every_combination_and_each_loads() -> None:
    runs = expand_sweep(["run.seed=0,1", "algo=sft,gated", "rollout.group_size=4"])
    assert runs == [
        [f"run.seed={seed}", f"algo={algo}", "rollout.group_size=4"] for seed in (0, 1) for algo in ("sft", "gated")
    ]
    assert [load_config(run).algo.name for run in runs] == ["sft", "gated"] * 2
    assert expand_sweep(["run.seed=range(0,3)"]) == [["run.seed=0"], ["run.seed=1"], ["run.seed=2"]]


def test_importing_the_loader_brings_no_heavy_package() -> None:
    code = "import sys, conf.load; print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "judge.api.spend_cap=5",
            "judge.api.prompt_price: must be set when spend_cap is (got spend_cap=5)",
        ),
        (
            "judge.api.base_url=http://user:hunter2@host/v1",
            "judge.api.base_url: must be http(s)://host[:port][/path] without user, query or fragment",
        ),
        (
            "judge.api.base_url=ftp://host",
            "judge.api.base_url: must be http(s)://host[:port][/path] without user, query or fragment",
        ),
        (
            "judge.api.key_env=hunter2",
            "judge.api.key_env: must be the NAME of an environment variable (A-Z, 0-9, _); what was given is "
            "not shown, it may be a key",
        ),
        ("judge.api.requests_per_minute=0", "judge.api.requests_per_minute: must be greater than 0 (got 0)"),
        (
            "judge.semantic_by=api",
            "judge.api.base_url: must be set when an axis is judged by api (got nothing)",
        ),
        ("judge.api.also_named=gpt", "judge.api.also_named: must be a list, [a,b] (got gpt)"),
        ("judge.acoustic_by=human", "judge.acoustic_by: must be 'local' or 'api' (got human)"),
    ],
)
def test_a_mistake_about_the_api_judge_is_one_line(override: str, expected: str) -> None:
    assert problems_of([override]) == [f"conf: {expected}"]


def test_the_api_judge_must_be_told_where_and_whom_to_ask() -> None:
    assert {line.split(": ")[1] for line in problems_of(["judge=openai"])} == {
        "judge.api.base_url",
        "judge.api.model",
    }
    judge = load_config(["judge=openai", *ENDPOINT]).judge
    assert judge.api_axes == ("semantic", "acoustic")
    assert load_config(["judge=openai", *ENDPOINT, "judge.acoustic=0"]).judge.api_axes == ("semantic",)
    assert load_config([]).judge.api_axes == ()


def test_the_panel_checks_here_what_was_said_asks_how_it_sounded_and_vetoes() -> None:
    judge = load_config(["judge=panel", *ENDPOINT]).judge
    assert (judge.semantic_by, judge.api_axes) == ("local", ("acoustic",))
    assert {veto.measure for veto in judge.vetoes} == {"loop", "clipping"}
    assert {line.split(": ")[1] for line in problems_of(["judge=panel"])} == {
        "judge.api.base_url",
        "judge.api.model",
    }
    assert load_config([]).judge.vetoes == load_config(["judge=openai", *ENDPOINT]).judge.vetoes == ()


def test_the_cache_of_verdicts_is_an_absolute_path_of_its_own() -> None:
    cache = load_config(["judge=openai", *ENDPOINT, "judge.api.cache=README.md"]).judge.api.cache
    assert cache == Path.cwd() / "README.md"


PLUGIN = "judge.plugins=[{name:mos,path:mos.onnx,sample_rate:16000,reference:voice.wav}]"


def test_lists_of_plugins_and_vetoes_are_set_on_the_command_line_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    vetoes = "judge.vetoes=[{measure:loop,most:0.9},{measure:mos,least:2,most:4.5}]"
    config = load_config([PLUGIN, vetoes])
    (plugin,) = config.judge.plugins
    assert (plugin.path, plugin.reference) == (tmp_path / "mos.onnx", tmp_path / "voice.wav")
    assert [(veto.measure, veto.least, veto.most) for veto in config.judge.vetoes] == [
        ("loop", None, 0.9),
        ("mos", 2.0, 4.5),
    ]
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "config.yaml") == config
    assert load_config(["judge.vetoes=[]"]).judge.vetoes == ()


def test_a_plugin_below_the_projects_folder_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (plugin,) = load_config(["judge.plugins=[{name:mos,path:README.md,sample_rate:16000}]"]).judge.plugins
    assert plugin.path == PROJECT_ROOT / "README.md"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "judge.vetoes=[{measure:lop,most:0.9}]",
            "judge.vetoes: must name a measurement or a plugin; did you mean loop? (got lop)",
        ),
        (
            "judge.vetoes=[{measure:voiced,least:0.2}]",
            "judge.vetoes: must name a measurement or a plugin; pitch is measured by a plugin of yours alone: set"
            " judge.plugins (got voiced)",
        ),
        (
            "judge.vetoes=[{measure:loop}]",
            "judge.vetoes.0.most: must be set where least is not (got nothing)",
        ),
        (
            "judge.vetoes=[{measure:loop,least:0.5,most:0.1}]",
            "judge.vetoes.0.most: must not be below least=0.5 (got 0.1)",
        ),
        (
            "judge.vetoes=[{measure:loop,mots:0.1}]",
            "judge.vetoes.0.mots: unknown key; did you mean judge.vetoes.most? (got 0.1)",
        ),
        ("judge.vetoes=[{measure:loop,most:nan}]", "judge.vetoes.0.most: must be a finite number (got nan)"),
        (
            "judge.vetoes=[{measure:loop,most:true}]",
            "judge.vetoes.0.most: must not be a truth value (got true)",
        ),
        (
            "judge.vetoes=[{measure:sk-canary0123456789,most:1}]",
            "judge.vetoes.0.measure: must be the NAME of an environment variable, never a secret (got a secret, "
            "not shown)",
        ),
        (
            "judge.plugins=[{name:loop,path:a.onnx,sample_rate:16000}]",
            "judge.plugins: must have names of their own (got loop)",
        ),
        (
            "judge.plugins=[{name:wer,path:a.onnx,sample_rate:16000}]",
            "judge.plugins: must have names of their own (got wer)",
        ),
        ("judge.plugins=[{name:mos,path:a.onnx}]", "judge.plugins.0.sample_rate: must be set"),
        (
            "judge.plugins=[{name:mos,path:a.onnx,sample_rate:8000,output:1,reference:b.wav}]",
            "judge.plugins.0.output: must be 0 with a reference, which takes all of it (got 1)",
        ),
        (
            "judge.asr.by=whisper",
            "judge.asr.path: must be a folder of weights when by=whisper (got nothing)",
        ),
        ("judge.asr.by=endpoint", "judge.asr.base_url: must be set when by=endpoint (got nothing)"),
        ("judge.asr.language=English", "judge.asr.language: must match pattern '^[a-z]{2,3}$' (got English)"),
        (
            "judge.language_model=a.arpa",
            "judge.language_model: unknown key; did you mean judge.asr.language_model? (got a.arpa)",
        ),
    ],
)
def test_a_mistake_about_recogniser_plugins_or_vetoes_is_one_line(override: str, expected: str) -> None:
    assert expected in [line.removeprefix("conf: ") for line in problems_of([override])]


def test_a_transcription_must_end_before_the_verdict_that_needs_it() -> None:
    asked = ["judge.asr.by=endpoint", "judge.asr.base_url=http://127.0.0.1:1/v1", "judge.asr.model=w"]
    assert load_config(asked).judge.asr.deadline_s == 30
    assert problems_of([*asked, "judge.deadline_s=30"]) == [
        "conf: judge.asr.deadline_s: must be below judge.deadline_s=30 (got 30)"
    ]


def test_the_run_of_an_older_version_keeps_its_recogniser(tmp_path: Path) -> None:
    config = load_config(["run.name=old"])
    text = dump_config(config).replace("  asr:\n", "  old:\n")
    lines = [line for line in text.splitlines() if line.strip().startswith(("language_model:", "dictionary:"))]
    kept = re.sub(r"  old:\n(    .*\n)+", "".join(f"{line[2:]}\n" for line in lines), text)
    assert "asr:" not in kept and len(lines) == 2
    (tmp_path / "config.yaml").write_text(kept)
    assert read_config(tmp_path / "config.yaml") == config


def test_a_run_that_was_begun_with_a_setting_that_is_gone_goes_on_without_it(tmp_path: Path) -> None:
    config = load_config(["run.name=old"])
    text = dump_config(config).replace("rollout:\n", "rollout:\n  top_p: 1.0\n")
    assert "top_p" in text
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml") == config
    assert load_config([f"resume={tmp_path}"]).rollout == config.rollout


def test_a_key_in_an_address_is_refused_and_not_shown() -> None:
    where = "judge.api.base_url=http://127.0.0.1:8000/v1/sk-abcdefgh12345678"
    (problem,) = problems_of(["judge=openai", where, "judge.api.model=m"])
    assert "never a secret" in problem and "abcdefgh" not in problem


@pytest.mark.parametrize(
    ("algo", "when"),
    [("sft", "lambda is 0 and the run is"), ("two_stage", "the first stage is"), ("gated", None)],
)
def test_a_run_or_a_stage_that_can_learn_nothing_is_refused(algo: str, when: str | None) -> None:
    nothing = [f"algo.sft.{channel}=0" for channel in ("text", "audio", "boundary", "stop")]
    if when is None:
        assert load_config([f"algo={algo}", *nothing]).algo.prefers
        return
    with pytest.raises(ConfigError, match=f"sft: must weigh at least one channel when {when} nothing but SFT"):
        load_config([f"algo={algo}", *nothing])


def test_settings_without_a_second_opinion_are_the_same_but_for_it_and_what_is_changed() -> None:
    api = ["run.name=r", "judge=openai", *ENDPOINT, "judge.api.cache=v.sqlite"]
    second = ["judge.second.base_url=http://127.0.0.1:9/v1", "judge.second.model=n"]
    both, alone = load_config([*api, *second]), load_config(api)
    assert len(both.judge.endpoints) == 2 and both.without_second_opinion() == alone
    uncached = both.without_second_opinion(cache=None)
    assert uncached.judge.api.cache is None and uncached == load_config(api[:-1])
