"""The judges' settings."""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from conf.endpoints import ApiConfig, EndpointConfig, JudgeEndpointConfig, SecondConfig
from conf.fields import Fraction, NonNegativeFloat, PositiveInt, PositiveSeconds, StrictModel

JudgedBy = Literal["local", "api"]
Axis = Literal["semantic", "acoustic", "holistic"]
VetoBound = Annotated[float, Field(strict=True, allow_inf_nan=False)]

VETO_MEASURES = (
    "seconds",
    "pace",
    "words_per_second",
    "syllables_per_second",
    "level_dbfs",
    "silence",
    "pause",
    "clipping",
    "loop",
)
"""What a veto can name: ``judge.rules.acoustic.SoundMeasurements``."""

PITCH_MEASURES = ("pitch_semitones", "voiced")
"""Measures that version 0.1 had of its own."""

RESERVED_FIGURES = frozenset(
    "text_tokens audio_tokens truncated well_formed unjudgeable wer text_right heard_right rate level "
    "style_followed latency_s vetoed".split()
)
"""Figures that a verdict has already; no plugin may bear such a name."""


class AsrConfig(EndpointConfig):
    """The recogniser: who writes down what is heard."""

    by: Literal["pocketsphinx", "whisper", "faster_whisper", "endpoint"] = "faster_whisper"
    """``faster_whisper``: Whisper tiny.en, which is installed with WavGate, or a CTranslate2 folder;
    ``whisper``: a Hugging Face folder; ``endpoint``: an OpenAI-compatible /audio/transcriptions, one reply at
    a time per judge worker; ``pocketsphinx``: small and quick, for few words that are known (``model=tiny``
    on ``data=tiny``)."""
    path: Path | None = None
    """Folder of the weights of whisper and faster_whisper; not set: the installed tiny.en of
    faster_whisper. Nothing is ever downloaded."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    """Of the replies, as whisper and the endpoint are told; answers are checked in English words alone."""
    language_model: Path | None = None
    """ARPA language model of pocketsphinx; none: its own open model."""
    dictionary: Path | None = None
    """Pronunciations of pocketsphinx; none: its own."""
    deadline_s: PositiveSeconds = 30.0
    """One transcription by the endpoint, its retries and their waits included."""

    @model_validator(mode="after")
    def _check_recogniser(self) -> Self:
        if self.by == "whisper" and self.path is None:
            raise ValueError("path must be a folder of weights when by=whisper: got nothing")
        if self.by == "faster_whisper" and self.path is None and self.language != "en":
            raise ValueError(
                "path must be a folder of weights for a language other than English, which is all that the"
                f" installed Whisper tiny.en knows, when language={self.language}: got nothing"
            )
        absent = self.missing() if self.by == "endpoint" else None
        if absent is not None:
            raise ValueError(f"{absent} must be set when by=endpoint: got nothing")
        return self


class PluginConfig(StrictModel):
    """A predictor of one figure: an ONNX file that takes a waveform. Its figure is logged, and vetoes may
    use it; it is never part of a reward."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Of the figure."""
    path: Path
    """The .onnx file, whole: one with external data is refused."""
    sample_rate: Annotated[int, Field(strict=True, ge=1, le=384_000)]
    """What the predictor expects, in Hz; clips are resampled to it."""
    output: Annotated[int, Field(strict=True, ge=0)] = 0
    """Index of the figure in the flattened output."""
    reference: Path | None = None
    """A recording: the figure is the cosine similarity of its output vector and the reply's."""

    @model_validator(mode="after")
    def _one_figure(self) -> Self:
        if self.reference is not None and self.output:
            raise ValueError(f"output must be 0 with a reference, which takes all of it: got {self.output}")
        return self


