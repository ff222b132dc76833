"""Vetoes: a broken bound is the floor whatever else; an unknown figure is Missing; else the axes decide."""

import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.judging import RESERVED_FIGURES, VETO_MEASURES, PluginConfig, VetoConfig
from judge.panel import LOGGED_FAULTS, Panel, combine_reward
from judge.rules import vetoes
from judge.rules.acoustic import SoundMeasurements
from judge.rules.plugins import OnnxPredictor
from judge.types import CallFailed, MissingVerdict, ReplyJudgement, Scale, ScoredVerdict, Verdict
from rollout.types import Speech
from tests.helpers.judge_builders import (
    CONFIG,
    REPLIES,
    SCALE,
    Broken,
    Parrot,
    panel_hearing,
    reply,
    shipped_panel,
    speech,
    spoken,
    task,
    value,
)

TEXT = "the answer is twelve"
LOOP = VetoConfig(measure="loop", most=0.9)
MOS = VetoConfig(measure="mos", least=2.0)
MOS_PLUGIN = PluginConfig(name="mos", path=Path("mos.onnx"), sample_rate=16_000)


class Gauge:
    """A predictor that finds what it was told, or fails."""

    def __init__(self, actual: float | Exception, name: str = "mos") -> None:
        self.found, self.name = actual, name

    def measure(self, speech: Speech) -> float:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def vetoing(*rules: VetoConfig, plugins: tuple[Gauge, ...] = (), **changes: float) -> Panel:
    config = CONFIG.model_copy(update={"vetoes": rules, "plugins": (MOS_PLUGIN,)} | changes)
    return Panel(config, Parrot(TEXT), plugins=plugins)


def judged(panel: Panel, wave: np.ndarray | None = None) -> ReplyJudgement:
    return panel.score(reply(TEXT), speech(spoken(TEXT) if wave is None else wave), task(TEXT))


# --- pure


@pytest.mark.parametrize(
    ("figures", "rules", "expected"),
    [
        ({"loop": 0.9}, [LOOP], []),
        ({"loop": 0.91}, [LOOP], ["loop must be at most 0.9: got 0.91"]),
        ({"mos": 2.0}, [MOS], []),
        ({"mos": 1.99}, [MOS], ["mos must be at least 2: got 1.99"]),
        ({}, [LOOP, MOS], []),
        (
            {"loop": 1.0, "mos": 1.0},
            [LOOP, MOS],
            ["loop must be at most 0.9: got 1", "mos must be at least 2: got 1"],
        ),
    ],
)
def test_reasons_name_each_broken_rule(
    figures: dict[str, float], rules: list[VetoConfig], expected: list[str]
) -> None:
    assert vetoes.find_broken_rules(figures, rules) == expected


NAMES = ("a", "b", "c")
FIGURE = st.floats(-10, 10)


@given(
    st.dictionaries(st.sampled_from(NAMES), FIGURE),
    st.lists(st.tuples(st.sampled_from(NAMES), FIGURE, FIGURE), max_size=4),
)
def test_the_verdict_is_the_floor_when_a_rule_is_broken_and_missing_when_that_is_unknown(
    figures: dict[str, float], bounds: list[tuple[str, float, float]]
) -> None:
    rules = [VetoConfig(measure=name, least=min(a, b), most=max(a, b)) for name, a, b in bounds]
    failures = {name: CallFailed("malformed", "broken") for name in NAMES if name not in figures}
    by_vetoes = vetoes.judge_by_vetoes(figures, failures, rules, Scale(1.0, 5.0))
    seen = [(figures[name], min(a, b), max(a, b)) for name, a, b in bounds if name in figures]
    if any(not lo <= figure <= hi for figure, lo, hi in seen):
        assert isinstance(by_vetoes, ScoredVerdict) and by_vetoes.value == 1.0 and by_vetoes.why
    elif len(seen) < len(bounds):
        assert isinstance(by_vetoes, MissingVerdict) and "broken" in by_vetoes.reason
    else:
        assert by_vetoes is None


def test_the_settings_know_every_measurement() -> None:
    assert tuple(field.name for field in fields(SoundMeasurements)) == VETO_MEASURES


# --- in the panel


def test_no_veto_is_shipped_and_no_figure_comes_with_none() -> None:
    assert CONFIG.vetoes == () and CONFIG.plugins == ()
    for text in REPLIES:
        judgement = shipped_panel().score(reply(text), speech(spoken(text)), task(text))
        assert "vetoed" not in judgement.figures and "veto" not in judgement.reward.judge
        assert set(judgement.figures) <= RESERVED_FIGURES | {"seconds", *LOGGED_FAULTS}


def test_a_veto_makes_the_reward_the_floor_and_leaves_the_axes_as_they_are() -> None:
    looped = np.tile(spoken("dog"), 6)
    free, held = judged(vetoing(), looped), judged(vetoing(LOOP), looped)
    assert isinstance(held.reward, ScoredVerdict)
    assert (held.reward.value, held.reward.judge) == (SCALE.lo, "veto/1")
    assert held.reward.why.startswith("loop must be at most 0.9: got ")
    assert dict(held.axes) == dict(free.axes)
    assert value(free.reward) > SCALE.lo
    assert held.figures["vetoed"] == 1 and held.figures["loop"] > 0.9


def test_a_reply_within_the_bounds_gets_what_it_would_get_without_them() -> None:
    free, held = judged(vetoing()), judged(vetoing(LOOP, MOS, plugins=(Gauge(3.0),)))
    assert held.reward == free.reward
    assert "vetoed" not in held.figures
    assert held.figures["mos"] == 3.0 and 0 <= held.figures["loop"] <= 0.9


