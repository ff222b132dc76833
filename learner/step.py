"""The learner: one batch in, one new policy version out.

    StepBatch ─► rows ─ plan ─► this rank's micro-batches ───┬─► reference log-probs (KL positions only)
                                                             ├─► policy log-probs ─► loss ─► backward
                                                             └─► clip ─► AdamW, per epoch ─► version + 1

Every rank holds the same ``StepBatch`` and calls the same methods in the same order; what is collective
blocks until all ranks are there (with the group's timeout). Invariant: the update does not depend on the
number of ranks or on how the batch was cut, and k steps + save + load + n steps are k + n steps, bit for
bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conf.algorithm import AlgoConfig
from conf.schema import Config
from learner import export as exporting
from learner import metrics, ranks, state
from learner.batch import Microbatch, MicrobatchPlan, list_scored_positions, pack_microbatch, plan_microbatches
from learner.diagnosis import PolicyDiagnosis
from learner.gradients import DiagnosticsCollector, build_diagnostic_losses, build_shift_rows
from learner.grammar import build_sampling_grammar
from learner.loss import compute_loss_terms, estimate_kl
from learner.metrics import ScoredMicrobatch
from learner.model import Policy, clip_gradients, freeze_policy, reshard_policy, set_gradient_sync, shard_policy
from learner.objectives import build_penalty_rows, build_training_rows, needs_reference
from learner.reference import compute_reference_logps, sum_kl_penalties
from learner.rows import SamplingSetup, TrainingRow, build_scoring_rows, compute_component_factors
from learner.types import LogpsByReply, StepBatch, StepResult, TrainingReply
from rollout.engine import WeightManifest
from rollout.types import ReplyKey
from rollout.weights import TORCH_DTYPES, pack_weights
from speech.families import load_family


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _RankBatch:
    """This rank's part of a step. ``references[m]`` is read where ``micros[m].referenced_N``."""

    micros: list[Microbatch]
    references: list[Tensor]


