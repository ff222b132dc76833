"""The examples of docs/extend.md do what the page says, as they stand there."""

import re
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import numpy as np
import pytest

import speech.families
from commands.cli import main
from conf.load import load_config
from conf.schema import ModelConfig
from learner.statistics import compute_group_statistics
from speech.codecs import load_codec
from speech.families import load_family
from speech.turns import Turn

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extend.md").read_text()


def read_example(section: str, language: str = "python") -> str:
    """The first code of a language below a heading of the page."""
    body = PAGE.split(f". {section}\n", 1)[1]
    match = re.search(rf"```{language}\n(.*?)```", body.split("\n## ", 1)[0], re.DOTALL)
    assert match, section
    return match[1]


def load_example(section: str) -> ModuleType:
    module = ModuleType("example")
    exec(compile(read_example(section), f"docs/extend.md, {section}", "exec"), module.__dict__)
    return module


def test_the_method_is_a_file_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "my-conf" / "algo"
    folder.mkdir(parents=True)
    text = read_example("A method", "yaml")
    (folder / "late_text.yaml").write_text(text)
    algo = load_config([f"hydra.searchpath=[{tmp_path / 'my-conf'}]", "algo=late_text"]).algo
    assert (algo.name, algo.sft_steps, algo.kl.audio, algo.entropy.text) == ("late_text", 20, 0.05, 0.001)


def test_the_gate_weighs_by_the_share_of_useful_groups() -> None:
    gate = load_example("A gate").SolvedShareGate(good=4.0)
    rewards = [[5, 1, 1, 1], [1, 1, 2, 1], [5, 5, 5, 5], [1, 5, 5, 1]]
    groups = [group for row in rewards if (group := compute_group_statistics(row, 4)) is not None]
    assert gate.update(groups).weight == 0.5
    assert gate.update([]).weight == 0.5
    other = load_example("A gate").SolvedShareGate(good=4.0)
    other.load_state_dict(gate.state_dict())
    assert other.update([]).weight == 0.5


def test_the_judge_is_probed_and_hears_what_is_loud(capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("A judge")
    server = ThreadingHTTPServer(("127.0.0.1", 0), example.Judge)
    Thread(target=server.serve_forever, daemon=True).start()
    settings = [f"judge.api.base_url=http://127.0.0.1:{server.server_port}/v1", "judge.api.model=loudness"]
    try:
        assert main(["judge", "probe", "judge=panel", *settings]) == 0
    finally:
        server.shutdown()
        server.server_close()
    said = capsys.readouterr().out
    assert said.startswith("judge answers by tagged text") and ": audio," in said


def test_the_family_speaks_behind_a_system_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brief.py").write_text(read_example("A model family"))
    monkeypatch.setattr(speech.families, "__path__", [*speech.families.__path__, str(tmp_path)])
    path = ROOT / "examples/tiny_world/base"
    tiny, brief = (load_family(ModelConfig(family=name, path=path)) for name in ("tiny", "brief"))
    asked = [Turn.from_parts("user", "what is one plus two")]
    words = [brief.vocabulary.decode([id]) for id in brief.encode_prompt(asked).ids]
    assert brief.encode_prompt(asked).ids[-len(tiny.encode_prompt(asked).ids) :] == tiny.encode_prompt(asked).ids
    assert "answer" in words


def test_the_codec_keeps_the_loudness_of_each_frame(tmp_path: Path) -> None:
    load_example("A codec").write_codec(tmp_path)
    codec = load_codec(tmp_path)
    wave = np.repeat(np.float32([0.0, 0.5, 1.0]), 1280)
    assert codec.encode(wave) == [0, 15, 31]
    spoken = codec.decode([0, 15, 31])
    assert [round(float(frame.max()), 2) for frame in spoken.reshape(3, -1)] == [0.0, 0.48, 1.0]
