"""The learner against docs/method.md §2 written naively, on one rank in this process and on two in their own."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conf.algorithm import AlgoConfig, ChannelWeights
from learner import metrics as step_metrics
from learner.batch import pack_microbatch
from learner.loss import compute_loss_terms
from learner.objectives import build_training_rows
from learner.ranks import join_process_group, leave_process_group
from learner.rows import SamplingSetup
from learner.step import Learner
from learner.types import NO_ADVANTAGE, Advantage, StepBatch
from rollout.types import Prompt
from rollout.weights import unpack_weights
from tests.helpers import naive_objective
from tests.helpers.learner_variants import HOT, PENALISED, VARIANTS
from tests.helpers.learner_world import (
    NO_KL,
    WORDS,
    batch,
    config,
    full_tensors,
    moments,
    naive_gradient,
    naive_rows,
    perturb,
    relative_error,
    spell_key,
)
from tests.helpers.processes import HANG_S
from tests.helpers.training_replies import change_reply, sampled_reply

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    join_process_group(rank=0, world=1, address=f"127.0.0.1:{free_port()}", timeout_s=HANG_S)
    yield
    leave_process_group()


@pytest.fixture(scope="module")
def two_ranks(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Folder of a finished two-rank session, and what each rank reported."""
    folder = tmp_path_factory.mktemp("two_ranks")
    shutil.copytree(micro_checkpoint, folder / "base")
    port = str(free_port())
    command = [sys.executable, "-m", "tests.helpers.learner_world", str(folder)]
    running = [subprocess.Popen([*command, str(rank), "2", port], cwd=REPOSITORY) for rank in range(2)]
    try:
        codes = [process.wait(HANG_S) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0, 0]
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", VARIANTS)
def test_gradient_is_the_padded_unsharded_one_on_one_rank_and_on_two(
    micro_checkpoint: Path, two_ranks: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    algo, change = VARIANTS[name]
    settings, step = config(micro_checkpoint, algo=algo, rollout=HOT), change(batch(micro_checkpoint))
    learner = Learner(settings, 0, 1)
    perturb(learner.policy.parameters())
    metrics = learner.step(step).metrics
    expected, losses = naive_gradient(micro_checkpoint, settings, step, perturbed=True)
    for item in (moments(learner), load_file(two_ranks[0] / f"variant_{name}.safetensors")):
        assert relative_error({n: m * 10 for n, m in item.items()}, expected) <= 1e-5
    shown = {name for name in losses if name in metrics}
    assert shown >= {"loss/total"} | {name for name, value in losses.items() if value and "kl" not in name}
    for loss in shown:
        assert metrics[loss] == pytest.approx(losses[loss], rel=1e-4, abs=1e-6)


def test_a_penalty_in_the_reward_is_the_padded_one_on_one_rank_and_on_two(
    micro_checkpoint: Path, two_ranks: tuple[Path, list[dict[str, Any]]]
) -> None:
    settings, step = config(micro_checkpoint, algo=PENALISED, rollout=HOT), batch(micro_checkpoint)
    learner = Learner(settings, 0, 1)
    perturb(learner.policy.parameters())
    rows = naive_rows(micro_checkpoint, settings, step, perturbed=True).rollouts
    expected = {
        r.key: naive_objective.kl_penalty(row, settings.algo) for r, row in zip(step.rollouts, rows, strict=True)
    }
    assert learner.penalties(step.rollouts) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    spelled = {spell_key(key): paid for key, paid in expected.items()}
    for report in two_ranks[1]:
        assert report["penalties"] == pytest.approx(spelled, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"tokens_per_microbatch": 96}, {"logprob_chunk": 1000}, {"activation_checkpointing": True}],
    ids=str,
)
def test_gradient_does_not_depend_on_how_the_step_is_cut(micro_checkpoint: Path, settings: dict[str, Any]) -> None:
    collected = []
    for changed in ({}, settings):
        learner = Learner(config(micro_checkpoint, **changed), 0, 1)
        perturb(learner.policy.parameters())
        learner.step(batch(micro_checkpoint))
        collected.append(moments(learner))
    assert relative_error(collected[1], collected[0]) <= 1e-5


