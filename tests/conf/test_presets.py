"""Every row of docs/method.md §4 is one config value that says what the method says, and nothing contradicts itself."""

from typing import Any

import pytest

from conf.algorithm import AlgoConfig
from conf.keys import CONFIG_GROUPS
from conf.load import ConfigError, dump_config, load_config, read_config

WORDS = {"text": 1.0, "audio": 0.0, "boundary": 0.0, "stop": 1.0}
EVERYTHING = dict.fromkeys(WORDS, 1.0)
NOTHING = dict.fromkeys(WORDS, 0.0)
HELD = dict.fromkeys(WORDS, 0.01)
PAIRS = ["data.pairs=pairs.jsonl"]
API = ["judge=openai", "judge.api.base_url=http://127.0.0.1:8000/v1", "judge.api.model=judge"]

# name -> what the method is, beside the default: grpo, gate .8/.9/3/5, words, SFT on everything, KL .01
PRESETS: dict[str, dict[str, Any]] = {
    "gated": {},
    "gated_all": {"preference": EVERYTHING},
    "gated_no_ema": {"gate.alpha": 0.0},
    "gated_denoised": {"gate.denoise": True},
    "sft": {"mix": "fixed", "fixed_lambda": 0.0},
    "grpo_text": {"mix": "fixed", "fixed_lambda": 0.5},
    "grpo_all": {"mix": "fixed", "fixed_lambda": 0.5, "preference": EVERYTHING},
    "dpo_text": {"loss": "dpo", "mix": "fixed", "fixed_lambda": 1.0, "kl": NOTHING},
    "dpo_all": {"loss": "dpo", "mix": "fixed", "fixed_lambda": 1.0, "kl": NOTHING, "preference": EVERYTHING},
    "online_dpo": {"loss": "online_dpo", "mix": "fixed", "fixed_lambda": 0.5, "kl": NOTHING},
    "routed": {"routed": True, "mix": "fixed", "fixed_lambda": 0.5, "preference": EVERYTHING},
    "two_stage": {"mix": "two_stage", "fixed_lambda": 1.0, "sft_steps": 30},
}  # fmt: skip


def options(name: str) -> list[str]:
    return [f"algo={name}", *(PAIRS if name.startswith("dpo") else [])]


def settings(algo: AlgoConfig) -> dict[str, Any]:
    """What can change a loss, flat."""
    actual = algo.model_dump()
    del actual["name"]
    return actual | {f"gate.{name}": value for name, value in actual.pop("gate").items()}


