"""MCTP layers that are trained: they learn what the published training says, and nothing else learns from them."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from conf.schema import Config
from learner.batch import pack_microbatch
from learner.model import Policy, gather_tensor
from learner.objectives import build_training_rows
from learner.ranks import join_process_group, leave_process_group
from learner.rows import LossComponent, SamplingSetup
from learner.step import Learner
from learner.types import Advantage, StepBatch, TrainingReply
from rollout.language_model import read_checkpoint_layout
from rollout.types import Prompt
from speech.checkpoints.folder import read_json, weight_files
from speech.families import load_family
from tests.helpers.learner_world import full_tensors
from tests.helpers.micro_vita_audio import AHEAD, CODES, LAYERS, write_checkpoint
from tests.helpers.processes import HANG_S
from tests.helpers.training_replies import sampled_reply, written_reply

Tensors = dict[str, Tensor]
SAMPLED = SamplingSetup(max_new_tokens=64, temperature=1.0)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    join_process_group(rank=0, world=1, address=f"127.0.0.1:{port}", timeout_s=HANG_S)
    yield
    leave_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("ahead") / "boost")


def config(folder: Path, mtp: str, **algo: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "test"},
            "model": {"family": "vita_audio", "path": str(folder), "mtp": mtp, "max_length": 96},
            "data": {"train": "x", "validation": "x", "test": "x"},
            "rollout": {"max_new_tokens": 64},
            "algo": {"kl": {}, **algo},
            "learner": {"ranks": 1, "lr": 1e-2, "clip": 0.5, "warmup_steps": 0, "tokens_per_microbatch": 128},
        }
    )


def batch(folder: Path, weight: float) -> StepBatch:
    """Anchors and rollouts of unequal lengths, several to a micro-batch."""
    family = load_family(config(folder, "frozen").model)
    draw = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (count,), generator=draw).tolist())

    def speech(count: int) -> tuple[int, ...]:
        codes = torch.randint(0, CODES, (count,), generator=draw).tolist()
        target = family.interleave.merge_chunks([list(ids(3))], [family.codes_to_ids(codes)])
        return tuple(target)

    anchors, rollouts = [], []
    for i in range(3):
        reply = speech(4 + 5 * i)
        letters = family.channels.to_letters(reply)
        anchors.append(written_reply(f"a{i}", ids(6 + i), reply, letters))
        reply = speech(6 + 3 * i)
        rollouts.append(
            sampled_reply(
                Prompt(id="r", ids=ids(9)),
                i,
                reply,
                logps=(-5.0,) * len(reply),
                channels=family.channels.to_letters(reply),
                advantage=Advantage.shared(1.0 - i / 1.5),
            )
        )
    return StepBatch(step=1, weight=weight, rollouts=tuple(rollouts), anchors=tuple(anchors))


def after(folder: Path, mtp: str, weight: float, steps: int = 2) -> tuple[Learner, dict[str, float]]:
    learner = Learner(config(folder, mtp), 0, 1)
    for _ in range(steps):
        metrics = learner.step(batch(folder, weight)).metrics
    return learner, metrics


def state(learner: Learner) -> Tensors:
    return dict(full_tensors(learner.policy))


def published_loss(folder: Path, anchors: tuple[TrainingReply, ...]) -> tuple[Tensor, Tensors]:
    """``mtp_forward`` and its loop in ``forward`` told anew, one sequence at a time, without any packing.

    With it the weights that it learns, by the learner's names for them.

    Depth d drops the first position of what it is given and pairs each embedding that is left with the state
    before it; the states of the last depth are dropped at the end instead. Rotations keep the position.
    """
    raw = read_json(folder / "config.json")
    shape = {name: raw[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "rope_theta")}
    shape |= {name: raw[name] for name in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps")}
    tensors: Tensors = {}
    for file in weight_files(folder):
        tensors |= {name: tensor.float().requires_grad_() for name, tensor in load_file(file).items()}
    lm = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=LAYERS + AHEAD, tie_word_embeddings=False, **shape))
    lm.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("mtp_")})

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * tensors[name]

    per_depth: list[list[Tensor]] = [[] for _ in range(AHEAD)]
    for anchor in anchors:
        ids = torch.tensor([[*anchor.prompt.ids, *anchor.reply.ids]])
        own = list(lm.model.layers)
        lm.model.layers = torch.nn.ModuleList(own[:LAYERS])
        lm.config.num_hidden_layers = LAYERS
        states = lm.model(ids).last_hidden_state
        embedded, positions = lm.model.embed_tokens(ids), torch.arange(ids.shape[1])[None]
        for depth in range(AHEAD):
            embedded, positions, states = embedded[:, 1:], positions[:, 1:], states[:, :-1]
            normed = [rms(embedded, f"mtp_embed_norms.{depth}.weight")]
            normed.append(rms(states, f"mtp_hidden_norms.{depth}.weight"))
            x = torch.cat(normed, -1) @ tensors[f"mtp_projs.{depth}.weight"].T
            mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)[None, None]
            turned = lm.model.rotary_emb(x, positions)
            states = lm.model.norm(own[LAYERS + depth](x, attention_mask=mask, position_embeddings=turned))
            first = len(anchor.prompt.ids) - 1 - (depth + 1)
            logits = lm.lm_head(states[0, first:-1])
            assert len(logits) == len(anchor.reply.ids)
            per_depth[depth].append(F.cross_entropy(logits, torch.tensor(anchor.reply.ids)))
        lm.model.layers = torch.nn.ModuleList(own)
        lm.config.num_hidden_layers = LAYERS + AHEAD
    learnt = {
        f"ahead.{depth}.layer.{name}": tensor
        for depth in range(AHEAD)
        for name, tensor in lm.model.layers[LAYERS + depth].named_parameters()
    }
    for depth in range(AHEAD):
        learnt[f"ahead.{depth}.proj.weight"] = tensors[f"mtp_projs.{depth}.weight"]
        for norm in ("embed", "hidden"):
            learnt[f"ahead.{depth}.{norm}_norm.weight"] = tensors[f"mtp_{norm}_norms.{depth}.weight"]
    return torch.stack([torch.stack(losses).mean() for losses in per_depth]).mean(), learnt


@pytest.mark.filterwarnings("error:.*returned a view tensor")
def test_the_depths_loss_and_its_gradient_are_the_published_ones(folder: Path) -> None:
    everything = {"text": 1, "audio": 1, "boundary": 1, "stop": 1}
    settings = config(folder, "trained", sft=everything, sft_aggregation="sequence_mean")
    step = batch(folder, weight=0.25)
    learner, (loss, learnt) = Learner(settings, 0, 1), published_loss(folder, step.anchors)
    micro = pack_microbatch(build_training_rows(replace(step, weight=0.0, rollouts=()), settings.algo, SAMPLED), 1)
    (-(micro.weights_CN[LossComponent.SFT] * learner.policy(micro).mtp_logps_DN.mean(0)).sum()).backward()
    own = {name: gather_tensor(p.grad) for name, p in learner.policy.lm.named_parameters() if p.grad is not None}
    theirs = dict(zip(learnt, torch.autograd.grad(loss, list(learnt.values())), strict=True))
    assert own.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for parameter in learner.policy.parameters():
        parameter.grad = None
    metrics = learner.step(step).metrics
    assert metrics["loss/ahead"] == pytest.approx(loss.item(), rel=1e-5)
    parts = 0.75 * (metrics["loss/sft"] + metrics["loss/ahead"]) + 0.25 * metrics["loss/po"]
    assert metrics["loss/total"] == pytest.approx(parts, rel=1e-6)  # what the gradient is of


def test_what_a_model_is_asked_for_is_what_its_family_says(folder: Path) -> None:
    for mtp, depths in (("trained", AHEAD), ("frozen", 0)):
        family = load_family(config(folder, mtp).model)
        assert family.mtp_depth == len(Policy.load(family, chunk=8).mtp_heads) == depths


def test_a_loss_that_the_step_asked_for_and_did_not_get_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(config(folder, "trained"), 0, 1)
    monkeypatch.setattr(
        Policy, "_mtp_logprobs", lambda self, micro, hidden: hidden.new_zeros(0, len(micro.keep_N))
    )  # as a depth that is not seen
    with pytest.raises(RuntimeError, match="asked for loss/ahead, and nothing was learnt"):
        learner.step(batch(folder, 0.25))


def test_the_decoder_learns_bit_for_bit_what_it_learns_without_the_depths(folder: Path) -> None:
    """Also where gradients are clipped: the two are clipped apart."""
    (trained, _), (frozen, without) = (after(folder, mtp, 0.25) for mtp in ("trained", "frozen"))
    decoder, moved = state(frozen), state(trained)
    assert "loss/ahead" not in without
    assert all(torch.equal(moved[name], tensor) for name, tensor in decoder.items())
    start = state(Learner(config(folder, "trained"), 0, 1))
    ahead = {name for name in moved if name.startswith("ahead.")}
    assert ahead == set(moved) - set(decoder) and len(ahead) == AHEAD * 15
    assert not any(torch.equal(moved[name], start[name]) for name in ahead)


def test_a_preference_teaches_the_depths_nothing(folder: Path) -> None:
    learner, actual = after(folder, "trained", weight=1.0)
    start = state(Learner(config(folder, "trained"), 0, 1))
    moved = {name for name, tensor in state(learner).items() if not torch.equal(tensor, start[name])}
    assert moved and not any(name.startswith("ahead.") for name in moved)
    assert "loss/ahead" not in actual


def test_engines_never_get_the_depths_and_exports_have_them_under_their_names(folder: Path, tmp_path: Path) -> None:
    learner, _ = after(folder, "trained", 0.25)
    family = load_family(config(folder, "trained").model)
    layout, _optional = read_checkpoint_layout(family)
    assert layout == read_checkpoint_layout(load_family(config(folder, "frozen").model))[0]
    published = learner.weights()
    assert published is not None and set(published[0].names) == set(layout)
    learner.export(tmp_path / "out")
    for file in weight_files(folder):
        before, now = load_file(file), load_file(tmp_path / "out" / file.name)
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in now.items()}
        assert not any(torch.equal(tensor, now[name]) for name, tensor in before.items())
    again = state(Learner(config(tmp_path / "out", "trained"), 0, 1))
    assert all(torch.equal(again[n], t.bfloat16().float()) for n, t in state(learner).items())


def test_depths_that_are_not_there_cannot_be_trained(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "plus", "plus")
    with pytest.raises(ValueError, match=r"config\.json: model\.mtp=trained needs MCTP layers: the model has"):
        load_family(config(folder, "trained").model)
