"""The panel: one reply in, one verdict per axis and their weighted mean out.

Invariant: a reward is a number only when every weighted axis has one. Who is to blame decides what happens
to a reply that cannot be judged:

    the policy (no audio, no words, NaN, endless)   the scale's floor, by a local rule, no recogniser asked
    the judge  (the recogniser failed)              Missing, retryable
    neither    (nothing to check, reply cut off)    Missing

so being unjudgeable never pays and a broken judge never teaches. Above the axes stand the vetoes
(judge/rules/vetoes.py): a bound that is broken makes the reward the floor. Predictors of quality
(judge/rules/plugins.py) may veto; none of them adds to a reward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import hypot
from pathlib import Path
from time import perf_counter

import numpy as np

from conf.judging import Axis, JudgeConfig
from judge.recognisers.choose import build_recogniser
from judge.recognisers.pocketsphinx import word_error_rate
from judge.recognisers.remembered import CachedRecogniser, CachedTranscript, SpeechRecogniser
from judge.rules import acoustic, verifiable, vetoes
from judge.rules.plugins import FigurePredictor, load_plugins
from judge.rules.voice import UNKNOWN_VOICE_REASON, NormsSource, find_voice_norms
from judge.types import CallFailed, JudgeTask, MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict
from rollout.types import Reply, Speech
from speech.answers.words import split_words

PANEL_JUDGE = "panel/1"
FLOOR_JUDGE = "floor/1"
MAX_JUDGED_AUDIO_S = 120.0  # seconds of audio that a recogniser is asked to hear
LOGGED_FAULTS = ("pace", "silence", "pause", "clipping", "loop")  # measurements that tell what is wrong with a wave


class Panel:
    """Scores replies by what a listener hears.

    Example:
        panel = build_panel(config.judge, data_folder, config.model.path)
        judged = panel.score(reply, speech, task)
        match judged.reward:
            case ScoredVerdict(value=value): ...
            case MissingVerdict(reason=reason): ...  # the reply leaves its group
    """

    def __init__(
        self,
        config: JudgeConfig,
        recogniser: SpeechRecogniser,
        voice: NormsSource = lambda: acoustic.DEFAULT_NORMS,
        plugins: Sequence[FigurePredictor] = (),
    ) -> None:
        self.scale = Scale(config.scale_lo, config.scale_hi)
        self.weights, self._axes = config.weights, config.axes
        self._recogniser = CachedRecogniser(recogniser)
        self._voice, self._plugins, self._vetoes = voice, plugins, config.vetoes

    def score(
        self, reply: Reply, speech: Speech, task: JudgeTask, known_transcript: str | None = None
    ) -> ReplyJudgement:
        """Judge one reply, whatever policy and recogniser did. ``known_transcript``: where there is one already.

        ValueError: an unknown style in the task.
        """
        start = perf_counter()
        figures = _collect_reply_figures(reply, speech)
        transcript: str | None = None
        veto: Verdict | None = None
        axes: dict[str, Verdict]
        fault = find_policy_fault(reply, speech)
        figures |= {} if reply.finish == "abort" else {"unjudgeable": float(fault is not None)}
        if reply.finish == "abort":
            reason = "the reply was cut off by the system"
            axes = self._put_on_every_axis(MissingVerdict(judge=PANEL_JUDGE, reason=reason, kind="aborted"))
        elif fault is not None:
            axes = self._put_on_every_axis(ScoredVerdict(value=self.scale.lo, judge=FLOOR_JUDGE, why=fault))
            figures |= _collect_word_figures(reply.text, "", task)
            figures |= {} if task.style is None else {"style_followed": float(False)}
        else:
            known = None if known_transcript is None else CachedTranscript(transcript=known_transcript, cached=False)
            transcription = known or self._transcribe(speech)
            if isinstance(transcription, MissingVerdict):
                axes = self._put_on_every_axis(transcription)
            else:
                transcript = transcription.transcript
                axes, measured, veto = self._judge_axes(reply, speech, task, transcription)
                figures |= measured
        figures["latency_s"] = perf_counter() - start
        return ReplyJudgement(
            prompt_id=reply.prompt_id,
            index=reply.index,
            axes=axes,
            reward=veto or combine_axes(axes, self.weights),
            transcript=transcript,
            figures=figures,
        )

    def _transcribe(self, speech: Speech) -> CachedTranscript | MissingVerdict:
        try:
            return self._recogniser.recognise(speech)
        except CallFailed as failure:
            reason = f"recogniser: {failure.reason}"
            return MissingVerdict(judge=PANEL_JUDGE, reason=reason, kind=failure.kind, retryable=failure.retryable)
        except Exception as failure:  # whatever it throws is the judge's failure, not the reply's
            reason = f"recogniser failed: {type(failure).__name__}: {failure}"
            return MissingVerdict(judge=PANEL_JUDGE, reason=reason, kind="recogniser", retryable=True)

    def _judge_axes(
        self, reply: Reply, speech: Speech, task: JudgeTask, transcription: CachedTranscript
    ) -> tuple[dict[str, Verdict], dict[str, float], Verdict | None]:
        norms = self._voice()
        sound = acoustic.measure_sound(speech, reply.text, norms or acoustic.DEFAULT_NORMS)
        axes: dict[str, Verdict] = {
            "semantic": verifiable.score_answer(transcription.transcript, task, self.scale),
            "acoustic": acoustic.score_acoustics(sound, reply.text, transcription.transcript, task, self.scale, norms)
            if norms is not None
            else MissingVerdict(judge=acoustic.ACOUSTIC_JUDGE, reason=UNKNOWN_VOICE_REASON, kind="nothing_to_check"),
        }
        if self.weights["holistic"] > 0:
            axes["holistic"] = MissingVerdict(
                judge=PANEL_JUDGE, reason="no local rule hears a turn as a whole", kind="nothing_to_check"
            )
        figures = _collect_word_figures(reply.text, transcription.transcript, task)
        figures |= {"rate": sound.words_per_second, "level": sound.level_dbfs}
        figures |= {name: getattr(sound, name) for name in LOGGED_FAULTS if norms is not None or name != "pace"}
        if task.style is not None and norms is not None:
            figures["style_followed"] = float(acoustic.is_style_followed(sound, task.style, norms))
        limited, veto = self._apply_vetoes(sound, speech, without=() if norms is not None else ("pace",))
        axes = {name: _mark_cached(verdict, transcription.cached) for name, verdict in axes.items()}
        return axes, figures | limited, veto

    def _apply_vetoes(
        self, sound: acoustic.SoundMeasurements, speech: Speech, without: Sequence[str]
    ) -> tuple[dict[str, float], Verdict | None]:
        """Figures that the vetoes look at, from plugins and from the sound, and the verdict where one applies.

        ``without``: measurements that this voice's replies cannot have.
        """
        named = {rule.measure for rule in self._vetoes}
        figures = {name: figure for name, figure in asdict(sound).items() if name in named}
        unknown = [name for name in without if figures.pop(name, None) is not None]
        failures = {name: CallFailed("nothing_to_check", UNKNOWN_VOICE_REASON) for name in unknown}
        for plugin in self._plugins:
            try:
                figures[plugin.name] = plugin.measure(speech)
            except CallFailed as failure:
                failures[plugin.name] = failure
            except Exception as failure:  # whatever it throws: there is no figure
                reason = f"{type(failure).__name__}: {failure}"
                failures[plugin.name] = CallFailed("malformed", reason, retryable=True)
        veto = vetoes.judge_by_vetoes(figures, failures, self._vetoes, self.scale)
        return figures | ({"vetoed": float(True)} if isinstance(veto, ScoredVerdict) else {}), veto

    def _put_on_every_axis(self, verdict: Verdict) -> dict[str, Verdict]:
        return dict.fromkeys(self._axes, verdict)


def build_panel(config: JudgeConfig, root: Path, voice: Path | NormsSource) -> Panel:
    """The shipped panel; relative paths of the config start at ``root``. ``voice``: the norms of the replies'
    voice once they are known, or the folder of the checkpoint that has it.

    ValueError: a file is not there or not what it should be, or a package is not installed.
    """
    return Panel(
        config, build_recogniser(config.asr, root), _make_norms_source(voice), load_plugins(config.plugins, root)
    )


def _make_norms_source(voice: Path | NormsSource) -> NormsSource:
    if not isinstance(voice, Path):
        return voice
    norms = find_voice_norms(voice)
    return lambda: norms


def find_panel_files(config: JudgeConfig) -> dict[str, Path]:
    """What the panel reads when it is made: the setting's name below ``judge`` -> its file or folder."""
    asr = config.asr
    named: dict[str, Path | None] = {}
    if asr.by == "pocketsphinx":
        named = {"asr.language_model": asr.language_model, "asr.dictionary": asr.dictionary}
    elif asr.by != "endpoint":
        named = {"asr.path": asr.path}  # none: the installed one, which judge/recognisers/installed.py checks
    for index, plugin in enumerate(config.plugins):
        named |= {f"plugins.{index}.path": plugin.path, f"plugins.{index}.reference": plugin.reference}
    return {name: path for name, path in named.items() if path is not None}


