"""What is refused before anything starts: a model, data or a checkpoint that the run could not use."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.checks import prepare
from actors.checks.dry_run import describe_job
from actors.checks.prepare import find_unusable_rows, load_usable_family
from actors.errors import UserError
from actors.run import checkpoint
from actors.run.checkpoint import DriverState
from commands.cli import main
from conf.load import PROJECT_ROOT, ConfigError, dump_config, load_config
from conf.messages import format_value
from speech.data.manifest import ManifestError, read_manifest

WORLD = Path(__file__).parents[2] / "examples" / "tiny_world"


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size]) and None


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        content = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(content | changes))

    return edit


def without(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_text(content) and None


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut short": (cut("model.safetensors", 100_000), "model.safetensors: must be a whole safetensors file"),
    "weights empty": (cut("model.safetensors", 0), "model.safetensors: must be a whole safetensors file"),
    "no weights": (without("model.safetensors"), "must hold model.safetensors"),
    "a shard is missing": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "model-1.safetensors"}}'),
        "must hold model-1.safetensors",
    ),
    "a shard outside": (
        text("model.safetensors.index.json", '{"weight_map": {"a": "../model.safetensors"}}'),
        "weight_map must give each tensor a file of this folder",
    ),
    "another width": (edited("config.json", hidden_size=256), "must have the shape"),
    "more layers": (edited("config.json", num_hidden_layers=5), "config.json says 5 layers: the weights have 4"),
    "shorter reach": (edited("config.json", max_position_embeddings=256), "reaches 256 tokens"),
    "config is no JSON": (text("config.json", "{"), "config.json: must be JSON"),
    "no config": (without("config.json"), "config.json"),
    "codec cut short": (cut("codec.safetensors", 1_000), "codec.safetensors: not a readable safetensors file"),
    "no family": (without("wavgate.json"), "wavgate.json: a checkpoint folder must hold this file"),
    "a key that nobody reads": (edited("wavgate.json", codecs="x"), "keys must be family, codec, voice: got codecs"),
    "family is no JSON": (text("wavgate.json", "tiny"), "wavgate.json: must be JSON"),
}  # fmt: skip


@pytest.fixture
def one_rank(short_world: list[str]) -> list[str]:
    """The smallest run on a few rows."""
    return ["learner.ranks=1", "judge.workers=1", *short_world]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(WORLD / "base", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_named_and_nothing_is_written(
    name: str, model: Path, one_rank: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGE[name]
    damage(model)
    assert main(["train", *one_rank, f"model.path={model}", f"run.root={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("model.path: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert main(["say", "hello", str(tmp_path / "out.wav"), "--model", str(model)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def manifest(folder: Path, **changes: Any) -> Path:
    """One sound training row, changed."""
    content = json.loads((WORLD / "data" / "train.jsonl").read_text().splitlines()[0])
    content |= changes
    for clip in {*(clip for clips in content["audios"] for clip in clips), *content["sft_target_audio"]}:
        (folder / clip).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WORLD / "data" / clip, folder / clip)
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(content) + "\n")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft_target_text": "xylophone"}, "rows.jsonl:1: "),
        ({"messages": [{"role": "user", "content": "what is entropy"}], "audios": []}, "entropy"),
        ({"answer": None}, "rows.jsonl:1:answer: the task has no checkable answer"),
        ({"answer": {"match": "final", "value": "!!"}}, "rows.jsonl:1:answer: the expected answer has no words"),
        ({"audios": [["bank/slt/january.flac"] * 60]}, "rows.jsonl:1:messages: prompt + rollout.max_new_tokens"),
        ({"sft_target_audio": ["bank/rms/january.flac"] * 62}, "rows.jsonl:1:sft_target_audio: prompt + reference"),
    ],
)  # fmt: skip
def test_a_row_that_the_model_cannot_use_is_named_by_line(
    changes: dict[str, Any],
    message: str,
    one_rank: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = manifest(tmp_path, **changes)
    runs = tmp_path / "runs"
    assert main(["train", *one_rank, f"data.validation={path}", f"run.root={runs}"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not runs.exists()


def test_a_row_without_an_answer_is_usable_when_the_endpoint_judges_what_was_said(
    one_rank: list[str], tmp_path: Path
) -> None:
    path = manifest(tmp_path, answer=None)
    endpoint = ["judge.api.base_url=http://127.0.0.1:9/v1", "judge.api.model=judge"]
    settings = [*one_rank, "judge=openai", *endpoint, f"data.validation={path}", f"run.root={tmp_path}"]
    job = prepare.prepare_job(settings)
    assert job.validation[0].answer is None
    line = "API judge: judge at http://127.0.0.1:9/v1 for semantic and acoustic: 8 calls for a group of 4 replies, 2 for a reply held out"
    note = "data.validation: is not held out from data.train: it shares 1 ids, 1 questions, 1 clips"
    assert line in (description := describe_job(job)) and job.notes == (note,) and description[-1] == f"note: {note}"
    with pytest.raises(ManifestError, match=r"judge\.semantic needs one"):
        prepare.prepare_job([*settings, "judge.semantic_by=local"])


def test_the_length_of_a_row_is_what_encoding_gives() -> None:
    from conf.schema import ModelConfig
    from speech.data.manifest import read_manifest
    from speech.dataset import RowEncoder, RowLengths
    from speech.families import load_family

    family = load_family(ModelConfig(family="tiny", path=WORLD / "base"))
    rows = read_manifest(WORLD / "data" / "test.jsonl", 60.0)[::20]
    encoder, lengths = RowEncoder(family, WORLD / "data", 60.0), RowLengths(family, WORLD / "data")
    examples = [encoder.encode(row) for row in rows]
    assert [lengths.count_ids(row) for row in rows] == [(len(e.prompt.ids), len(e.target.ids)) for e in examples]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.tokens_per_microbatch=100"], "learner.tokens_per_microbatch: must hold one row"),
        (["cluster=gpu1", "cluster.weight_transfer=nccl"], "weight_transfer: nccl needs colocate=false"),
        (["cluster=gpu1", "rollout.engine=torch"], "rollout.engine: torch needs weight_transfer=object_store"),
        (["rollout.engine=hf"], "rollout.engine: must be vllm, or torch, which gives the replies of the former hf"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.max_length=4000"], "reaches 512 tokens"),
        (["judge.asr.dictionary=/nope"], "judge.asr.dictionary: no file at /nope"),
        (["judge.workers=4096"], "judge.workers=4096 needs 4096 cores"),
        (["cluster=gpu8", "cluster.tensor_parallel=12"], "needs as many GPUs in one machine"),
    ],
)  # fmt: skip
def test_settings_that_this_place_cannot_serve_are_refused(
    overrides: list[str], message: str, one_rank: list[str]
) -> None:
    settings = overrides if "judge.workers=4096" in overrides else [*one_rank, *overrides]
    with pytest.raises(UserError, match=message):
        prepare.prepare_job(settings)


def test_more_memory_than_there_is_is_refused_with_the_sum(
    one_rank: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "read_physical_memory", lambda: 1 << 30)
    with pytest.raises(UserError, match=r"needs about \d\.\d GiB \(driver .* this machine has 1\.0 GiB"):
        prepare.prepare_job(one_rank)


@pytest.fixture
def saved(one_rank: list[str], tmp_path: Path) -> Path:
    """A run directory with one checkpoint."""
    run = tmp_path / "run"
    run.mkdir()
    config = load_config([f"run.root={tmp_path}", "run.name=run", *one_rank])
    (run / "config.yaml").write_text(dump_config(config))
    state = DriverState(
        step=1, seed=0, gate={"lambda": 0.1}, cursors={name: {"count": 40, "seed": i, "drawn": 16} for i, name in enumerate(("prompts", "anchors"))},
        model=checkpoint.model_fingerprint(config.model.path),
    )  # fmt: skip
    checkpoint.save_snapshot(run, state, lambda folder: (folder / "x").write_text("abc") and None, keep=2)  # type: ignore[func-returns-value]
    return run


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.name=other"], "run.name: a resumed run goes on in its own folder"),
        (["run.root=/tmp"], "run.root: a resumed run goes on in its own folder"),
        (["algo.mix=fixed"], "algo.mix: the run began with another"),
        (["data.train={data}/validation.jsonl"], "data.train: the run drew from 40 rows"),
        (["run.seed=5"], "run.seed"),
        (["run.steps=1", "model.path={data}"], "model.path"),
    ],
)  # fmt: skip
def test_a_resume_that_cannot_go_on_leaves_the_run_as_it_is(
    overrides: list[str], message: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in saved.rglob("*"))
    settings = [override.format(data=WORLD / "data") for override in overrides]
    assert main(["train", f"resume={saved}", *settings]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert sorted((path, path.stat().st_mtime_ns) for path in saved.rglob("*")) == before


@pytest.mark.parametrize("same", [True, False])
def test_a_run_goes_on_with_the_rows_it_drew_from_alone(same: bool, saved: Path) -> None:
    config = load_config([f"resume={saved}"])
    digest = read_manifest(config.data.train, config.data.max_seconds).digest
    state = replace(checkpoint.find_newest_snapshot(saved)[1], step=2, data=digest if same else digest[::-1])
    checkpoint.save_snapshot(saved, state, lambda folder: (folder / "x").write_text("abc") and None, keep=2)  # type: ignore[func-returns-value]
    if same:
        assert prepare.prepare_job([f"resume={saved}"]).train.digest == digest
    else:
        with pytest.raises(UserError, match=r"data\.train: the run drew from other rows than .*train\.jsonl has now"):
            prepare.prepare_job([f"resume={saved}"])


def test_a_saved_run_that_fits_can_go_on(saved: Path) -> None:
    job = prepare.prepare_job([f"resume={saved}"])
    assert job.snapshot is not None and job.snapshot[1].step == 1


@pytest.mark.parametrize("content", ["[]", "{}", "{", '{"format": "wavgate-checkpoint-3", "step": 1}'])
def test_a_malformed_checkpoint_manifest_is_a_problem_and_not_a_crash(content: str, saved: Path) -> None:
    (snapshot,) = checkpoint.list_snapshots(saved)
    (snapshot / "manifest.json").write_text(content)
    (problem,) = checkpoint.check_snapshot(snapshot)
    assert "not the manifest of a wavgate-checkpoint-3" in problem


def test_settings_of_a_run_that_are_no_yaml_are_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (saved / "config.yaml").write_text("run: [")
    assert main(["train", f"resume={saved}"]) == 2
    assert "config.yaml: must be a configuration" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from actors.run.record import RunDirectory

    with pytest.raises(UserError, match=r"run\.root: /proc/x/.* cannot be made"):
        RunDirectory.create(load_config(["run.root=/proc/x"]))


def test_long_names_are_no_secrets() -> None:
    name = "tiny_world_grpo_text_lambda05_seed0_again"
    assert format_value(name) == name and load_config([f"run.name={name}"]).run.name == name
    assert format_value("a1" * 20) == "a secret, not shown"


def test_words_that_a_recogniser_of_known_words_cannot_hear_are_a_problem_of_the_row(tmp_path: Path) -> None:
    rows = read_manifest(PROJECT_ROOT / "examples/tiny_world/data/test.jsonl", 60.0)[:2]
    config, family = load_config([]), load_usable_family(load_config([]))
    assert not list(find_unusable_rows(rows, PROJECT_ROOT / "examples/tiny_world/data/test.jsonl", family, config))
    short = tmp_path / "few.dict"
    short.write_text("the DH AH\nthe(2) DH IY\nanswer AE N S ER\n")
    other = load_config([f"judge.asr.dictionary={short}"])
    (problem, *_) = find_unusable_rows(rows, PROJECT_ROOT / "examples/tiny_world/data/test.jsonl", family, other)
    assert problem.field == "sft_target_text" and "judge.asr.dictionary, no other is ever heard" in problem.message
