"""Predictors from an ONNX file: what is fed, what comes out, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("onnx", reason="onnx makes the models of these tests")
pytest.importorskip("onnxruntime", reason="the extra `plugins` is not installed")

from onnx import TensorProto, helper, numpy_helper

from conf.judging import PluginConfig, VetoConfig
from judge.panel import Panel, build_panel
from judge.rules.plugins import OnnxPredictor
from judge.types import CallFailed, MissingVerdict, ScoredVerdict
from rollout.types import Speech
from speech.sound.audio import resample
from tests.helpers.judge_builders import CONFIG, RATE, WORLD, Parrot, reply, speech, spoken, task

TEXT = "the answer is twelve"
FLOAT = TensorProto.FLOAT
RAMP = np.linspace(-0.5, 0.5, 800, dtype=np.float32)


def graph(shape: list[int | str], nodes: list[object], out: list[int | str], constants: object = ()) -> bytes:
    """A model from ``wave`` of a shape to ``out``."""
    made = helper.make_graph(
        nodes,
        "micro",
        [helper.make_tensor_value_info("wave", FLOAT, shape)],
        [helper.make_tensor_value_info("out", FLOAT, out)],
        list(constants),  # type: ignore[call-overload]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def moments(shape: list[int | str]) -> bytes:
    """[[mean, mean of squares, samples]] of what is fed."""
    flat = helper.make_node("Flatten", ["wave"], ["flat"], axis=0)
    nodes = [
        flat,
        helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["flat", "flat"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["power"], axes=[1], keepdims=1),
        helper.make_node("Div", ["squares", "squares"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["samples"], keepdims=1),
        helper.make_node("Concat", ["mean", "power", "samples"], ["out"], axis=1),
    ]
    return graph(shape, nodes, [1, 3])


def identity(shape: list[int | str]) -> bytes:
    return graph(shape, [helper.make_node("Identity", ["wave"], ["out"])], shape)


def plugin(folder: Path, model: bytes, **fields: object) -> OnnxPredictor:
    (folder / "model.onnx").write_bytes(model)
    known = {"name": "mos", "path": "model.onnx", "sample_rate": RATE}
    return OnnxPredictor(PluginConfig.model_validate(known | fields), folder)


def at(rate: int, wave: np.ndarray) -> Speech:
    return Speech(wave=np.asarray(wave, np.float32), sample_rate=rate)


@pytest.mark.parametrize("shape", [["n"], [1, "n"], ["batch", "n"], [1, 1, "n"]])
def test_the_figure_is_the_output_at_the_index_for_every_rank(tmp_path: Path, shape: list[int | str]) -> None:
    wave = RAMP + np.float32(0.25)
    expected = (0.25, np.square(wave, dtype=np.float64).mean(), len(wave))
    for index, figure in enumerate(expected):
        actual = plugin(tmp_path, moments(shape), output=index).measure(at(RATE, wave))
        assert actual == pytest.approx(figure, rel=1e-5)
    with pytest.raises(ValueError, match="gives no figure at output 3"):
        plugin(tmp_path, moments(shape), output=3)


def test_a_clip_is_resampled_to_the_rate_of_the_predictor(tmp_path: Path) -> None:
    samples = plugin(tmp_path, moments(["n"]), output=2, sample_rate=16_000)
    assert samples.measure(at(24_000, np.full(2400, 0.3))) == len(resample(np.ones(2400, "f4"), 24_000, 16_000))
    assert samples.measure(at(16_000, np.full(2400, 0.3))) == 2400


@pytest.mark.parametrize(("samples", "fed"), [(800, RAMP), (300, RAMP[:300]), (2000, np.tile(RAMP, 3)[:2000])])
def test_where_the_length_is_fixed_a_clip_is_cut_or_repeated(tmp_path: Path, samples: int, fed: np.ndarray) -> None:
    for index in (0, 299, samples - 1):
        assert plugin(tmp_path, identity([1, samples]), output=index).measure(at(RATE, RAMP)) == fed[index]


def test_the_same_clip_gives_the_same_figure_from_two_plugins(tmp_path: Path) -> None:
    one, two = (plugin(tmp_path, moments(["n"]), output=1) for _ in range(2))
    one.measure(at(RATE, RAMP))
    assert one.measure(speech(spoken(TEXT))) == two.measure(speech(spoken(TEXT)))


def test_with_a_reference_the_figure_is_the_cosine(tmp_path: Path) -> None:
    reference = np.sin(np.arange(800) * 0.05).astype(np.float32) * 0.5
    soundfile.write(tmp_path / "voice.wav", reference, RATE, subtype="FLOAT")
    like = plugin(tmp_path, identity([800]), reference="voice.wav")
    assert like.measure(at(RATE, reference * 0.1)) == pytest.approx(1.0, abs=1e-6)
    assert like.measure(at(RATE, -reference)) == pytest.approx(-1.0, abs=1e-6)
    a, b = (wave.astype(np.float64) for wave in (reference, RAMP))
    expected = a @ b / np.sqrt((a @ a) * (b @ b))
    assert like.measure(at(RATE, RAMP)) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(CallFailed, match="no direction") as failed:
        like.measure(at(RATE, np.zeros(800)))
    assert failed.value.kind == "malformed"


def test_vectors_of_different_length_have_no_likeness(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "voice.wav", RAMP, RATE)
    with pytest.raises(CallFailed, match="800 for the reference"):
        plugin(tmp_path, identity(["n"]), reference="voice.wav").measure(at(RATE, RAMP[:700]))


def test_a_reference_that_is_not_there_or_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        plugin(tmp_path, identity([800]), reference="voice.wav")
    soundfile.write(tmp_path / "voice.wav", np.zeros(800), RATE)
    with pytest.raises(ValueError, match="no direction"):
        plugin(tmp_path, identity([800]), reference="voice.wav")


@pytest.mark.parametrize("bad", ["Log", "Sqrt", "Reciprocal"])
def test_a_figure_that_is_not_finite_is_a_failure(tmp_path: Path, bad: str) -> None:
    model = graph([4], [helper.make_node(bad, ["wave"], ["out"])], [4])
    wave = {"Log": 0.0, "Sqrt": -1.0, "Reciprocal": 0.0}[bad]
    with pytest.raises(CallFailed, match=r"its output is (-?inf|nan)") as failed:
        plugin(tmp_path, model).measure(at(RATE, np.full(4, wave)))
    assert (failed.value.kind, failed.value.retryable) == ("malformed", False)


def two_inputs() -> bytes:
    inputs = [helper.make_tensor_value_info(name, FLOAT, [4]) for name in ("a", "b")]
    made = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["out"])],
        "micro",
        inputs,
        [helper.make_tensor_value_info("out", FLOAT, [4])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"", "must be an ONNX model"),
        (b"\x80\x05}.", "must be an ONNX model"),
        (two_inputs(), "must have one input: got 2"),
        (identity([2, "n"]), "must be float32 of shape"),
        (identity([1, 1, 1, "n"]), "must be float32 of shape"),
    ],
)
def test_what_is_no_predictor_of_this_form_is_refused(tmp_path: Path, model: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plugin(tmp_path, model)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.onnx: a plugin must be an \.onnx file"):
        OnnxPredictor(PluginConfig(name="mos", path=Path("nowhere.onnx"), sample_rate=RATE), tmp_path)


@pytest.mark.parametrize("where", ["beside.bin", "../outside.bin", "ABSOLUTE", "link.bin"])
def test_no_other_file_is_read_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for path in (folder / "beside.bin", tmp_path / "outside.bin"):
        path.write_bytes(RAMP[:4].tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    weights = numpy_helper.from_array(RAMP[:4], "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    location = str(tmp_path / "outside.bin") if where == "ABSOLUTE" else where
    for key, text in {"location": location, "offset": "0", "length": "16"}.items():
        weights.external_data.add(key=key, value=text)
    model = graph([4], [helper.make_node("Add", ["wave", "w"], ["out"])], [4], [weights])
    with pytest.raises(ValueError, match="without external data"):
        plugin(folder, model)


def test_the_settings_lead_to_a_veto_by_a_predictor(tmp_path: Path) -> None:
    (tmp_path / "power.onnx").write_bytes(moments(["n"]))
    power = PluginConfig(name="power", path=tmp_path / "power.onnx", sample_rate=RATE, output=1)
    config = CONFIG.model_copy(update={"plugins": (power,), "vetoes": (VetoConfig(measure="power", least=1e-4),)})
    panel = build_panel(config, WORLD / "data", WORLD / "base")
    heard = panel.score(reply(TEXT), speech(spoken(TEXT)), task(TEXT))
    assert isinstance(heard.reward, ScoredVerdict) and heard.reward.value > 4
    assert heard.figures["power"] == pytest.approx(np.square(spoken(TEXT), dtype=np.float64).mean(), rel=1e-4)
    whispered = panel.score(reply(TEXT), speech(spoken(TEXT) * 0.01), task(TEXT))
    assert isinstance(whispered.reward, ScoredVerdict) and whispered.reward.judge == "veto/1"


def test_a_real_predictor_without_a_figure_makes_the_reward_missing(tmp_path: Path) -> None:
    log = graph([4], [helper.make_node("Log", ["wave"], ["out"])], [4])
    config = CONFIG.model_copy(update={"vetoes": (VetoConfig(measure="mos", least=-99),)})
    panel = Panel(config, Parrot(TEXT), plugins=[plugin(tmp_path, log)])
    wave = np.concatenate([np.zeros(4, np.float32), spoken(TEXT)])
    reward = panel.score(reply(TEXT), speech(wave), task(TEXT)).reward
    assert isinstance(reward, MissingVerdict) and reward.reason == "plugin mos: its output is -inf"