class Learner:
    """One rank of the sharded learner.

    Example:
        join_process_group(rank=rank, world=2, address="10.0.0.1:29500", timeout_s=120)
        learner = Learner(config, rank=rank, world=2)
        result = learner.step(batch)  # the same batch on every rank
        published = learner.weights()  # (manifest, buffer) on rank 0
    """

    def __init__(self, config: Config, rank: int, world: int) -> None:
        """Loads and shards the policy, and the reference policy if something can ask for it. Collective.

        ValueError: the checkpoint cannot be used, or ``tokens_per_microbatch`` cannot hold a row.
        """
        if config.learner.tokens_per_microbatch < config.model.max_length:
            raise ValueError(
                f"learner.tokens_per_microbatch must hold one row of "
                f"model.max_length={config.model.max_length}: got {config.learner.tokens_per_microbatch}"
            )
        self._config, self._rank, self._world = config, rank, world
        self._mesh = ranks.build_device_mesh(world)
        self.family = load_family(config.model)
        self._setup = SamplingSetup(
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=config.rollout.temperature,
            grammar=build_sampling_grammar(config, self.family),
        )
        self.policy = self._load_policy(checkpointing=config.learner.activation_checkpointing)
        loads_reference = needs_reference(config.algo) or config.log.diagnose_every > 0
        self._reference = freeze_policy(self._load_policy(checkpointing=False)) if loads_reference else None
        learning = config.learner
        self._optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=learning.lr, betas=learning.betas, weight_decay=learning.weight_decay,
            fused=ranks.get_rank_device().type == "cuda",  # the default there holds a second copy of the weights
        )  # fmt: skip
        state.initialise_moments(self.policy, self._optimizer)
        self._version = 0
        self._updates = 0  # of the optimiser: more than one per version when epochs > 1

    @property
    def version(self) -> int:
        """Steps learnt so far; the policy version that ``weights`` publishes."""
        return self._version

    def step(self, batch: StepBatch) -> StepResult:
        """One optimiser step per epoch. Collective; metrics are equal on all ranks, log-probs are rank 0's.

        A batch that gives no position any weight changes nothing but the version. FloatingPointError: the
        gradient is not finite (nothing was updated by it). ValueError: a row that no micro-batch can hold.
        """
        rows = build_training_rows(batch, self._config.algo, self._setup)
        plan = self._plan(rows)
        self._version += 1
        if not plan[0]:
            return StepResult(
                version=self._version,
                metrics={"tokens": 0.0, "grad_norm": 0.0},
                learner_logps=self._unscored_logps(batch.replies),
            )
        rank_batch = self._prepare_rank_batch(rows, plan)
        first, step_metrics = self._run_epoch(rank_batch, None, batch.weight)
        metrics.check_losses_present(step_metrics, rows, len(self.policy.mtp_heads))
        old = [scored.logps_N for scored in first]
        passes = [step_metrics]
        for _ in range(1, self._config.algo.epochs):
            passes.append(self._run_epoch(rank_batch, old, batch.weight)[1])
        step_metrics["grad_norm"] = fmean(each["grad_norm"] for each in passes)
        if "clip_fraction" in step_metrics:  # of the passes that can clip: the first one's ratio is 1
            step_metrics["clip_fraction"] = fmean(each["clip_fraction"] for each in passes[1:] or passes)
        logps = self._gather_logps(rows, plan, old, batch.replies)
        return StepResult(version=self._version, metrics=step_metrics, learner_logps=logps)

    @torch.no_grad()
    def score(self, rollouts: Sequence[TrainingReply]) -> LogpsByReply:
        """Log-prob of every id of every reply under the present policy, by its key; rank 0's.

        Collective. For ``learner/parity.py``.
        """
        rows = build_scoring_rows(rollouts, self._setup)
        plan = self._plan(rows)
        if not plan[0]:
            return self._unscored_logps(rollouts)
        logps = [self.policy(micro)[0] for micro in self._pack_own_microbatches(rows, plan)]
        reshard_policy(self.policy)
        return self._gather_logps(rows, plan, logps, rollouts)

    @torch.no_grad()
    def penalties(self, rollouts: Sequence[TrainingReply]) -> dict[ReplyKey, float]:
        """What ``kl_in=reward`` takes off each reply's reward, by its key: the sum of coefficient times
        KL estimate under the present policy. Collective, the same on every rank.
        """
        rows = build_penalty_rows(rollouts, self._config.algo, self._setup)
        plan = self._plan(rows)
        micros = self._pack_own_microbatches(rows, plan)
        references = compute_reference_logps(self._reference, rows, plan, self._rank, micros)
        estimates = [
            estimate_kl(reference - self.policy(micro)[0], self._config.algo.kl_estimator)
            for micro, reference in zip(micros, references, strict=True)
        ]
        reshard_policy(self.policy)
        return sum_kl_penalties(rows, plan[self._rank], micros, estimates)

    def diagnose(self, batch: StepBatch) -> PolicyDiagnosis:
        """Gradients by part of the model and channel, and the shift from the reference policy, before ``step``.

        Collective; changes nothing. Costs a backward pass each for TEXT, AUDIO and SFT, and two forward
        passes over rollouts and anchors. No shift where no reference policy is held (``log.diagnose_every=0``).
        """
        collector = DiagnosticsCollector(self.policy)
        for loss in build_diagnostic_losses(batch, self._config.algo, self._setup):
            plan = self._plan(loss.rows)
            if plan[0]:
                self._backward(self._prepare_rank_batch(loss.rows, plan), None, loss.weight, loss.algo)
                collector.record_and_clear(loss.name)
        if self._reference is not None:
            for name, rows in build_shift_rows(batch, self._setup).items():
                collector.record_shift(name, self._pack_own_microbatches(rows, self._plan(rows)), self._reference)
        return collector.build_diagnosis(self._version)

    def weights(self, version: int | None = None) -> tuple[WeightManifest, NDArray[np.uint8]] | None:
        """All weights in the engine's type, tied ones under each name; on rank 0, None elsewhere.

        Collective.
        """
        dtype = TORCH_DTYPES[self._config.model.dtype]
        tensors = []
        for name, tensor in exporting.engine_tensors(self.policy, self.family):
            if self._rank == 0:
                tensors.append((name, tensor.to(dtype)))
        return pack_weights(tensors, self._version if version is None else version) if self._rank == 0 else None

    def export(self, directory: Path) -> None:
        """Hugging Face folder like the start checkpoint's. Collective."""
        exporting.export_policy(self.policy, self.family, directory, rank=self._rank, step=self._version)

    def save(self, directory: Path) -> None:
        """Everything that the next step depends on, as safetensors, into an empty folder. Collective."""
        state.save_state(
            directory, self.policy, self._optimizer, rank=self._rank, version=self._version, updates=self._updates
        )

    def load(self, directory: Path) -> None:
        """Go on from ``save``, with any number of ranks. Collective.

        ValueError: not a state of this model.
        """
        reshard_policy(self.policy)
        self._version, self._updates = state.load_state(directory, self.policy, self._optimizer, rank=self._rank)

    # -- one step, piece by piece

    def _run_epoch(
        self, batch: _RankBatch, old: list[Tensor] | None, weight: float
    ) -> tuple[list[ScoredMicrobatch], dict[str, float]]:
        """Forward and backward over all micro-batches, then one update.

        ``old``: log-probs of the first epoch.
        """
        scored = self._backward(batch, old, weight, self._config.algo)
        loss_metrics = metrics.reduce_metrics(scored, compute_component_factors(weight))
        return scored, {**loss_metrics, **self._update()}

    def _backward(
        self, batch: _RankBatch, old: list[Tensor] | None, weight: float, algo: AlgoConfig
    ) -> list[ScoredMicrobatch]:
        """Leave the step's gradient in the parameters."""
        scored = []
        for m, (micro, reference) in enumerate(zip(batch.micros, batch.references, strict=True)):
            last = m == len(batch.micros) - 1
            set_gradient_sync(self.policy, last or ranks.get_rank_device().type == "cuda")
            logps, entropies, mtp_logps = self.policy(micro)
            before = logps.detach() if old is None else old[m]
            terms = compute_loss_terms(logps, entropies, before, reference, micro, mtp_logps, weight=weight, algo=algo)
            torch.autograd.backward(terms.total * self._world)  # FSDP averages over ranks; weights are global
            scored.append(
                ScoredMicrobatch(micro=micro, logps_N=logps.detach(), entropies_N=entropies.detach(), terms=terms)
            )
        return scored

    def _update(self) -> dict[str, float]:
        """Clip, step, forget the gradient."""
        learning = self._config.learner
        size = clip_gradients(self.policy, learning.clip)
        if not isfinite(size):
            self._optimizer.zero_grad()
            raise FloatingPointError(f"gradient norm must be finite: got {size} at version {self._version}")
        rate = learning.lr * min(1.0, (self._updates + 1) / max(1, learning.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._updates += 1
        return {"grad_norm": size, "lr": rate}

    def _gather_logps(
        self,
        rows: Sequence[TrainingRow],
        plan: MicrobatchPlan,
        logps: Sequence[Tensor],
        replies: Sequence[TrainingReply],
    ) -> LogpsByReply:
        """Bring the replies' log-probs to rank 0, by key; nan where nobody needed one."""
        positions_by_rank = [list_scored_positions(rows, plan, rank) for rank in range(self._world)]
        values_by_rank = ranks.gather_over_ranks(torch.cat(list(logps)), [len(w) for w in positions_by_rank])
        logps_by_key = self._unscored_logps(replies)
        if self._rank == 0:
            for positions, values in zip(positions_by_rank, values_by_rank, strict=True):
                for (i, j), value in zip(positions, values, strict=True):
                    key = rows[i].key
                    if key is not None:
                        logps_by_key[key][j] = value
        return logps_by_key

    # -- small things

    def _load_policy(self, *, checkpointing: bool) -> Policy:
        grammar = self._setup.grammar
        policy = Policy.load(
            self.family,
            chunk=self._config.learner.logprob_chunk,
            allowed_GV=None if grammar is None else grammar.tensor(),
            checkpointing=checkpointing,
        )
        return shard_policy(policy, self._mesh, dtype=self._config.model.dtype)

    def _plan(self, rows: Sequence[TrainingRow]) -> MicrobatchPlan:
        budget, streams = self._config.learner.tokens_per_microbatch, self.family.streams
        return plan_microbatches(rows, ranks=self._world, budget=budget, streams=streams)

    def _pack_own_microbatches(self, rows: Sequence[TrainingRow], plan: MicrobatchPlan) -> list[Microbatch]:
        device, streams = ranks.get_rank_device(), self.family.streams
        return [pack_microbatch([rows[i] for i in micro], streams).to(device) for micro in plan[self._rank]]

    def _prepare_rank_batch(self, rows: Sequence[TrainingRow], plan: MicrobatchPlan) -> _RankBatch:
        micros = self._pack_own_microbatches(rows, plan)
        references = compute_reference_logps(self._reference, rows, plan, self._rank, micros)
        return _RankBatch(micros=micros, references=references)

    def _unscored_logps(self, replies: Sequence[TrainingReply]) -> LogpsByReply:
        own = replies if self._rank == 0 else ()
        return {key: [nan] * len(r.reply.ids) for r in own if (key := r.key) is not None}