def test_no_figure_of_a_plugin_however_good_raises_a_reward() -> None:
    free = judged(vetoing())
    for figure in (-1e9, 0.0, 5.0, 1e9):
        assert value(judged(vetoing(MOS, plugins=(Gauge(figure),))).reward) <= value(free.reward)
        assert judged(vetoing(plugins=(Gauge(figure),))).reward == free.reward


def test_a_plugin_that_fails_makes_the_reward_missing_and_not_the_axes() -> None:
    held = judged(vetoing(MOS, plugins=(Gauge(CallFailed("malformed", "its output is nan")),)))
    assert isinstance(held.reward, MissingVerdict)
    assert (held.reward.kind, held.reward.retryable) == ("malformed", False)
    assert held.reward.reason == "plugin mos: its output is nan"
    assert all(isinstance(verdict, ScoredVerdict) for verdict in held.axes.values())
    assert "mos" not in held.figures and "vetoed" not in held.figures
    crashed = judged(vetoing(MOS, plugins=(Gauge(RuntimeError("no memory")),))).reward
    assert isinstance(crashed, MissingVerdict) and crashed.retryable and "no memory" in crashed.reason


def test_a_plugin_that_no_veto_needs_may_fail() -> None:
    held = judged(vetoing(LOOP, plugins=(Gauge(RuntimeError("no memory")),)))
    assert held.reward == judged(vetoing()).reward


def test_a_broken_bound_holds_whatever_is_missing_besides() -> None:
    looped = np.tile(spoken("dog"), 6)
    held = judged(vetoing(MOS, LOOP, plugins=(Gauge(RuntimeError("no memory")),)), looped)
    assert value(held.reward) == SCALE.lo and held.reward.judge == "veto/1"


def test_the_veto_holds_when_others_have_judged_the_axes() -> None:
    best: dict[str, Verdict] = {name: ScoredVerdict(value=5.0, judge="api/1") for name in ("semantic", "acoustic")}
    down = {name: MissingVerdict(judge="api/1", reason="down", kind="server") for name in best}
    looped, plain = np.tile(spoken("dog"), 6), None
    panel = vetoing(LOOP)
    for axes in (best, down):
        held = judged(panel, looped)
        assert combine_reward(axes, held, panel.weights) == held.reward
    assert value(combine_reward(best, judged(panel, plain), panel.weights)) == 5.0
    assert isinstance(combine_reward(down, judged(panel, plain), panel.weights), MissingVerdict)
    unknown = vetoing(MOS, plugins=(Gauge(CallFailed("malformed", "nan")),))
    assert isinstance(combine_reward(best, judged(unknown), unknown.weights), MissingVerdict)


def test_nothing_is_vetoed_that_nobody_heard() -> None:
    gauge = Gauge(CallFailed("malformed", "must not be asked"))
    panel = vetoing(LOOP, MOS, plugins=(gauge,))
    cut = panel.score(reply(TEXT, finish="abort"), speech(spoken(TEXT)), task(TEXT))
    assert isinstance(cut.reward, MissingVerdict) and cut.reward.kind == "aborted"
    empty = panel.score(reply(TEXT), speech(np.zeros(0)), task(TEXT))
    assert value(empty.reward) == SCALE.lo and "floor/1" in empty.reward.judge
    config = CONFIG.model_copy(update={"vetoes": (LOOP,)})
    deaf = Panel(config, Broken(RuntimeError("deaf"), 1, TEXT))
    judgement = deaf.score(reply(TEXT), speech(np.tile(spoken("dog"), 6)), task(TEXT))
    assert isinstance(judgement.reward, MissingVerdict) and judgement.reward.kind == "recogniser"


def test_without_onnxruntime_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install onnxruntime$"):
        OnnxPredictor(MOS_PLUGIN, tmp_path)


# --- the axis that only an API judges


def test_the_turn_as_a_whole_is_missing_until_others_have_judged_it() -> None:
    panel = panel_hearing(Parrot(TEXT), holistic=1.0)
    judgement = judged(panel)
    assert isinstance(judgement.axes["holistic"], MissingVerdict) and isinstance(judgement.reward, MissingVerdict)
    axes = {**judgement.axes, "holistic": ScoredVerdict(value=1.0, judge="api/1")}
    weights = {"semantic": 0.6, "acoustic": 0.4, "holistic": 1.0}
    expected = sum(weight * value(axes[name]) for name, weight in weights.items()) / 2.0
    assert value(combine_reward(axes, judgement, panel.weights)) == pytest.approx(expected)


def test_what_holds_everywhere_holds_on_every_axis_that_counts() -> None:
    silent = speech(np.zeros(0))
    whole = panel_hearing(Parrot(TEXT), holistic=1.0).score(reply(TEXT), silent, task(TEXT))
    assert set(whole.axes) == {"semantic", "acoustic", "holistic"}
    assert {value(verdict) for verdict in (*whole.axes.values(), whole.reward)} == {SCALE.lo}
    alone = panel_hearing(Parrot(TEXT), semantic=0.0, acoustic=0.0, holistic=1.0)
    judgement = alone.score(reply(TEXT, finish="abort"), speech(spoken(TEXT)), task(TEXT))
    assert set(judgement.axes) == {"semantic", "acoustic", "holistic"}


def test_a_weighted_axis_without_a_verdict_is_a_programming_error() -> None:
    panel = panel_hearing(Parrot(TEXT), holistic=1.0)
    judgement = judged(panel)
    with pytest.raises(AssertionError, match="holistic"):
        combine_reward({name: judgement.axes[name] for name in ("semantic", "acoustic")}, judgement, panel.weights)
