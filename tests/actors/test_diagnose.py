"""When the learner looks at itself, and what of it is on disk."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from actors.context import RunContext
from actors.diagnose import DIAGNOSTICS_FILE, DiagnosticsRecorder
from actors.run.record import RunDirectory
from conf.load import load_config
from learner.diagnosis import LogprobShift, PartGradients, PolicyDiagnosis
from learner.types import StepBatch
from report import records
from store.lines import read_json_lines

PRODUCTS = {("text", "text"): 4.0, ("audio", "audio"): 1.0, ("text", "audio"): -1.0}


def diagnosis_of(step: int) -> PolicyDiagnosis:
    return PolicyDiagnosis(
        policy_version=step - 1,
        tied=True,
        layers=(
            PartGradients.from_products("layer 0", 8, PRODUCTS),
            PartGradients.from_products("norm", 2, {("sft", "sft"): 9.0}),
        ),
        model=PartGradients.from_products("model", 10, PRODUCTS),
        shift={"anchor_text": LogprobShift(mean=0.25, mean_abs=0.5, tokens=3)},
    )


class Learner:
    def __init__(self) -> None:
        self.asked: list[int] = []

    async def diagnose(self, batch: StepBatch) -> PolicyDiagnosis:
        self.asked.append(batch.step)
        return diagnosis_of(batch.step)


def run_steps(path: Path, every: int, steps: int) -> tuple[list[int], list[dict[str, float]]]:
    """The steps that were diagnosed and the metrics of each step."""
    learner, run = Learner(), RunDirectory(path)
    job: Any = SimpleNamespace(config=load_config([f"log.diagnose_every={every}"]))
    fleet: Any = SimpleNamespace(learner=learner)
    monitor: Any = SimpleNamespace(begin_phase=lambda *_: None)
    diagnoses = DiagnosticsRecorder(RunContext(job, run, fleet, monitor))

    async def all_steps() -> list[dict[str, float]]:
        metrics = []
        for step in range(1, steps + 1):
            seconds = await diagnoses.diagnose_if_due(StepBatch(step=step, weight=0.0, rollouts=(), anchors=()))
            assert (seconds > 0) == diagnoses.is_due_at(step)
            metrics.append(diagnoses.record(step))
        return metrics

    metrics = asyncio.run(all_steps())
    return learner.asked, metrics


@pytest.mark.parametrize(("every", "expected"), [(3, [1, 3, 6]), (1, [1, 2, 3, 4, 5, 6, 7]), (20, [1]), (0, [])])
def test_the_first_step_and_every_nth_are_looked_at_and_each_look_is_one_line(
    tmp_path: Path, every: int, expected: list[int]
) -> None:
    asked, metrics = run_steps(tmp_path, every, 7)
    assert asked == expected == [step for step, row in enumerate(metrics, start=1) if row]
    written = read_json_lines(tmp_path / DIAGNOSTICS_FILE, TypeAdapter(records.DiagnosisRecord)).rows
    assert [(line.step, line.policy_version) for line in written] == [(step, step - 1) for step in expected]


def test_a_line_says_what_was_found_and_null_what_was_not(tmp_path: Path) -> None:
    _, (metrics,) = run_steps(tmp_path, 1, 1)
    line = json.loads((tmp_path / DIAGNOSTICS_FILE).read_text())
    layer, norm = line["layers"]
    assert (layer["text"], layer["audio"], layer["text_audio_ratio"], layer["text_audio_cosine"]) == (
        2,
        1,
        2,
        -0.5,
    )
    assert (layer["sft"], layer["sft_text_cosine"]) == (None, None)
    assert (norm["sft"], norm["text"], norm["text_audio_ratio"], norm["sft_text_cosine"]) == (
        3,
        None,
        None,
        None,
    )
    assert line["shift"] == {"anchor_text": {"mean": 0.25, "mean_abs": 0.5, "tokens": 3}} and line["tied"]
    assert metrics == {
        "grad/text_audio_ratio": 2.0,
        "grad/text_audio_cosine": -0.5,
        "shift/anchor_text": 0.25,
        "shift/anchor_text_abs": 0.5,
    }


def test_resuming_forgets_the_diagnoses_of_later_steps(tmp_path: Path) -> None:
    run_steps(tmp_path, 2, 6)
    RunDirectory(tmp_path).discard_after(3, load_config([]))
    assert [
        line.step for line in read_json_lines(tmp_path / DIAGNOSTICS_FILE, TypeAdapter(records.DiagnosisRecord)).rows
    ] == [1, 2]


def test_a_step_that_was_cut_short_leaves_no_diagnosis(tmp_path: Path) -> None:
    job: Any = SimpleNamespace(config=load_config([]))
    fleet: Any = SimpleNamespace(learner=Learner())
    monitor: Any = SimpleNamespace(begin_phase=lambda *_: None)
    diagnoses = DiagnosticsRecorder(RunContext(job, RunDirectory(tmp_path), fleet, monitor))
    asyncio.run(diagnoses.diagnose_if_due(StepBatch(step=1, weight=0.0, rollouts=(), anchors=())))
    assert diagnoses.record(2) == {} and not (tmp_path / DIAGNOSTICS_FILE).exists()