def find_policy_fault(reply: Reply, speech: Speech) -> str | None:
    """What the policy did that leaves nothing to judge; None when there is something."""
    if "A" not in reply.channels or not len(speech.wave):
        return "no audio"
    if not np.isfinite(speech.wave).all():
        return "audio is not finite"
    if not split_words(reply.text):
        return "no words"
    if speech.seconds > MAX_JUDGED_AUDIO_S:
        return f"audio must not exceed {MAX_JUDGED_AUDIO_S:.0f} s: got {speech.seconds:.0f} s"
    return None


def combine_axes(axes: Mapping[str, Verdict], weights: Mapping[Axis, float]) -> Verdict:
    """Weighted mean of the axes with a positive weight, Missing as soon as one is; each has a verdict."""
    counted = [name for name, weight in weights.items() if weight > 0]
    assert counted, "the config demands a positive weight"
    assert axes.keys() >= set(counted), f"weighted axes without a verdict: {set(counted) - axes.keys()}"
    weighted = [(weights[name], name, axes[name]) for name in counted]
    scored: list[tuple[float, ScoredVerdict]] = []
    for weight, name, verdict in weighted:
        if isinstance(verdict, MissingVerdict):
            return replace(verdict, reason=f"{name}: {verdict.reason}")
        scored.append((weight, verdict))
    total = sum(weight for weight, _ in scored)
    return ScoredVerdict(
        value=sum(weight * verdict.value for weight, verdict in scored) / total,
        judge=f"{PANEL_JUDGE}({'+'.join(sorted({verdict.judge for _, verdict in scored}))})",
        spread=hypot(*(weight * verdict.spread for weight, verdict in scored)) / total,
        why="; ".join(dict.fromkeys(verdict.why for _, verdict in scored)),
        cached=any(verdict.cached for _, verdict in scored),
    )


def combine_reward(axes: Mapping[str, Verdict], local: ReplyJudgement, weights: Mapping[Axis, float]) -> Verdict:
    """The reward of a reply that the local panel judged as ``local``, once others have judged its axes.

    A veto of the panel holds whatever they say.
    """
    return vetoes.find_veto(local) or combine_axes(axes, weights)


def _mark_cached(verdict: Verdict, cached: bool) -> Verdict:
    return verdict if isinstance(verdict, MissingVerdict) else replace(verdict, cached=cached)


def _collect_reply_figures(reply: Reply, speech: Speech) -> dict[str, float]:
    return {
        "seconds": speech.seconds,
        "text_tokens": float(reply.channels.count("T")),
        "audio_tokens": float(reply.channels.count("A")),
        "truncated": float(reply.finish == "length"),
        "well_formed": float(reply.well_formed),
    }


def _collect_word_figures(text: str, transcript: str, task: JudgeTask) -> dict[str, float]:
    """Right as written, right as heard, and how far the two are apart; what does not apply is left out."""
    figures = {"wer": word_error_rate(text, transcript)} if split_words(text) else {}
    return figures | verifiable.measure_correctness(text, transcript, task)
