"""Predictors by local path: one figure per reply from an ONNX file that takes a waveform.

Invariant: a figure is finite or the predictor failed; nothing stands in for it. Quality and likeness
predictors are easily pleased by what no listener likes, so a figure is logged and may veto (judge/rules/vetoes.py)
but never adds to a reward.

The model has one input, float32 of shape [n], [1, n] or [1, 1, n]. Where n is fixed, a longer clip is cut to
its beginning and a shorter one repeated until it fits. Of several outputs the first is taken. Runs on the CPU
in one thread. The file must be whole: what it names outside itself is not read.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conf.judging import PluginConfig
from judge.types import CallFailed
from rollout.types import Speech
from speech.codecs.onnx import open_onnx_session
from speech.sound.audio import read, resample

FigureVector = NDArray[np.float64]

MAX_REFERENCE_S = 120.0  # seconds of a reference


class FigurePredictor(Protocol):
    """What the panel needs of a plugin."""

    @property
    def name(self) -> str:
        """Of its figure."""
        ...

    def measure(self, speech: Speech) -> float:
        """A finite figure. May raise anything: then nobody knows it."""
        ...


class OnnxPredictor:
    """One ONNX predictor.

    Example:
        plugin = OnnxPredictor(PluginConfig(name="mos", path="mos.onnx", sample_rate=16_000), Path.cwd())
        plugin.measure(speech)  # 3.1
    """

    def __init__(self, config: PluginConfig, root: Path) -> None:
        """Relative paths start at ``root``; one second is tried.

        ValueError: no file, no model of this form, or onnxruntime is not installed.
        """
        self.name = config.name
        self._output, self._rate = config.output, config.sample_rate
        path = root / config.path
        self._session, self._input, self._shape = _open_session(path)
        self._reference: FigureVector | None = None
        clip = np.random.default_rng(0).normal(0, 0.01, self._rate).astype(np.float32)
        if config.reference is not None:
            clip = read(root / config.reference, self._rate, MAX_REFERENCE_S)
        try:
            output = self._run(clip)
            if config.reference is None:
                output[self._output]
            else:
                self._reference = _unit_vector(output)
        except Exception as broken:  # whatever it throws, a run must not start with it
            raise ValueError(f"{path}: gives no figure at output {self._output}: {broken}") from broken

    def measure(self, speech: Speech) -> float:
        """The figure of a finite, non-empty clip. CallFailed: it is not finite, or has no likeness."""
        wave = speech.wave
        if speech.sample_rate != self._rate:
            wave = resample(wave, speech.sample_rate, self._rate)
        output = self._run(wave)
        if self._reference is None:
            if not np.isfinite(output[self._output]):
                raise CallFailed("malformed", f"its output is {output[self._output]}")
            return float(output[self._output])
        if output.shape != self._reference.shape:
            raise CallFailed("malformed", f"{len(output)} numbers, {len(self._reference)} for the reference")
        return float(_unit_vector(output) @ self._reference)

    def _run(self, wave: NDArray[np.float32]) -> FigureVector:
        samples = self._shape[-1]
        if isinstance(samples, int):
            wave = np.resize(wave, samples)  # repeats or cuts
        fed = wave.astype(np.float32).reshape([1] * (len(self._shape) - 1) + [-1])
        first, *_ = self._session.run(None, {self._input: fed})
        return np.asarray(first, np.float64).reshape(-1)


def load_plugins(configs: tuple[PluginConfig, ...], root: Path) -> list[FigurePredictor]:
    """The predictors of ``judge.plugins``; errors as ``OnnxPredictor``."""
    return [OnnxPredictor(config, root) for config in configs]


def _open_session(path: Path) -> tuple[Any, str, list[int | str | None]]:
    """A session, and its input's name and shape."""
    session = open_onnx_session(path, "a plugin")
    inputs = session.get_inputs()
    shape = list(inputs[0].shape)
    leading = all(size == 1 or not isinstance(size, int) for size in shape[:-1])
    if inputs[0].type != "tensor(float)" or not 1 <= len(shape) <= 3 or not leading:
        rule = "a plugin's input must be float32 of shape [n], [1, n] or [1, 1, n]"
        raise ValueError(f"{path}: {rule}: got {inputs[0].type} of {shape}")
    return session, inputs[0].name, shape


def _unit_vector(vector: FigureVector) -> FigureVector:
    length = float(np.linalg.norm(vector))
    if not 0 < length < float("inf"):
        raise CallFailed("malformed", f"a vector of length {length} has no direction")
    return vector / length