def test_two_ranks_give_the_gradient_and_metrics_of_one(
    micro_checkpoint: Path, two_ranks: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, reports = two_ranks
    learner = Learner(config(micro_checkpoint), 0, 1)
    perturb(learner.policy.parameters())
    result = learner.step(batch(micro_checkpoint))
    assert relative_error(load_file(folder / "gradient.safetensors"), moments(learner)) <= 1e-5
    assert relative_error(load_file(folder / "uneven.safetensors"), moments(learner)) <= 1e-5
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["metrics"] == pytest.approx(result.metrics, rel=1e-4)
    assert reports[1]["logps"] == {}
    for key, values in result.learner_logps.items():
        assert [x for x in reports[0]["logps"][spell_key(key)] if x is not None] == pytest.approx(
            [x for x in values if x == x], abs=1e-5
        )


def test_two_ranks_diagnose_what_one_does(
    micro_checkpoint: Path, two_ranks: tuple[Path, list[dict[str, Any]]]
) -> None:
    _, reports = two_ranks
    learner = Learner(config(micro_checkpoint), 0, 1)
    anchors = batch(micro_checkpoint, groups=1).anchors
    alone = learner.diagnose(StepBatch(step=0, weight=0.0, rollouts=(), anchors=anchors))
    perturb(learner.policy.parameters())
    whole = learner.diagnose(batch(micro_checkpoint))
    for name, expected in (("diagnosis", whole), ("lonely_diagnosis", alone)):
        assert reports[0][name] == reports[1][name]
        (words, numbers), (same, wanted) = map(leaves, (reports[0][name], asdict(expected)))
        assert words == same and numbers == pytest.approx(wanted, rel=1e-5, abs=1e-7)


def leaves(value: Any) -> tuple[list[Any], list[float]]:
    """What nested JSON holds: keys and words, and numbers (for a comparison with a tolerance)."""
    if isinstance(value, dict | list | tuple):
        inside = list(value.items()) if isinstance(value, dict) else value
        parts = [leaves(part) for part in inside]
        return [w for words, _ in parts for w in words], [n for _, numbers in parts for n in numbers]
    return ([], [value]) if isinstance(value, float) else ([value], [])


def test_a_rank_without_work_takes_part(micro_checkpoint: Path, two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, reports = two_ranks
    settings = config(micro_checkpoint, algo={"mix": "fixed", "fixed_lambda": 0.0})
    alone = StepBatch(step=0, weight=0.0, rollouts=(), anchors=batch(micro_checkpoint, groups=1).anchors)
    expected, losses = naive_gradient(micro_checkpoint, settings, alone)
    actual = {name: moment * 10 for name, moment in load_file(folder / "lonely.safetensors").items()}
    assert relative_error(actual, expected) <= 1e-5
    assert reports[0]["lonely"] == reports[1]["lonely"]
    assert reports[0]["lonely"]["loss/sft"] == pytest.approx(losses["loss/sft"])
    assert reports[0]["nothing"] == reports[1]["nothing"] == {"tokens": 0.0, "grad_norm": 0.0}


def test_resume_is_bit_exact_on_two_ranks_and_loads_on_one(
    micro_checkpoint: Path, two_ranks: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, reports = two_ranks
    straight, resumed = (load_file(folder / f"weights_{name}.safetensors") for name in ("straight", "resumed"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    learner = Learner(config(micro_checkpoint), 0, 1)
    learner.load(folder / "two_ranks")
    saved = load_file(folder / "weights_two_ranks.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in full_tensors(learner.policy))
    learner.step(batch(micro_checkpoint, seed=1))
    assert relative_error(dict(full_tensors(learner.policy)), straight) <= 1e-5
    assert learner.version == reports[0]["published"][0] == 2 and reports[1]["published"] is None
    exported = load_file(folder / "exported_by_two" / "model.safetensors")
    assert all(torch.equal(exported[name], straight[name]) for name in exported)


def test_resume_is_bit_exact_on_one_rank(micro_checkpoint: Path, tmp_path: Path) -> None:
    settings = config(micro_checkpoint, algo={"epochs": 2}, weight_decay=0.1, warmup_steps=5)
    straight, before, after = (Learner(settings, 0, 1) for _ in range(3))
    for step in range(3):
        straight.step(batch(micro_checkpoint, seed=step))
    for step in range(2):
        before.step(batch(micro_checkpoint, seed=step))
    before.save(tmp_path / "state")
    torch.manual_seed(99)
    after.load(tmp_path / "state")
    assert after.version == 2
    result = after.step(batch(micro_checkpoint, seed=2))
    for name, tensor in full_tensors(after.policy):
        assert torch.equal(tensor, dict(full_tensors(straight.policy))[name])
    mine, theirs = moments(after), moments(straight)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert result.metrics["lr"] == pytest.approx(3e-4)  # the sixth update ends a warm-up of five
    assert all(file.suffix in {".safetensors", ".json"} for file in (tmp_path / "state").iterdir())
    with pytest.raises(ValueError, match="empty folder"):
        before.save(tmp_path / "state")


def test_export_loads_and_gives_equal_logits(micro_checkpoint: Path, tmp_path: Path) -> None:
    learner = Learner(config(micro_checkpoint), 0, 1)
    learner.step(batch(micro_checkpoint))
    learner.export(tmp_path / "final")
    source, target = ({f.name for f in folder.iterdir()} for folder in (micro_checkpoint, tmp_path / "final"))
    assert source == target
    assert (tmp_path / "final/codec.safetensors").read_bytes() == (micro_checkpoint / "codec.safetensors").read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (micro_checkpoint, tmp_path / "final"))
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    scored = learner.score(batch(micro_checkpoint).rollouts)
    for rollout in batch(micro_checkpoint).rollouts:
        ids = torch.tensor([rollout.prompt.ids + rollout.reply.ids])
        with torch.no_grad():
            logps = torch.log_softmax(model(ids).logits[0, :-1].float(), -1).gather(-1, ids[0, 1:, None])[:, 0]
        mine = torch.tensor(scored[rollout.key])
        torch.testing.assert_close(mine, logps[len(rollout.prompt.ids) - 1 :], atol=1e-5, rtol=0)


def test_published_weights_are_the_policy_with_its_tied_head(micro_checkpoint: Path) -> None:
    learner = Learner(config(micro_checkpoint), 0, 1)
    learner.step(batch(micro_checkpoint))
    published = learner.weights()
    assert published is not None and published[0].version == 1
    sent = dict(unpack_weights(*published))
    assert torch.equal(sent["lm_head.weight"], sent["model.embed_tokens.weight"])
    assert all(torch.equal(tensor, sent[name]) for name, tensor in full_tensors(learner.policy))


def test_text_objective_gives_audio_no_preference_gradient(micro_checkpoint: Path) -> None:
    """A reply whose only preferred token comes first: whatever audio follows, the gradient is the same to
    the bit.
    """
    algo = {"mix": "fixed", "fixed_lambda": 1.0, **NO_KL, **WORDS}
    collected = []
    for turned in (False, True):
        step = batch(micro_checkpoint, groups=2, weight=1.0)
        rollouts = []
        for rollout in step.rollouts:
            reply, first_audio = rollout.reply, rollout.reply.channels.index("A")
            text, tail = reply.ids[:first_audio], reply.ids[first_audio:]
            codes = [i for i, c in zip(reply.ids, reply.channels, strict=True) if c == "A"]
            tail = tuple(codes[-1] if turned else codes[0] for _ in tail)
            channels = reply.channels[:first_audio] + "A" * len(tail)
            rollouts.append(change_reply(rollout, ids=text + tail, channels=channels))
        learner = Learner(config(micro_checkpoint, algo=algo), 0, 1)
        metrics = learner.step(replace(step, rollouts=tuple(rollouts))).metrics
        assert "entropy/audio" not in metrics and "loss/sft" not in metrics
        collected.append(moments(learner))
    assert any(m.any() for m in collected[0].values())
    assert all(torch.equal(collected[0][name], collected[1][name]) for name in collected[0])


def test_empty_preference_mask_is_exactly_the_anchors_alone(micro_checkpoint: Path) -> None:
    """No text in any reply: the objective does not fall back to the audio."""
    algo = {**NO_KL, **WORDS}
    step = batch(micro_checkpoint)
    mute = tuple(change_reply(r, channels=r.reply.channels.replace("T", "A")) for r in step.rollouts)
    collected = []
    for rollouts in (mute, ()):
        learner = Learner(config(micro_checkpoint, algo=algo), 0, 1)
        assert "loss/po" not in learner.step(replace(step, rollouts=rollouts)).metrics
        collected.append(moments(learner))
    assert all(torch.equal(collected[0][name], collected[1][name]) for name in collected[0])


def test_shut_gate_costs_no_preference_and_no_reference(micro_checkpoint: Path) -> None:
    learner = Learner(config(micro_checkpoint), 0, 1)
    step = batch(micro_checkpoint, weight=0.0)
    result = learner.step(step)
    other = Learner(config(micro_checkpoint), 0, 1)
    alone = other.step(replace(step, rollouts=()))
    assert result.metrics == alone.metrics
    assert "loss/po" not in result.metrics
    assert all(x != x for values in result.learner_logps.values() for x in values)
    assert all(torch.equal(a, b) for a, b in zip(moments(learner).values(), moments(other).values(), strict=True))


def test_zero_advantage_rows_are_skipped_exactly(micro_checkpoint: Path) -> None:
    algo = NO_KL
    step = batch(micro_checkpoint)
    flat = tuple(replace(r, advantage=NO_ADVANTAGE) if r.prompt.id == "p1" else r for r in step.rollouts)
    settings = config(micro_checkpoint, algo=algo)
    learner = Learner(settings, 0, 1)
    result = learner.step(replace(step, rollouts=flat))
    expected, _ = naive_gradient(micro_checkpoint, settings, replace(step, rollouts=flat))
    assert relative_error({n: m * 10 for n, m in moments(learner).items()}, expected) <= 1e-5
    assert all(x != x for x in result.learner_logps["p1", 0])
    assert any(x == x for x in result.learner_logps["p0", 0])


def test_bfloat16_computes_near_float32_and_keeps_float32_weights(micro_checkpoint: Path) -> None:
    settings = config(micro_checkpoint)
    half = settings.model_copy(update={"model": settings.model.model_copy(update={"dtype": "bfloat16"})})
    learner = Learner(half, 0, 1)
    perturb(learner.policy.parameters())
    learner.step(batch(micro_checkpoint))
    expected, _ = naive_gradient(micro_checkpoint, settings, batch(micro_checkpoint), perturbed=True)
    assert 1e-5 < relative_error({n: m * 10 for n, m in moments(learner).items()}, expected) < 0.05
    assert {p.dtype for p in learner.policy.parameters()} == {torch.float32}
    published = learner.weights()
    assert published is not None and set(published[0].dtypes) == {"bfloat16"}


def test_later_epochs_use_the_first_epochs_ratio(micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[float] = []

    def reduce(*message: Any) -> dict[str, float]:
        actual = reduced(*message)
        passes.append(actual["clip_fraction"])
        return actual

    reduced = step_metrics.reduce_metrics
    monkeypatch.setattr(step_metrics, "reduce_metrics", reduce)
    learner = Learner(config(micro_checkpoint, algo={"epochs": 3, "clip_low": 0.0, "clip_high": 0.0}, lr=1e-2), 0, 1)
    metrics = learner.step(batch(micro_checkpoint)).metrics
    assert learner.version == 1
    assert passes[0] == 0.0 < min(passes[1:])  # the first of three epochs cannot clip
    assert metrics["clip_fraction"] == fmean(passes[1:])


def test_only_positions_with_an_advantage_count_as_clipped_or_not() -> None:
    """A sequence's importance weight is made of all that a reply prefers, with an advantage or without."""
    advantage = Advantage(text=1.0, audio=0.0, form=0.0)
    reply = sampled_reply(Prompt(id="p", ids=(1,)), 0, (2, 3, 4, 5), (-1.0,) * 4, "TTAA", advantage=advantage)
    algo = AlgoConfig(routed=True, importance="sequence", preference=ChannelWeights(text=1.0, audio=1.0))
    step = StepBatch(step=1, weight=1.0, rollouts=(reply,), anchors=())
    micro = pack_microbatch(build_training_rows(step, algo, SamplingSetup(max_new_tokens=8, temperature=1.0)), 1)
    old = torch.full((4,), -1.0)
    logps = old + torch.tensor([0.5, 0.0, -0.5, 0.5])  # only the first has its ratio above 1.2 and a reason
    terms = compute_loss_terms(logps, old, old, old, micro, weight=1.0, algo=algo)
    assert (int(terms.preferred), int(terms.clipped)) == (2, 1)


def test_grammar_masks_the_learner_like_the_sampler(micro_checkpoint: Path) -> None:
    learner = Learner(config(micro_checkpoint, rollout={"grammar": True}), 0, 1)
    plain = Learner(config(micro_checkpoint), 0, 1)
    rollouts = batch(micro_checkpoint).rollouts
    masked, free = learner.score(rollouts), plain.score(rollouts)
    for key in masked:
        assert all(m >= f - 1e-5 for m, f in zip(masked[key], free[key], strict=True))  # less to share with
    forbidden = change_reply(rollouts[0], ids=(rollouts[0].reply.ids[-1], *rollouts[0].reply.ids[1:]))
    with pytest.raises(ValueError, match="forbidden by the grammar"):
        learner.score([forbidden])


def test_a_gradient_that_is_not_finite_stops_the_step(micro_checkpoint: Path) -> None:
    learner = Learner(config(micro_checkpoint), 0, 1)
    step = batch(micro_checkpoint)
    broken = replace(step.rollouts[0], advantage=Advantage.shared(float("nan")))
    before = {name: t.clone() for name, t in full_tensors(learner.policy)}
    with pytest.raises(FloatingPointError, match="must be finite"):
        learner.step(replace(step, rollouts=(broken, *step.rollouts[1:])))
    assert all(torch.equal(before[name], t) for name, t in full_tensors(learner.policy))


def test_bad_input_is_refused_by_name(micro_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokens_per_microbatch must hold one row"):
        Learner(config(micro_checkpoint, tokens_per_microbatch=64), 0, 1)
    learner = Learner(config(micro_checkpoint), 0, 1)
    step = batch(micro_checkpoint)
    with pytest.raises(ValueError, match="rollout p0/0: ids, logps"):
        learner.step(replace(step, rollouts=(change_reply(step.rollouts[0], logps=()),)))
    with pytest.raises(ValueError, match="anchor p0 has"):
        learner.step(replace(step, anchors=(replace(step.anchors[0], prompt=Prompt(id="p0", ids=(9,) * 400)),)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a state of this model"):
        learner.load(tmp_path / "empty")