def test_every_method_is_one_config_value_and_there_is_no_other() -> None:
    assert CONFIG_GROUPS["algo"] == sorted(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_default_but_for_what_the_method_says(name: str) -> None:
    algo = load_config(options(name)).algo
    default = settings(AlgoConfig()) | {
        "preference": WORDS,
        "sft": EVERYTHING,
        "kl": HELD,
        "entropy": NOTHING,
    }
    assert settings(algo) == default | PRESETS[name]
    assert algo.name == name


def test_a_preset_alone_is_all_that_a_command_line_needs() -> None:
    for name in PRESETS:
        config = load_config(options(name))
        assert config.algo.prefers == (name != "sft")


@pytest.mark.parametrize("name", ["gated", "gated_all", "grpo_text", "grpo_all", "dpo_text", "dpo_all"])
def test_faithful_takes_what_the_released_code_does(name: str) -> None:
    algo = load_config([*options(name), "algo.faithful=true"]).algo
    assert algo.kl.model_dump() == algo.entropy.model_dump() == NOTHING
    assert (algo.importance, algo.epochs, algo.normalise, algo.normalise_by) == ("off", 1, "std", "reward")
    assert algo.aggregation == algo.sft_aggregation == "sequence_mean"
    assert (algo.preference.boundary, algo.preference.stop) == (algo.preference.audio, algo.preference.text)


def test_a_faithful_run_reads_back_as_itself(tmp_path: Any) -> None:
    config = load_config(["algo.faithful=true"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "config.yaml") == config


REFUSED: list[tuple[list[str], str]] = [
    (["algo=routed", "judge.acoustic=0"], "algo.routed: needs two axes"),
    (["algo=routed", "judge.semantic=0"], "algo.routed: needs two axes"),
    (["algo=routed", "algo.normalise_by=axis"], "algo.routed: needs"),
    (["algo=routed", "algo.kl_in=reward"], "algo.kl_in: must be loss"),
    (["algo.normalise_by=axis", "algo.kl_in=reward"], "algo.kl_in: must be loss"),
    (["algo.kl_estimator=k1"], "algo.kl_estimator: must be k2 or k3 with kl_in=loss"),
    (["algo=dpo_text"], "data.pairs: must name a manifest of pairs"),
    (["algo=dpo_all", *PAIRS, "algo.kl.text=0.1"], "algo.kl: must be 0 on every channel"),
    (["algo=dpo_all", *PAIRS, "algo.entropy.audio=0.1"], "algo.entropy: must be 0 on every channel"),
    (["algo=dpo_all", *PAIRS, "algo.mix=gate"], "algo.mix: must be fixed or two_stage"),
    (["algo=online_dpo", "algo.kl.text=0.1"], "algo.kl: must be 0 on every channel"),
    (["algo=online_dpo", "algo.equal_groups=drop"], "algo.equal_groups: must be keep"),
    (["rollout.group_size=1"], "rollout.group_size: must be at least 2"),
    (["algo=online_dpo", "rollout.group_size=1"], "rollout.group_size: must be at least 2"),
    (["algo=two_stage", "rollout.group_size=1"], "rollout.group_size: must be at least 2"),
    (
        ["algo.equal_groups=refill", *API, "judge.api.spend_cap=5", "judge.api.prompt_price=1", "judge.api.completion_price=1"],
        "algo.equal_groups: refill",
    ),
    (["algo.preference={text:0,audio:0,boundary:0,stop:0}"], "algo.preference: must weigh at least one"),
    (["algo.clip_dual=1"], "algo.clip_dual: must be greater than 1"),
    (["algo.faithful=true", "algo.kl.text=0.02"], "algo.kl: must be 0 on every channel, as released"),
    (["algo.faithful=true", "algo.entropy.text=0.1"], "algo.entropy: must be 0 on every channel, as released"),
    (["algo.faithful=true", "algo.epochs=2"], "algo.epochs: must be 1, as released"),
    (["algo.faithful=true", "algo.aggregation=token_mean"], "algo.aggregation: must be sequence_mean, as released"),
    (["algo.faithful=true", "algo.normalise=none"], "algo.normalise: must be std, as released"),
    (["algo.faithful=true", "algo.normalise_by=axis"], "algo.normalise_by: must be reward, as released"),
    (["algo.faithful=true", "algo.importance=sequence"], "algo.importance: must be off, as released"),
    (["algo.faithful=true", "algo.equal_groups=drop"], "algo.equal_groups: must be keep, as released"),
    (["algo.faithful=true", "algo.preference.boundary=1"], "algo.preference: must weigh boundary as audio"),
    (["algo.faithful=true", "algo.preference.stop=0"], "algo.preference: must weigh boundary as audio"),
    (["algo.faithful=true", "algo.sft.boundary=0"], "algo.sft: must weigh boundary as audio"),
    (["algo.faithful=true", "algo=gated_denoised"], "algo.gate.denoise: must be false"),
    (["algo.faithful=true", "algo=online_dpo"], "algo.loss: must be grpo or dpo"),
    (["algo.faithful=true", "algo=routed"], "algo.routed: must be false, as released"),
    (["algo.faithful=true", "judge.scale_hi=10"], "judge.scale_lo: must be 1 and judge.scale_hi 5"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "problem"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    (line,) = caught.value.problems
    assert line.startswith(f"conf: {problem}")


def test_what_is_close_to_a_contradiction_but_none_is_taken() -> None:
    for overrides in (
        ["algo=sft", "rollout.group_size=1"],
        ["algo=dpo_text", *PAIRS, "rollout.group_size=1"],
        ["algo.equal_groups=refill"],
        ["algo.equal_groups=refill", *API],
        ["algo.kl_estimator=k1", "algo.kl_in=reward"],
        ["algo=dpo_text", *PAIRS, "algo.mix=two_stage"],
        ["algo=sft", "algo.preference={text:0,audio:0,boundary:0,stop:0}"],
    ):
        load_config(overrides)
