"""Every measurement of ``bench.gpu`` runs at a micro shape, and what it compares is equal. No figure is asserted."""

import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import gpu
from bench.gpu_figure import Bench, Figure, Figures
from bench.gpu_speech import NO_KL, Shape, respond, rows, speech_batch
from bench.gpu_transfer import checksum, weight_transfer
from conf.algorithm import AlgoConfig
from learner import ranks
from learner.batch import pack_microbatch

MICRO = Shape("micro", 64, 128, 2, 4, 2)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    ranks.join_process_group(rank=0, world=1, address=address, timeout_s=60)
    yield Bench(device=ranks.get_rank_device(), tokens=600, steps=1, vocabulary=512)
    ranks.leave_process_group()


def test_without_cuda_it_says_so_and_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu"])
    assert gpu.main() == 0
    assert capsys.readouterr().out == "bench.gpu: no CUDA device: nothing measured\n"


@pytest.mark.parametrize("length", [64, 65, 300, 2700])
def test_replies_are_fifteen_percent_text_and_end_in_audio(length: int) -> None:
    response = respond(np.random.default_rng(0), 512, length)
    letters = response.channels
    assert len(response.ids) == len(letters) == length
    assert letters.count("T") == round(0.15 * length)
    assert re.fullmatch(r"(T{1,4}BA{8}B)*T{1,4}BA{8,}BE", letters)


def test_rows_fill_the_tokens_and_a_quarter_are_anchors() -> None:
    wide = Bench(device=torch.device("cpu"), tokens=16384, steps=1)
    batch = speech_batch(wide, anchors=True)
    assert 14_000 < len(pack_microbatch(rows(wide, batch, AlgoConfig(**NO_KL)), streams=1).ids_TS) <= 16_384
    assert len(batch.anchors) == (len(batch.anchors) + len(batch.rollouts)) // 4 > 0
    assert not speech_batch(wide, anchors=False).anchors


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_learner_step_is_measured(bench: Bench, checkpointing: bool) -> None:
    (figure,) = gpu.learner_step(replace(bench, peak=1e12), MICRO, checkpointing=checkpointing)
    # embedding and head; per layer: q and o, k and v, mlp, three biases, two norms; the last norm
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + (64 + 32 + 32) + 2 * 64
    assert figure.found["parameters"] == 2 * 512 * 64 + 2 * layer + 64
    assert 0 < figure.found["scored"] < figure.found["tokens"] <= 600
    assert 0 < figure.found["MFU"] < 1


def test_chunked_log_probs_equal_log_softmax(bench: Bench) -> None:
    naive, *chunked = gpu.log_probs(bench, 64, positions=40, chunks=(16, 64))
    assert naive.found["largest |d|"] == 0.0
    assert all(figure.found["largest |d|"] < 1e-4 for figure in chunked)


def test_trimming_saves_tokens_and_changes_no_loss(bench: Bench) -> None:
    whole, trimmed = gpu.tail_trimming(bench, MICRO)
    assert trimmed.found["tokens"] < whole.found["tokens"]
    assert trimmed.found["scored"] == whole.found["scored"]
    assert trimmed.found["loss"] == pytest.approx(whole.found["loss"], rel=1e-3)
    assert trimmed.found["gradient norm"] == pytest.approx(whole.found["gradient norm"], rel=2e-2)


def test_bf16_is_near_float32_but_not_equal(bench: Bench) -> None:
    for figure in gpu.parity(bench, MICRO):
        assert 0 < figure.found["mean |d|"] <= figure.found["largest |d|"] < 0.5
        assert 0 <= figure.found["k3"] < 0.01


def test_weights_reach_a_second_process_whole() -> None:
    """Through shared memory: what differs on a GPU is what torch puts into the pipe."""
    (figure,) = weight_transfer(Bench(device=torch.device("cpu"), tokens=600, steps=1, vocabulary=512), MICRO)
    assert figure.found["checksum equal"] is True


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA IPC needs a CUDA device")
def test_weights_reach_a_second_process_by_cuda_ipc(bench: Bench) -> None:
    (figure,) = weight_transfer(bench, MICRO)
    assert figure.setting.endswith("CUDA IPC") and figure.found["checksum equal"] is True


def test_the_checksum_notices_a_change_and_a_shift() -> None:
    buffer = torch.arange(4096).to(torch.uint8)
    changed = buffer.clone()
    changed[7] += 1
    assert checksum(buffer) == checksum(buffer.clone())
    assert len({tuple(checksum(b)) for b in (buffer, changed, buffer.roll(4))}) == 3


@pytest.mark.parametrize(("error", "setting"), [(torch.OutOfMemoryError, "OOM"), (RuntimeError, "FAILED")])
def test_what_does_not_fit_or_fails_is_a_line_of_the_table(error: type[Exception], setting: str) -> None:
    def figures() -> Figures:
        yield Figure("a", "b")
        raise error("Tried to allocate 31 GiB.")

    lines = list(gpu.guarded("learner step", figures()))
    assert [figure.setting for figure in lines] == ["b", setting]
    assert "31 GiB" in lines[1].line()


def test_the_program_prints_one_table_and_writes_the_same_as_json(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The whole program but for its device: CUDA's answers are made up, the measurements are real ones."""
    answers = {"is_available": True, "get_device_name": "Some H200", "reset_peak_memory_stats": None}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(
        ranks, "join_process_group", lambda **_: monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    )
    monkeypatch.setattr(ranks, "leave_process_group", lambda: None)
    monkeypatch.setattr(gpu, "Bench", partial(Bench, vocabulary=512))
    monkeypatch.setattr(gpu, "SHAPES", {"7B": MICRO._replace(name="7B")})
    target = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--tokens", "600", "--steps", "1", "--json", str(target)])
    assert gpu.main() == 0
    head, *printed = capsys.readouterr().out.splitlines()
    written = json.loads(target.read_text())
    assert head.startswith("Some H200, torch ") and written["device"] == "Some H200"
    assert written["peak"] == 989e12
    lines = [Figure(**figure).line() for figure in written["figures"]]
    assert len(lines) == 1 + 3 + 2 + 2
    assert printed == [
        *lines,
        "",
        "| what | setting | s | peak GiB | found |",
        "|---|---|---|---|---|",
        *lines,
    ]
    assert not {"OOM", "FAILED"} & {figure["setting"] for figure in written["figures"]}
