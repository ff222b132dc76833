"""A diagnosis against the same figures written naively, and that it leaves no trace. Two ranks: test_learner_step."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from conf.schema import Config
from learner.diagnosis import PartGradients, PolicyDiagnosis
from learner.ranks import join_process_group, leave_process_group
from learner.step import Learner
from learner.types import NO_ADVANTAGE, Advantage, PreferencePair, StepBatch, TrainingReply
from tests.helpers.learner_world import batch, config, full_tensors, perturb
from tests.helpers.processes import HANG_S
from tests.helpers.sound_fixtures import write_micro_checkpoint
from tests.helpers.training_replies import as_written, change_reply, sampled_reply

LOUD: dict[str, Any] = {"rollout": {"temperature": 0.7}}  # so that a mean over log-probs at 1 would be another


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    join_process_group(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=HANG_S)
    yield
    leave_process_group()


@pytest.fixture(scope="module")
def untied_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_micro_checkpoint(tmp_path_factory.mktemp("untied") / "base", tied=False)


def naive(checkpoint: Path, config: Config, step: StepBatch) -> dict[str, dict[str, Tensor]]:
    """Direction -> part of the model -> its gradient, from one unsharded float64 model, a sequence at a time."""
    model, start = (AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).train() for _ in range(2))
    perturb(model.parameters())

    def logps(model: Any, row: Any, heat: float) -> Tensor:
        ids = torch.tensor([row.prompt.ids + row.reply.ids])
        scores = torch.log_softmax(model(input_ids=ids).logits[0, :-1] / heat, -1)
        return scores.gather(-1, ids[0, 1:, None])[len(row.prompt.ids) - 1 :, 0]

    losses = {name: torch.zeros((), dtype=torch.float64) for name in ("text", "audio", "sft")}
    for r in step.rollouts:
        scores = logps(model, r, config.rollout.temperature)
        both = sum(sampled(r).count(letter) for letter in "TA")
        for j, letter in enumerate(sampled(r)):
            if letter in "TA":
                trust = min(float(torch.exp(scores[j].detach() - r.reply.logps[j])), config.algo.importance_cap)
                better = r.advantage.text if letter == "T" else r.advantage.audio
                term = trust * better * scores[j] / both / len(step.rollouts)
                losses["text" if letter == "T" else "audio"] -= term
    for pair in step.pairs:
        for name, letter in (("text", "T"), ("audio", "A")):
            sides = []
            for r in (pair.chosen, pair.rejected):
                gaps = logps(model, r, 1.0) - logps(start, r, 1.0).detach()
                sides.append([gap for gap, c in zip(gaps, sampled(r), strict=True) if c == letter])
            if all(sides):
                z = config.algo.dpo_beta * (torch.stack(sides[0]).sum() - torch.stack(sides[1]).sum())
                share = pair.weight / sum(item.weight for item in step.pairs)
                losses[name] = losses[name] + share * torch.nn.functional.softplus(-z)
    spoken = sum(len(a.reply.channels) - a.reply.channels.count("P") for a in step.anchors)
    for a in step.anchors:
        for score, letter in zip(logps(model, a, 1.0), a.reply.channels, strict=True):
            losses["sft"] -= score / spoken if letter != "P" else 0.0
    return {name: by_part(model, loss) for name, loss in losses.items()}


def sampled(r: TrainingReply) -> list[str]:
    return [c if s else "-" for c, s in zip(r.reply.channels, r.reply.sampled, strict=True)]


def by_part(model: Any, loss: Tensor) -> dict[str, Tensor]:
    def part(name: str) -> str:
        if "layers." in name:
            return f"layer {name.split('.')[2]}"
        ends = "embedding, head" if model.config.tie_word_embeddings else "embedding"
        return "norm" if "norm" in name else "head" if "head" in name else ends

    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
    pieces: dict[str, list[Tensor]] = {}
    for name, grad in zip(named, grads, strict=True):
        pieces.setdefault(part(name), []).append(grad.flatten())
    return {name: torch.cat(grads) for name, grads in pieces.items()}


def check(part: PartGradients, gradients: dict[str, Tensor]) -> None:
    text, audio, sft = (gradients[name] for name in ("text", "audio", "sft"))
    assert part.parameters == len(text)
    expected = {
        "text": text.norm(),
        "audio": audio.norm(),
        "sft": sft.norm(),
        "ratio": text.norm() / audio.norm(),
    }
    actual = {"text": part.text, "audio": part.audio, "sft": part.sft, "ratio": part.text_audio_ratio}
    assert actual == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    for other, cosine in ((audio, part.text_audio_cosine), (sft, part.sft_text_cosine)):
        assert cosine == pytest.approx(float(torch.cosine_similarity(text, other, dim=0)), abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_each_part_of_the_model_has_the_gradient_of_the_unsharded_one(
    micro_checkpoint: Path, untied_checkpoint: Path, tied: bool
) -> None:
    checkpoint = micro_checkpoint if tied else untied_checkpoint
    settings, step = config(checkpoint, tokens_per_microbatch=128, **LOUD), batch(checkpoint, weight=0.0)
    learner = Learner(settings, 0, 1)
    perturb(learner.policy.parameters())
    diagnosis, expected = learner.diagnose(step), naive(checkpoint, settings, step)
    names = (
        ["embedding, head", "layer 0", "layer 1", "norm"]
        if tied
        else ["embedding", "layer 0", "layer 1", "norm", "head"]
    )
    assert (diagnosis.tied, [part.name for part in diagnosis.layers]) == (tied, names)
    assert diagnosis.policy_version == 0
    for part in diagnosis.layers:
        check(part, {name: parts[part.name] for name, parts in expected.items()})
    check(diagnosis.model, {name: torch.cat([parts[part] for part in names]) for name, parts in expected.items()})


def test_advantages_and_pairs_of_other_objectives_are_followed(micro_checkpoint: Path) -> None:
    """Routed advantages; DPO pairs, of which one has no audio in the rejected reply."""
    step = batch(micro_checkpoint)
    routed = replace(
        step,
        rollouts=tuple(
            replace(r, advantage=Advantage(r.reply.index - 0.3, 0.2 - r.reply.index, 9.0)) for r in step.rollouts
        ),
    )
    free = [as_written(r) for r in step.rollouts]
    mute = change_reply(free[1], channels=free[1].reply.channels.replace("A", "B"))
    pairs = (
        PreferencePair(chosen=free[0], rejected=mute),
        *(PreferencePair(chosen=free[n], rejected=free[n + 1], weight=0.5) for n in (2, 4)),
    )
    dpo = {"loss": "online_dpo", "mix": "fixed", "kl": {}}
    for algo, one in (({}, routed), (dpo, replace(step, rollouts=(), pairs=pairs))):
        settings = config(micro_checkpoint, algo=algo)
        learner = Learner(settings, 0, 1)
        perturb(learner.policy.parameters())
        diagnosis, expected = learner.diagnose(one), naive(micro_checkpoint, settings, one)
        for part in diagnosis.layers:
            check(part, {name: parts[part.name] for name, parts in expected.items()})
    roles = ("anchor", "chosen", "rejected")  # this run sampled no reply of these pairs
    assert set(diagnosis.shift) == {f"{role}_{channel}" for role in roles for channel in ("text", "audio")}
    for role, indices in (("chosen", (0, 2, 4)), ("rejected", (3, 5))):  # of the other rejected one no code counts
        replies = tuple(step.rollouts[index] for index in indices)
        gaps = shifts(Learner(config(micro_checkpoint), 0, 1), replies, "A")
        assert diagnosis.shift[f"{role}_audio"].tokens == len(gaps)
        assert diagnosis.shift[f"{role}_audio"].mean == pytest.approx(sum(gaps) / len(gaps), rel=1e-5, abs=1e-6)


def shifts(learner: Learner, rollouts: tuple[TrainingReply, ...], letter: str) -> list[float]:
    """How far ``perturb`` moves the log-prob of each sampled token of a channel. Perturbs the learner."""
    before = learner.score(rollouts)
    perturb(learner.policy.parameters())
    after = learner.score(rollouts)
    gaps = []
    for r in rollouts:
        for old, new, c, s in zip(before[r.key], after[r.key], r.reply.channels, r.reply.sampled, strict=True):
            gaps += [new - old] if c == letter and s else []
    return gaps


@pytest.mark.parametrize(("channel", "letter"), [("text", "T"), ("audio", "A")])
def test_shift_is_what_a_known_perturbation_did_to_each_channel(
    micro_checkpoint: Path, channel: str, letter: str
) -> None:
    step = batch(micro_checkpoint)
    anchors = tuple(  # scored as in SFT: temperature 1, every token
        sampled_reply(a.prompt, 0, a.reply.ids, (0.0,) * len(a.reply.ids), a.reply.channels) for a in step.anchors
    )
    learner = Learner(config(micro_checkpoint, **LOUD), 0, 1)
    start = learner.diagnose(step)
    assert all((shift.mean, shift.mean_abs) == (0.0, 0.0) for shift in start.shift.values())
    expected = {
        "rollout": shifts(learner, step.rollouts, letter),
        "anchor": shifts(Learner(config(micro_checkpoint), 0, 1), anchors, letter),
    }
    diagnosis = learner.diagnose(step)
    for name, gaps in expected.items():
        shift = diagnosis.shift[f"{name}_{channel}"]
        assert shift.tokens == len(gaps)
        assert shift.mean == pytest.approx(sum(gaps) / len(gaps), rel=1e-5, abs=1e-6)  # float32 log-probs
        assert shift.mean_abs == pytest.approx(sum(map(abs, gaps)) / len(gaps), rel=1e-5)
        assert diagnosis.metrics()[f"shift/{name}_{channel}_abs"] == shift.mean_abs


def test_diagnosed_run_has_the_weights_of_one_that_was_not(micro_checkpoint: Path) -> None:
    settings = config(micro_checkpoint, algo={"epochs": 2}, activation_checkpointing=True, tokens_per_microbatch=128)
    plain, diagnosed = Learner(settings, 0, 1), Learner(settings, 0, 1)
    results = []
    for n in range(3):
        expected = plain.step(batch(micro_checkpoint, seed=n))
        state = torch.get_rng_state()
        diagnosed.diagnose(batch(micro_checkpoint, seed=n))
        assert torch.equal(torch.get_rng_state(), state)
        results.append((expected, diagnosed.step(batch(micro_checkpoint, seed=n))))
    assert all(a.metrics == b.metrics and str(a.learner_logps) == str(b.learner_logps) for a, b in results)
    weights = dict(full_tensors(plain.policy))
    assert all(torch.equal(weights[name], tensor) for name, tensor in full_tensors(diagnosed.policy))
    moments = zip(plain._optimizer.state.values(), diagnosed._optimizer.state.values(), strict=True)
    assert all(torch.equal(a[name].to_local(), b[name].to_local()) for a, b in moments for name in ("exp_avg", "exp_avg_sq"))  # fmt: skip


def test_what_a_batch_cannot_tell_is_left_out(micro_checkpoint: Path) -> None:
    learner, step = Learner(config(micro_checkpoint), 0, 1), batch(micro_checkpoint)
    anchors = learner.diagnose(replace(step, rollouts=()))
    assert set(anchors.shift) == {"anchor_text", "anchor_audio"}
    assert {(part.text, part.audio, part.text_audio_ratio, part.sft_text_cosine) for part in anchors.layers} == {
        (None,) * 4
    }
    assert all(part.sft for part in anchors.layers)
    mute = tuple(change_reply(r, channels=r.reply.channels.replace("T", "P")) for r in step.rollouts)
    audio = learner.diagnose(replace(step, rollouts=mute, anchors=()))
    assert set(audio.shift) == {"rollout_audio"} and audio.model.text is None and audio.model.audio
    flat = learner.diagnose(replace(step, rollouts=tuple(replace(r, advantage=NO_ADVANTAGE) for r in step.rollouts)))
    assert (flat.model.text, flat.model.audio) == (None, None) and "rollout_text" in flat.shift
    assert "grad/text_audio_ratio" not in flat.metrics() and "shift/rollout_text" in flat.metrics()
    empty = learner.diagnose(StepBatch(step=1, weight=0.0, rollouts=(), anchors=()))
    assert empty.metrics() == {} and len(empty.layers) == 4


def test_the_start_policy_is_loaded_for_diagnoses_and_not_without(micro_checkpoint: Path) -> None:
    plain = config(micro_checkpoint, algo={"kl": {}})
    never = plain.model_copy(update={"log": plain.log.model_copy(update={"diagnose_every": 0})})
    assert Learner(plain, 0, 1)._reference is not None
    without = Learner(never, 0, 1)
    assert without._reference is None
    diagnosis = without.diagnose(batch(micro_checkpoint))
    assert diagnosis.shift == {} and diagnosis.model.text_audio_ratio


def test_gradients_of_the_parts_add_up_to_those_of_the_model(micro_checkpoint: Path) -> None:
    diagnosis: PolicyDiagnosis = Learner(config(micro_checkpoint), 0, 1).diagnose(batch(micro_checkpoint))
    for name in ("text", "audio", "sft"):
        assert sqrt(sum(getattr(part, name) ** 2 for part in diagnosis.layers)) == pytest.approx(
            getattr(diagnosis.model, name)
        )
    assert diagnosis.metrics()["grad/text_audio_ratio"] == diagnosis.model.text_audio_ratio