class VetoConfig(StrictModel):
    """A bound that a reply may not break: one that does gets the scale's floor as its reward."""

    measure: str
    """One of ``VETO_MEASURES`` or the name of a plugin."""
    least: VetoBound | None = None
    """Below this the veto holds."""
    most: VetoBound | None = None
    """Above this the veto holds."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.least is None and self.most is None:
            raise ValueError("most must be set where least is not: got nothing")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"most must not be below least={self.least:g}: got {self.most:g}")
        return self


class JudgeConfig(StrictModel):
    """Who scores replies and how the axes are put together."""

    workers: PositiveInt = 2
    """Processes that hear replies and apply the local rules; what an endpoint judges one more process asks it."""
    semantic: NonNegativeFloat = 0.6
    """Weight of what was said, as heard."""
    acoustic: NonNegativeFloat = 0.4
    """Weight of how it sounded."""
    holistic: NonNegativeFloat = 0.0
    """Weight of the turn as a whole, heard with the user's own audio; only ``judge.api`` can judge it."""
    semantic_by: JudgedBy = "local"
    """``local``: is the row's answer in what a recogniser heard? ``api``: ``judge.api`` reads that."""
    acoustic_by: JudgedBy = "local"
    """``local``: measurements of the waveform; ``api``: ``judge.api`` hears it."""
    scale_lo: float = 1.0
    """Lowest score."""
    scale_hi: float = 5.0
    """Highest score."""
    noise: NonNegativeFloat = 0.0
    """Standard deviation, in points of the reward, of Gaussian noise put on the local axes in training: to
    study what a noisy judge does to a method. What leaves the scale is cut off, and so some of it."""
    readings: PositiveInt = 1
    """How often a local axis is read; the score is the mean. More than 1 tells nothing without ``noise``."""
    asr: AsrConfig = AsrConfig()
    plugins: tuple[PluginConfig, ...] = ()
    """Predictors of figures to log and to veto with: ``[{name:mos,path:mos.onnx,sample_rate:16000}]``."""
    vetoes: tuple[VetoConfig, ...] = ()
    """Bounds whose breach makes the reward the scale's floor: ``[{measure:loop,most:0.9}]``."""
    deadline_s: PositiveSeconds = 60.0
    """A verdict must arrive within this, else it is missing; what ``judge.api`` may take comes on top."""
    max_missing: Fraction = 0.5
    """A step with a larger share of missing verdicts stops the run: nothing is learnt from an outage."""
    api: ApiConfig = ApiConfig()
    second: SecondConfig = SecondConfig()

    @model_validator(mode="after")
    def _has_axis(self) -> Self:
        if self.semantic + self.acoustic + self.holistic <= 0:
            raise ValueError(f"semantic must be positive when the other axes are 0: got {self.semantic}")
        if not self.scale_lo < self.scale_hi:
            raise ValueError(f"scale_lo must be below scale_hi: got [{self.scale_lo}, {self.scale_hi}]")
        absent = self.api.missing() if "api" in (self.semantic_by, self.acoustic_by) or self.holistic else None
        if absent is not None:
            raise ValueError(f"api.{absent} must be set when an axis is judged by api: got nothing")
        if (self.second.base_url is None) != (self.second.model is None):
            raise ValueError("second.base_url and second.model must be set together")
        if self.second.base_url is not None and not self.api_axes:
            raise ValueError("second needs an axis that is judged by api: set semantic_by or acoustic_by")
        if self.noise > 0 and self.api_axes:
            raise ValueError(f"noise is for axes that are judged here alone: got {self.noise:g} beside an API judge")
        if self.asr.by == "endpoint" and self.asr.deadline_s >= self.deadline_s:
            rule = f"asr.deadline_s must be below judge.deadline_s={self.deadline_s:g}"
            raise ValueError(f"{rule}: got {self.asr.deadline_s:g}")
        return self

    @model_validator(mode="after")
    def _names_known_measures(self) -> Self:
        names = [plugin.name for plugin in self.plugins]
        for index, name in enumerate(names):
            if name in RESERVED_FIGURES or name in (*VETO_MEASURES, *names[:index]):
                raise ValueError(f"plugins must have names of their own: got {name}")
        known = [*VETO_MEASURES, *names]
        for veto in self.vetoes:
            if veto.measure not in known:
                close = get_close_matches(veto.measure, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
                if veto.measure in PITCH_MEASURES:
                    hint = "pitch is measured by a plugin of yours alone: set judge.plugins"
                raise ValueError(f"vetoes must name a measurement or a plugin; {hint}: got {veto.measure}")
        return self

    @property
    def weights(self) -> dict[Axis, float]:
        """Of every axis there is."""
        return {"semantic": self.semantic, "acoustic": self.acoustic, "holistic": self.holistic}

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that a verdict has: those with a local rule always, the holistic one where it counts."""
        return ("semantic", "acoustic", "holistic") if self.holistic > 0 else ("semantic", "acoustic")

    @property
    def endpoints(self) -> tuple[JudgeEndpointConfig, ...]:
        """The endpoints of judges: the one whose verdicts are rewards and, where there is one, the second."""
        return (self.api,) if self.second.base_url is None else (self.api, self.second)

    @property
    def repeats(self) -> int:
        """Independent readings behind a score. Of a win rate 1: its spread is that of the rate already."""
        if self.api_axes:
            return 1 if self.api.compare == "pairwise" else self.api.repeats
        return self.readings

    @property
    def asked_once(self) -> str | None:
        """The setting by which a noisy judge is read a single time; None: no judge that is noisy is."""
        if self.noise > 0 and self.readings < 2:
            return "readings"
        single = bool(self.api_axes) and self.api.repeats < 2 and self.api.compare != "pairwise"
        return "api.repeats" if single else None

    @property
    def api_axes(self) -> tuple[Axis, ...]:
        """The axes that the endpoint is asked about; one of weight 0 is not worth a call."""
        axes: list[Axis] = []
        if self.semantic_by == "api" and self.semantic > 0:
            axes.append("semantic")
        if self.acoustic_by == "api" and self.acoustic > 0:
            axes.append("acoustic")
        if self.holistic > 0:
            axes.append("holistic")
        return tuple(axes)
